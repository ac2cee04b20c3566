"""A teacher for each row: the rows of each are put together, and the answers back in order."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.capture.call import Call
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.teachers import RoutedTeacher
from tests import support


class Named(support.ConvNet):
    """Takes its input by name, and notes how many rows it is given."""

    def __init__(self, width, classes=support.CLASSES):
        super().__init__(width, classes)
        self.rows = []

    def forward(self, x):
        self.rows.append(len(x))
        return super().forward(x)


def guides():
    return {name: support.seeded(lambda: Named(8), seed) for seed, name in enumerate(("en", "fr", "de"))}


KINDS = ["fr", "en", "fr", "fr", "en", "en", "fr", "en"]


def dictionaries(kinds=KINDS, count=24):
    x, y = support.data(count).tensors
    named = [{} if kinds is None else {"language": kinds[i % len(kinds)]} for i in range(count)]
    return DataLoader([{"x": x[i], "y": y[i], **named[i]} for i in range(count)], batch_size=8)


def test_each_row_is_answered_by_the_teacher_that_it_names():
    networks = guides()
    teacher = RoutedTeacher(networks, key="language")
    teacher.watch(["features"])
    teacher.attach()
    x = support.data().tensors[0][:8]
    lesson = teacher.answer({"x": x, "language": KINDS}, Call(kwargs={"x": x}))
    assert [network.rows for network in networks.values()] == [[4], [4], []]
    with torch.no_grad():
        logits = torch.cat([networks[kind](x[i : i + 1]) for i, kind in enumerate(KINDS)])
        layers = torch.cat([networks[kind].features(x[i : i + 1]) for i, kind in enumerate(KINDS)])
    torch.testing.assert_close(lesson.output, logits)
    torch.testing.assert_close(lesson.features["features"], layers)
    assert not lesson.output.requires_grad


def test_one_teacher_for_all_rows_is_asked_once_about_the_whole():
    networks = guides()
    x = support.data().tensors[0][:8]
    lesson = RoutedTeacher(networks, key="language").answer({"x": x, "language": ["de"] * 8}, Call(kwargs={"x": x}))
    assert [network.rows for network in networks.values()] == [[], [], [8]]
    with torch.no_grad():
        assert torch.equal(lesson.output, networks["de"](x))


@pytest.mark.parametrize(
    "how",
    [
        {"key": "domain"},
        {"route": lambda batch: batch["domain"]},
        {"route": lambda batch: batch["domain"].tolist()},
    ],
    ids=["name", "tensor", "list"],
)
def test_numbers_name_teachers_too(how):
    teacher = RoutedTeacher({"0": nn.Identity(), "1": nn.ReLU()}, **how)
    batch = {"input": -torch.ones(3, 2), "domain": torch.tensor([1, 0, 1])}
    lesson = teacher.answer(batch, Call(kwargs={"input": batch["input"]}))
    assert lesson.output[:, 0].tolist() == [0.0, -1.0, 0.0]


def test_other_inputs_go_along_with_their_rows():
    class Offset(nn.Module):
        def forward(self, x, by, names, table):
            assert len(names) == len(x)
            return x + by + table[1]

    teacher = RoutedTeacher({"a": Offset(), "b": nn.Sequential(Offset())[0]}, key="k")
    batch = {
        "x": torch.zeros(3, 2),
        "by": torch.tensor([[1.0], [2.0], [3.0]]),
        "names": ["p", "q", "r"],
        "table": torch.tensor([0.0, 10.0]),
    }
    lesson = teacher.answer({**batch, "k": ["b", "a", "b"]}, Call(kwargs=batch))
    assert lesson.output[:, 0].tolist() == [11.0, 12.0, 13.0]


def test_no_rows_have_no_answers():
    x = torch.zeros(0, 1, 4, 4)
    lesson = RoutedTeacher(guides(), key="language").answer({"x": x, "language": []}, Call(kwargs={"x": x}))
    assert lesson.output.shape == (0, 4)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_it_teaches_what_one_teacher_of_all_rows_would(door):
    """The whole fit with equal teachers is that with one of them."""
    losses = [KDLoss(temperature=2.0), HintLoss("features", "features")]
    equal = {name: support.seeded(lambda: Named(8), 1) for name in ("en", "fr")}
    found = fitted(door, RoutedTeacher(equal, key="language"), losses)
    losses = [KDLoss(temperature=2.0), HintLoss("features", "features")]
    expected = fitted(door, support.seeded(lambda: Named(8), 1), losses, kinds=None)
    for one, other in zip(expected.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(one, other)


class DictionaryModule(support.UserModule):
    def training_step(self, batch, batch_idx):
        return self.criterion(self.net(x=batch["x"]), batch["y"])

    def validation_step(self, batch, batch_idx):
        self.log("user_val", self.criterion(self.net(x=batch["x"]), batch["y"]), batch_size=8)


def fitted(door, teacher, losses, kinds=KINDS):
    net = support.seeded(lambda: support.ConvNet(3), 3)
    train, val = dictionaries(kinds), dictionaries(kinds)
    if door == "module":
        support.fit(support.module(net, teacher=teacher, losses=losses), train=train, val=val, max_epochs=1)
    else:
        callback = DistillationCallback(teacher, losses)
        support.fit(DictionaryModule(net), callbacks=[callback], train=train, val=val, max_epochs=1)
    return net


def test_a_row_that_names_no_teacher_is_refused():
    with pytest.raises(ValueError, match=r"\['it'\] name no teacher; there are \['en', 'fr', 'de'\]"):
        fitted("module", RoutedTeacher(guides(), key="language"), [KDLoss()], ["en", "it"])


def test_a_column_that_is_not_there_or_of_another_form_is_refused():
    x = torch.zeros(2, 1, 4, 4)
    teacher = RoutedTeacher(guides(), key="language")
    with pytest.raises(ValueError, match=r"reads the column 'language' of the batch.* has \['x'\]"):
        teacher.answer({"x": x}, Call(kwargs={"x": x}))
    with pytest.raises(ValueError, match=r"the batch has list\. Or give route=, a function of the batch"):
        teacher.answer([x, 1], Call(args=(x,)))
    with pytest.raises(ValueError, match="1 rows name a teacher, but 2 are asked about"):
        teacher.answer({"x": x, "language": ["en"]}, Call(kwargs={"x": x}))
    with pytest.raises(ValueError, match=r"expected whole numbers \(B,\)"):
        teacher.answer({"x": x, "language": torch.zeros(2)}, Call(kwargs={"x": x}))
    with pytest.raises(ValueError, match="expected a network for each value"):
        RoutedTeacher({}, key="language")
    for both in ({}, {"key": "language", "route": len}):
        with pytest.raises(ValueError, match="expected key='COLUMN' or route="):
            RoutedTeacher(guides(), **both)


class Reversed(DistillationModule):
    def unpack_batch(self, batch):
        read = super().unpack_batch(batch)
        read.kwargs["x"] = read.kwargs["x"].flip(0)
        return read


@pytest.mark.parametrize("in_order", [False, True])
def test_rows_in_another_order_than_the_batch_are_refused(in_order):
    teacher = RoutedTeacher(guides(), key="language", in_order=in_order)
    module = Reversed(support.student(), teacher, [KDLoss()])
    if in_order:
        support.fit(module, train=dictionaries(), val=dictionaries(), max_epochs=1)
        return
    with pytest.raises(ValueError, match=r"RoutedTeacher reads the batch row by row.*in_order=True"):
        support.fit(module, train=dictionaries(), val=dictionaries(), max_epochs=1)


def test_a_layer_without_rows_is_refused_at_set_up():
    class Flat(Named):
        def forward(self, x):
            self.rows.append(len(x))
            return self.head(self.dropout(self.features(x)).flatten(1))

    networks = {name: Flat(8) for name in ("en", "fr")}
    for network in networks.values():
        network.dropout = Columns()
    teacher = RoutedTeacher(networks, key="language")
    with pytest.raises(ValueError, match="rows can be put together where the first axis has one for each"):
        fitted("module", teacher, [HintLoss("features", "dropout.inner")])


class Pair(Named):
    """Returns no tensor that is known to be its logits."""

    def forward(self, x):
        return {"one": super().forward(x), "other": x.flatten(1)}


def test_outputs_that_are_not_known_are_missed_only_by_losses_of_logits():
    networks = {name: support.seeded(lambda: Pair(8), seed) for seed, name in enumerate(("en", "fr"))}
    fitted("module", RoutedTeacher(networks, key="language"), [HintLoss("features", "features")])
    with pytest.raises(ValueError, match="reads the teacher's logits, but its output has none"):
        fitted("module", RoutedTeacher(networks, key="language"), [KDLoss()])


class Columns(nn.Module):
    """Hands its input on, and shows it to a layer with the channels first."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        return self.inner(x.transpose(0, 1)).transpose(0, 1)
