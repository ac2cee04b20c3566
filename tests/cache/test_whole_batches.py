"""Stored answers are given for the inputs that the teacher had, also for those of a whole batch, or are refused."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import Batch, DistillationCallback, DistillationModule, cache
from lightning_kd.capture.call import Call
from lightning_kd.capture.options import options_of
from lightning_kd.files.store.manifest import PLAN, read_plain, write_plain
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import CachedTeacher, OwnColumns
from tests import support


class Net(nn.Module):
    """Reads an option of the whole batch, a column and a number."""

    def __init__(self):
        super().__init__()
        self.f, self.g, self.e = nn.Linear(6, 3), nn.Linear(6, 3), nn.Embedding(3, 3)

    def forward(self, x, mode="f", dom=None, scale=1.0, size=None):
        out = (self.f if mode == "f" else self.g)(x) * scale
        out = out if dom is None else out + 3 * self.e(dom)
        return out if size is None else out + size["height"]


class Plain(nn.Module):
    """A student that takes the sample alone."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)

    def forward(self, x):
        return self.net(x)


class Rows(torch.utils.data.Dataset):
    def __init__(self, **given):
        self.given, self.x = given, support.seeded(lambda: torch.randn(24, 6), 0)

    def __len__(self):
        return 24

    def __getitem__(self, row):
        more = {name: value(row) if callable(value) else value for name, value in self.given.items()}
        return {"x": self.x[row], **more}


def collate(rows):
    def joined(name):
        return torch.stack([row[name] for row in rows]) if torch.is_tensor(rows[0][name]) else rows[0][name]

    return {name: joined(name) for name in rows[0]}


def of(factor=1):
    return lambda row: torch.tensor((row * factor) % 3)


def guide():
    return support.seeded(Net, 1)


def write(folder, teacher=None, **given):
    options = given.pop("options", {})
    defaults = {"losses": [KDLoss()], "dtype": "float32", "batch_size": 8, "collate_fn": collate}
    return cache.write(teacher or guide(), Rows(**given), folder, **(defaults | options))


def fitted(teacher, student=Net, door="module", call=None, **given):
    loader = DataLoader(Rows(**given), batch_size=8, collate_fn=collate)
    student = support.seeded(student, 2)
    if door == "module":
        module, callbacks = DistillationModule(student, teacher, [KDLoss()]), []
    else:
        module = UserStep(student, call)
        callbacks = [DistillationCallback(teacher=teacher, losses=[KDLoss()], student="net")]
    trainer = support.fit(module, train=loader, max_epochs=1, limit_val_batches=0, callbacks=callbacks)
    return float(trainer.callback_metrics["train/kd"])


class UserStep(support.UserModule):
    def __init__(self, net, call):
        super().__init__(net)
        self.call = call

    def training_step(self, batch, batch_idx):
        return self.call(self.net, batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.001)


OTHER = {
    "a mode": ({"mode": "f"}, {"mode": "g"}, r"mode='f' for the whole batch, but the fit has 'g'"),
    "a number": ({"scale": 1.0}, {"scale": 3.0}, r"scale=1\.0 for the whole batch, but the fit has 3\.0"),
    "a nested number": ({"size": {"height": 3}}, {"size": {"height": 4}}, r"size\.height=3 .* has 4"),
    "a number that is left out": ({"scale": 3.0}, {}, r"scale=3\.0 .*the fit has 1\.0"),
    "a new number": ({}, {"scale": 3.0}, "the fit has an input 'scale', which the teacher takes"),
    "a column that is gone": ({"dom": of()}, {}, "the input 'dom', which the teacher takes, but in the fit neither"),
    "a new column": ({}, {"dom": of()}, "the fit has an input 'dom'.*Write the store anew"),
    "two changes": ({"mode": "f"}, {"dom": of()}, "the fit has an input 'dom'"),
}


@pytest.mark.parametrize("name", sorted(OTHER))
def test_other_inputs_than_the_teacher_had_are_refused_at_set_up(tmp_path, name):
    written, given, said = OTHER[name]
    write(tmp_path, **written)
    with pytest.raises(ValueError, match=said):
        fitted(CachedTeacher(tmp_path), **given)


@pytest.mark.parametrize("with_student", [False, True])
@pytest.mark.parametrize("student", [Net, Plain])
@pytest.mark.parametrize(
    ("written", "given"),
    [
        ({"mode": "g", "scale": 3.0, "dom": of()},) * 2,
        ({"mode": "f"}, {}),
        ({}, {"mode": "f", "scale": 1.0, "dom": None}),
        ({"size": {"height": 3}},) * 2,
        ({"index": torch.tensor, "labels": of(), "y": of(), "epoch": 3}, {"labels": of(2), "epoch": 4}),
    ],
)
@pytest.mark.filterwarnings("ignore:No network takes the column")
def test_the_inputs_that_the_teacher_had_are_taken(tmp_path, written, given, student, with_student):
    options = {"student": support.seeded(student, 2)} if with_student else {}
    write(tmp_path, options=options, **written)
    assert fitted(CachedTeacher(tmp_path), student, **given) == pytest.approx(fitted(guide(), student, **given), 1e-5)


@pytest.mark.parametrize("with_student", [False, True])
def test_a_column_that_only_the_teacher_takes_is_compared_in_the_batch(tmp_path, with_student):
    options = {"student": support.seeded(Plain, 2)} if with_student else {}
    write(tmp_path, dom=of(), mode="g", options=options)
    for given, said in (
        ({"dom": of(2), "mode": "g"}, "The teacher has not seen them"),
        ({"dom": of(), "mode": "f"}, "mode='g'"),
        ({"mode": "g"}, "Leave it in the batch"),
    ):
        with pytest.raises(ValueError, match=said):
            fitted(CachedTeacher(tmp_path), Plain, **given)


def by_position(net, batch):
    return net(batch["x"], batch["mode"], batch["dom"])


def by_name(net, batch):
    return net(batch["x"], mode=batch["mode"], dom=batch["dom"])


def alone(net, batch):
    return net(batch["x"])


@pytest.mark.parametrize(("student", "call"), [(Net, by_position), (Net, by_name), (Plain, alone)])
def test_a_users_own_step_finds_the_answers_however_it_calls(tmp_path, student, call):
    write(tmp_path, dom=of(), mode="g")
    stored = fitted(CachedTeacher(tmp_path), student, "callback", call, dom=of(), mode="g")
    assert stored == pytest.approx(fitted(guide(), student, "callback", call, dom=of(), mode="g"), 1e-5)
    for changed in ({"dom": of(2), "mode": "g"}, {"dom": of(), "mode": "f"}):
        with pytest.raises(ValueError, match="CachedTeacher: "):
            fitted(CachedTeacher(tmp_path), student, "callback", call, **changed)


def test_one_picture_in_two_domains_is_told_apart_by_a_column_that_only_the_teacher_takes(tmp_path):
    class Twice(Rows):
        def __getitem__(self, row):
            return {"x": self.x[row // 2], "dom": torch.tensor(row % 2)}

    for i, options in enumerate(({}, {"student": support.seeded(Plain, 2)})):
        folder = tmp_path / str(i)
        cache.write(guide(), Twice(), folder, losses=[KDLoss()], dtype="float32", batch_size=24, **options)
        x, dom = Twice().x[:4].repeat_interleave(2, 0), torch.arange(8) % 2
        found = CachedTeacher(folder).answer({"x": x, "dom": dom}, Call(kwargs={"x": x})).output
        assert torch.allclose(found, guide()(x, dom=dom), rtol=0, atol=1e-6)


def test_an_option_that_changes_from_batch_to_batch_is_not_stored(tmp_path):
    with pytest.raises(ValueError, match=r"rows 8 to 15 has the input 'scale' = 2\.0 .* the first batch has 1\.0"):
        write(tmp_path, scale=lambda row: 1.0 if row < 8 else 2.0)
    write(tmp_path / "other", epoch=lambda row: float(row))  # which the teacher does not take


def test_an_option_that_changes_in_the_middle_of_a_fit_is_refused(tmp_path):
    write(tmp_path)
    for name, first, then in (("scale", 1.0, 2.0), ("mode", "f", "g")):
        teacher, x = CachedTeacher(tmp_path), Rows().x
        teacher.answer(None, Call(kwargs={"x": x[:8], name: first}))
        with pytest.raises(ValueError, match=f"{name}={first!r} for the whole batch"):
            teacher.answer(None, Call(kwargs={"x": x[8:16], name: then}))


def test_a_number_in_a_tensor_may_be_rounded_as_its_format(tmp_path):
    write(tmp_path, scale=1.1, options={"collate_fn": with_tensor})
    teacher, x = CachedTeacher(tmp_path), Rows().x[:4]
    for scale in (1.1, torch.tensor(1.1), torch.tensor(1.1, dtype=torch.bfloat16)):
        teacher.answer(None, Call(kwargs={"x": x, "scale": scale}))
    with pytest.raises(ValueError, match=r"scale=1\.1"):
        teacher.answer(None, Call(kwargs={"x": x, "scale": torch.tensor(1.15)}))


def with_tensor(rows):
    return {**collate(rows), "scale": torch.tensor(rows[0]["scale"])}


def test_a_list_of_as_many_numbers_as_rows_stays_an_option(tmp_path):
    class Sized(Plain):
        def forward(self, x, size=(1, 1)):
            return super().forward(x) * size[0]

    write(tmp_path, support.seeded(Sized, 1), size=[2, 3])
    teacher, x = CachedTeacher(tmp_path), Rows().x
    for count in (2, 5):
        teacher.answer(None, Call(kwargs={"x": x[:count], "size": [2, 3]}))
        with pytest.raises(ValueError, match=r"size=\[2, 3\]"):
            teacher.answer(None, Call(kwargs={"x": x[:count], "size": [2, 4]}))


def test_columns_of_a_teachers_own_need_not_be_in_the_fit(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 3)

        def forward(self, x, **more):
            return self.net(x)

    write(tmp_path, support.seeded(Own, 1), teacher_x=lambda row: torch.ones(6) * row, options={
        "teacher_inputs": OwnColumns()
    })  # fmt: skip
    fitted(CachedTeacher(tmp_path), Plain)


def test_a_function_of_the_users_may_read_what_the_teacher_does_not_take(tmp_path):
    def view(args, kwargs):
        return (kwargs["x"] * kwargs["gain"],), {}

    write(tmp_path, support.seeded(Plain, 1), gain=2.0, options={"teacher_inputs": view})
    fitted(CachedTeacher(tmp_path), Plain, gain=2.0)
    with pytest.raises(ValueError, match=r"gain=2\.0 .* the fit has 3\.0"):
        fitted(CachedTeacher(tmp_path), Plain, gain=3.0)


def sample_alone(batch):
    return Batch(kwargs={"x": batch["x"]})


@pytest.mark.filterwarnings("ignore:No network takes the column")
@pytest.mark.parametrize("with_student", [False, True])
def test_a_column_that_the_users_own_reading_leaves_out_is_not_new(tmp_path, with_student):
    options = {"unpack_batch": sample_alone} | ({"student": support.seeded(Net, 2)} if with_student else {})
    write(tmp_path, dom=of(), scale=2.0, options=options)
    module = DistillationModule(support.seeded(Net, 2), CachedTeacher(tmp_path), [KDLoss()])
    vars(module)["unpack_batch"] = sample_alone
    loader = DataLoader(Rows(dom=of(2), scale=3.0), batch_size=8, collate_fn=collate)
    support.fit(module, train=loader, max_epochs=1, limit_val_batches=0)


class TakesAll(nn.Module):
    """Reads a column that its forward does not name."""

    def __init__(self):
        super().__init__()
        self.net = support.seeded(Net, 1)

    def forward(self, x, **more):
        return self.net(x, dom=more["dom"])


@pytest.mark.parametrize("unpack", [None, sample_alone])
def test_a_teacher_that_takes_every_column_is_asked_by_those_of_the_batch(tmp_path, unpack):
    write(tmp_path, TakesAll(), dom=of(), options={} if unpack is None else {"unpack_batch": unpack})
    stored, live = (fitted(teacher, Plain, dom=of()) for teacher in (CachedTeacher(tmp_path), TakesAll()))
    assert stored == pytest.approx(live, 1e-5)
    with pytest.raises(ValueError, match="The teacher has not seen them"):
        fitted(CachedTeacher(tmp_path), Plain, dom=of(2))


class Placed(nn.Module):
    """Logits of tokens and their places."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(30, 4), nn.Embedding(9, 4)

    def forward(self, input_ids, attention_mask, position_ids=None):
        counted = (attention_mask.cumsum(1) - 1).clamp_min(0)
        return self.words(input_ids) + self.places(counted if position_ids is None else position_ids)


def texts(left=0, right=0, places=None):
    ids = torch.nn.functional.pad(torch.arange(1, 13).view(3, 4), (left, right))
    mask = torch.nn.functional.pad(torch.ones(3, 4, dtype=torch.long), (left, right))
    more = (
        {} if places is None else {"position_ids": torch.nn.functional.pad(torch.tensor([places] * 3), (left, right))}
    )
    return {"input_ids": ids, "attention_mask": mask, **more}


@pytest.mark.parametrize("written", [None, [0, 1, 2, 3]])
@pytest.mark.parametrize("given", [None, [0, 1, 2, 3], [0, 1, 0, 1]])
@pytest.mark.parametrize("by_student", [False, True])
def test_places_that_count_the_tokens_may_be_left_out(tmp_path, written, given, by_student):
    net, whole = support.seeded(Placed, 1), texts(1, 0, written)
    rows = [{name: value[row] for name, value in whole.items()} for row in range(3)]
    cache.write(net, rows, tmp_path, losses=[KDLoss()], dtype="float32", batch_size=3)
    batch = texts(0, 2, given)
    named = {name: value for name, value in batch.items() if by_student or name != "position_ids"}
    if given == [0, 1, 0, 1]:
        with pytest.raises(ValueError, match=r"position_ids|The teacher has not seen them"):
            CachedTeacher(tmp_path).answer(batch, Call(kwargs=named))
        return
    found = CachedTeacher(tmp_path).answer(batch, Call(kwargs=named)).output
    assert torch.allclose(found[:, :4], net(**texts())[:, :4], atol=1e-6)


def as_before(path):
    plain = read_plain(path)
    del plain["teacher"]["takes"], plain["teacher"]["first_answers"], plain["data"]["options"]
    write_plain(path, plain)


def test_a_store_of_an_earlier_version_is_read_as_it_was(tmp_path):
    write(tmp_path, mode="f", dom=of())
    as_before(tmp_path / "manifest.json")
    write(tmp_path, mode="f", dom=of())
    fitted(CachedTeacher(tmp_path), mode="f", dom=of())
    fitted(CachedTeacher(tmp_path), mode="g", dom=of())  # it says nothing of the mode


def test_a_writer_goes_on_with_the_plan_of_an_earlier_version_and_not_with_another_option(tmp_path):
    part = {"shard_rows": 8, "rank": 1, "world_size": 2}
    write(tmp_path, mode="f", options=part)
    with pytest.raises(ValueError, match=r"data\.options\.mode: 'f', not 'g'"):
        write(tmp_path, mode="g", options=part | {"rank": 0})
    as_before(tmp_path / PLAN)
    write(tmp_path, mode="f", options=part | {"rank": 0})
    fitted(CachedTeacher(tmp_path), mode="f")


def test_what_is_of_each_sample_is_no_option():
    found = options_of(
        (torch.zeros(2, 3), "f", (1, torch.zeros(2))),
        {"a": [1, 2], "b": [1, 2, 3], "c": None, "d": [{"box": 1}, {"box": 2}], "labels": 3, "e": object()},
    )
    assert found == {"1": "f", "2.0": 1, "b": [1, 2, 3], "c": None}
