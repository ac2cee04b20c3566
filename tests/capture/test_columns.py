"""Each network gets what its own forward takes of one batch, through both doors."""

import logging
import warnings
from collections import UserDict, namedtuple
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule, cache
from lightning_kd.capture.batch import unpack_batch
from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import of_teacher, takes, unused_columns
from lightning_kd.functional import kd_loss
from lightning_kd.losses import DKDLoss, KDLoss, TokenKDLoss
from lightning_kd.teachers import CachedTeacher, Ensemble
from tests import support


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, mask=None):
        return self.head(x if mask is None else x * mask)


class Kinds(Plain):
    """Reads a column that a plain network does not take, and has another order."""

    def __init__(self):
        super().__init__()
        self.kinds = nn.Embedding(2, 3)

    def forward(self, x, kind=None, mask=None):
        known = torch.zeros(len(x), dtype=torch.long) if kind is None else kind
        return super().forward(x, mask) + 5 * self.kinds(known)


class Anything(Kinds):
    def forward(self, x, **rest):
        return super().forward(x, rest.get("kind"), rest.get("mask"))


class Theirs(LightningModule):
    """A step as users write it: it gives the student what the student takes, by name or by position."""

    def __init__(self, net, call):
        super().__init__()
        self.net, self.call = net, call

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.call(self.net, batch), batch["labels"])

    def validation_step(self, batch, batch_idx):
        self.call(self.net, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def by_name(net, batch):
    return net(x=batch["x"], mask=batch["mask"])


def by_position(net, batch):
    return net(batch["x"], batch["mask"])


def columns(**more):
    torch.manual_seed(3)
    return {
        "x": torch.randn(6, 4),
        "mask": torch.randint(0, 2, (6, 4)).float(),
        "kind": torch.arange(6) % 2,
        "labels": torch.arange(6) % 3,
        **more,
    }


def kd_of(door, student, teacher, batch, call=by_name):
    data = support.batches(batch)
    if door == "module":
        still = partial(torch.optim.SGD, lr=0.0)
        task = nn.CrossEntropyLoss()
        net, callbacks = DistillationModule(student, teacher, [KDLoss()], task_loss=task, optimizer=still), []
    else:
        net, callbacks = Theirs(student, call), [DistillationCallback(teacher, [KDLoss()])]
    trainer = support.trainer(max_epochs=1, callbacks=callbacks)
    trainer.fit(net, data, data)
    return trainer.callback_metrics["train/kd"].double()


def by_hand(student, teacher, temperature=4.0):
    """The divergence of softened classes as a sum over classes."""
    s, t = (one.double() / temperature for one in (student, teacher))
    p, q = s.exp() / s.exp().sum(1, keepdim=True), t.exp() / t.exp().sum(1, keepdim=True)
    return (q * (q / p).log()).sum() / len(s) * temperature**2


@pytest.mark.parametrize("form", [dict, UserDict])
@pytest.mark.parametrize("call", [by_name, by_position])
@pytest.mark.parametrize("kind", [Kinds, Anything])
@pytest.mark.parametrize("door", ["module", "callback"])
def test_what_only_the_teacher_takes_reaches_it(door, kind, call, form):
    torch.manual_seed(0)
    student, teacher, batch = Plain(), kind(), columns()
    with torch.no_grad():
        expected = by_hand(
            student(batch["x"], batch["mask"]), teacher(batch["x"], kind=batch["kind"], mask=batch["mask"])
        )
    value = kd_of(door, student, teacher, form(batch), call)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_what_only_the_student_takes_stays_with_it(door, caplog):
    torch.manual_seed(0)
    student, teacher, batch = Kinds(), Plain(), columns()
    with torch.no_grad():
        expected = by_hand(student(batch["x"], batch["kind"], batch["mask"]), teacher(batch["x"], batch["mask"]))
    with caplog.at_level(logging.INFO):
        value = kd_of(door, student, teacher, batch, lambda net, b: net(x=b["x"], kind=b["kind"], mask=b["mask"]))
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0.0)
    assert [r.message for r in caplog.records].count(
        "The teacher does not take ['kind'], which the student is called with, and goes without."
    ) == 1


def test_members_of_an_ensemble_get_what_each_takes():
    torch.manual_seed(0)
    student, members, batch = Plain(), [Plain(), Kinds()], columns()
    with torch.no_grad():
        answers = [members[0](batch["x"], batch["mask"]), members[1](batch["x"], batch["kind"], batch["mask"])]
        expected = by_hand(student(batch["x"], batch["mask"]), sum(a.softmax(1) for a in answers).div(2).log())
    for door in ("module", "callback"):
        value = kd_of(door, student, Ensemble(members), batch)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=0.0)


def test_unused_columns_are_told_once():
    told = "No network takes the column\\(s\\) 'note', 'maske' \\(did you mean 'mask'\\?\\) of the batch"
    batch = columns(note=torch.zeros(6), maske=torch.zeros(6))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kd_of("module", Plain(), Kinds(), batch)
    assert len([w for w in caught if "No network takes" in str(w.message)]) == 1
    with pytest.warns(UserWarning, match=told):
        kd_of("module", Plain(), Kinds(), batch)


def test_which_of_several_columns_of_labels_is_read_is_told():
    batch = columns(y=torch.arange(6) % 3)
    (first,) = {"target", "labels", "label"} & batch.keys()
    with pytest.warns(UserWarning, match=f"labels under '{first}' and 'y', of which '{first}' is read"):
        kd_of("module", Plain(), Kinds(), batch)


def test_under_the_callback_the_step_may_read_them(caplog):
    with caplog.at_level(logging.INFO):
        kd_of("callback", Plain(), Kinds(), columns(note=torch.zeros(6)))
    assert "No network takes the column(s) 'note' of the batch by name; training_step may read them" in caplog.text
    assert "left out" not in caplog.text


def test_a_second_input_of_another_name_is_told(caplog):
    class Scaled(Plain):
        def forward(self, x, scale=None):
            return super().forward(x, scale)

    def told(teacher, call):
        caplog.clear()
        callback = DistillationCallback(teacher, losses=[KDLoss()])
        data = support.batches(columns())
        with caplog.at_level(logging.INFO):
            support.trainer(max_steps=1, callbacks=[callback]).fit(Theirs(Plain(), call), data, data)
        return [one.message for one in caplog.records if "as its" in one.message]

    by_place = lambda net, given: net(given["x"], given["mask"])  # noqa: E731
    (sentence,) = told(Scaled(), by_place)
    assert "The teacher Scaled gets the student's 'mask' as its 'scale'" in sentence
    assert told(Plain(), by_place) == []
    assert told(Kinds(), by_place) == []
    assert told(Scaled(), lambda net, given: net(given["x"])) == []


def test_whoever_reads_the_batch_is_told_nothing():
    class Own(DistillationModule):
        def unpack_batch(self, batch):
            batch = dict(batch)
            batch.pop("note")
            return super().unpack_batch(batch)

    net = Own(Plain(), Kinds(), [KDLoss()], task_loss=nn.CrossEntropyLoss())
    data = support.batches(columns(note=torch.zeros(6)))
    support.trainer(max_epochs=1).fit(net, data, data)


def test_rows_that_may_be_others_are_refused():
    def mixed(net, batch):
        return net(x=batch["x"].flip(0), mask=batch["mask"].flip(0))

    with pytest.raises(ValueError, match=r"takes \['kind'\] of the batch.*Override teacher_inputs"):
        kd_of("callback", Plain(), Kinds(), columns(), mixed)


def test_columns_beside_the_target():
    batch = ({name: value for name, value in columns().items() if name != "labels"}, columns()["labels"])
    assert sorted(of_teacher(batch, (), {"x": batch[0]["x"]}, Plain(), Kinds())[1]) == ["kind", "x"]


def test_a_column_that_the_student_could_take_is_left_out_as_the_step_leaves_it_out():
    batch = columns()
    assert sorted(of_teacher(batch, (), {"x": batch["x"]}, Kinds(), Kinds())[1]) == ["x"]


def test_targets_and_rows_are_no_inputs():
    class Needy(nn.Module):
        def forward(self, x, y, labels=None, index=None): ...

    batch = {"x": torch.ones(2, 4), "y": torch.ones(2), "labels": torch.ones(2), "index": torch.arange(2)}
    assert sorted(of_teacher(batch, (), {"x": batch["x"]}, Plain(), Needy())[1]) == ["x", "y"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch.compile imports scripts
def test_what_is_taken():
    class Declared(nn.Module):
        def forward(self, x, /, y, *, z=1): ...

    found = takes(Declared())
    assert (found.positional, found.named, found.required) == (("x", "y"), {"y", "z"}, {"y"})
    assert "other" not in found
    assert "other" in takes(Anything())
    assert "mask" in takes(torch.compile(Plain()))
    patched = Plain()
    patched.forward = lambda x, extra=None: x
    assert takes(patched).named == {"x", "extra"}
    assert unused_columns((torch.ones(1), torch.ones(1)), [Plain()]) is None


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")  # its category changed with torch 2.14
def test_a_program_that_does_not_tell_is_called_as_the_student_is():
    traced = torch.jit.trace(Plain(), torch.ones(1, 4))
    batch = columns()
    assert of_teacher(batch, (batch["x"],), {}, Plain(), traced) == ((batch["x"],), {})


def test_a_named_tuple_is_read_in_its_order_if_its_names_say_so_too():
    x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    assert unpack_batch(namedtuple("Sample", "image label")(x, y)).target is y
    assert unpack_batch(namedtuple("Sample", "a b idx")(x, y, y)).index is y


@pytest.mark.parametrize("names", ["label image", "y x", "image idx", "image idx label"])
def test_a_named_tuple_in_another_order_is_refused(names):
    values = [torch.zeros(2, dtype=torch.long)] * len(names.split())
    with pytest.raises(ValueError, match=r"named tuple of .* stands elsewhere"):
        unpack_batch(namedtuple("Sample", names)(*values))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.x, self.domain = nn.Linear(4, 3), nn.Embedding(3, 3)

    def forward(self, x, domain):
        return self.x(x) + self.domain(domain)


class OwnStep(LightningModule):
    def __init__(self, net, columns):
        super().__init__()
        self.net, self.columns = net, columns

    def training_step(self, batch, batch_idx):
        if self.columns:
            return nn.functional.cross_entropy(self.net(batch["x"]), batch["label"])
        x, domain, y = batch
        return nn.functional.cross_entropy(self.net(x, domain), y)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("columns", "net", "words"),
    [
        (False, TwoInputs, "the student is called with the second. If the target is the third, override unpack_batch"),
        (True, partial(nn.Linear, 4, 3), "labels under 'labels' and 'label', of which 'labels' is read"),
    ],
)
def test_a_callback_says_which_labels_it_reads_where_others_may_be_meant(columns, net, words):
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    batch = {"x": x, "labels": y, "label": y.flip(0)} if columns else (x, y, y.flip(0))
    callback = DistillationCallback(support.seeded(net, 2), [DKDLoss()])
    with pytest.warns(UserWarning, match=words):
        support.fit(
            OwnStep(support.seeded(net, 1), columns),
            train=support.batches(batch),
            callbacks=[callback],
            max_epochs=1,
            limit_val_batches=0,
        )


class Embeds(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, input_ids=None, inputs_embeds=None):
        return self.head((self.embed(input_ids) if inputs_embeds is None else inputs_embeds).mean(1))


class SoftPrompts(OwnStep):
    def training_step(self, batch, batch_idx):
        embeds = self.net.embed(batch["input_ids"])
        return nn.functional.cross_entropy(self.net(inputs_embeds=embeds), batch["labels"])


class OfIds(DistillationCallback):
    def teacher_inputs(self, batch, args, kwargs):
        return (), {"input_ids": batch["input_ids"]}


def test_a_teacher_is_not_called_with_what_the_students_embedding_has_made():
    student, teacher = (support.seeded(Embeds, seed) for seed in (1, 2))
    ids, labels = torch.arange(12).view(3, 4) % 9, torch.arange(3)
    options = {"train": support.batches({"input_ids": ids, "labels": labels}), "max_epochs": 1, "limit_val_batches": 0}
    with pytest.raises(ValueError, match=r"inputs_embeds, which it makes itself.*Override teacher_inputs"):
        support.fit(SoftPrompts(student, True), callbacks=[DistillationCallback(teacher, [KDLoss()])], **options)
    with torch.no_grad():
        expected = kd_loss(student(ids), teacher(ids))
    fitted = support.fit(SoftPrompts(student, True), callbacks=[OfIds(teacher, [KDLoss()])], **options)
    assert float(fitted.callback_metrics["train/kd"]) == pytest.approx(float(expected), rel=1e-5)


class Ids(nn.Module):
    """Names its tokens as nanoGPT does."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 7)

    def forward(self, idx):
        return self.embed(idx)


def test_idx_of_several_numbers_a_sample_are_tokens_and_of_one_are_rows(tmp_path):
    ids = torch.arange(12).view(3, 4) % 7
    tokens, rows = unpack_batch({"idx": ids}), unpack_batch({"x": ids, "idx": torch.arange(3)})
    assert torch.equal(tokens.kwargs["idx"], ids)
    assert tokens.index is None
    assert rows.index.tolist() == [0, 1, 2]
    assert list(rows.kwargs) == ["x"]
    data = [{"idx": one} for one in ids]
    cache.write(Ids(), data, tmp_path, losses=[TokenKDLoss(shift=False)], dtype="float32")
    found = CachedTeacher(tmp_path).answer({"idx": ids[1:]}, Call(kwargs={"idx": ids[1:]})).output
    assert found.shape == (2, 4, 7)
    with pytest.raises(ValueError, match="not in"):
        CachedTeacher(tmp_path).answer({}, Call(kwargs={"idx": ids[1:].flip(1)}))
