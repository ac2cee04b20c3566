"""A fit with stored answers is the fit with the teacher itself, or is refused."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from lightning_kd import Curriculum, DistillationModule, cache
from lightning_kd.curriculum.difficulty import TeacherConfidence
from lightning_kd.data import Indexed
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.teachers import CachedTeacher, Renormalize, SwitchingTeacher
from tests import support


def weights(module):
    return torch.cat([value.double().flatten() for value in support_student(module).state_dict().values()])


def support_student(module):
    return module.student if isinstance(module, DistillationModule) else module.net


def fitted(door, guide, train, losses=None, **options):
    module, callbacks = support.through(door, guide=guide, losses=losses)
    trainer = support.fit(module, train=train, callbacks=callbacks, **options)
    return weights(module), {name: float(value) for name, value in trainer.callback_metrics.items()}


def loader(dataset, **options):
    return DataLoader(dataset, batch_size=8, **({"shuffle": True} | options))


@pytest.fixture
def folder(tmp_path):
    return cache.write(
        support.teacher(),
        support.data(),
        tmp_path / "store",
        losses=support.default_losses(),
        dtype="float32",
        shard_rows=7,
        batch_size=24,
    )


def assert_alike(one, other):
    """Compare but for the last bits: on some processors the answer to a row depends on the size of its batch."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("rows", [False, True], ids=["plain", "indexed"])
def test_stored_answers_train_the_student_that_the_teacher_would(folder, door, rows):
    data = Indexed(support.data()) if rows and door == "module" else support.data()
    live, logged = fitted(door, support.teacher(), loader(data))
    stored, said = fitted(door, CachedTeacher(folder), loader(data))
    assert_alike(stored, live)
    train = [name for name in logged if name.startswith("train/")]
    assert [said[name] for name in train] == pytest.approx([logged[name] for name in train], rel=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_answers_of_16_bits_differ_by_their_rounding(tmp_path, dtype):
    folder = cache.write(support.teacher(), support.data(), tmp_path, losses=support.default_losses(), dtype=dtype)
    live, _ = fitted("module", support.teacher(), loader(support.data()))
    stored, _ = fitted("module", CachedTeacher(folder), loader(support.data()))
    assert 0.0 < (live - stored).abs().max() < 1e-2


def first_half(data):
    return Subset(data, list(range(0, len(data), 2)))


@pytest.mark.parametrize(
    "of",
    [
        first_half,
        lambda data: Indexed(first_half(data)),
        lambda data: ConcatDataset([Subset(data, [5, 3]), data]),
        lambda data: Subset(data, list(reversed(range(len(data))))),
    ],
    ids=["subset", "indexed subset", "joined", "reversed"],
)
def test_samples_are_found_whatever_chooses_and_orders_them(folder, of):
    live, _ = fitted("module", support.teacher(), loader(of(support.data())))
    stored, _ = fitted("module", CachedTeacher(folder), loader(of(support.data())))
    assert_alike(stored, live)


@pytest.mark.slow
def test_workers_make_no_difference(folder):
    # worker processes are of a multiprocessing context that leaves no state in this process
    options = {"num_workers": 2, "multiprocessing_context": "forkserver"}
    live, _ = fitted("module", support.teacher(), loader(support.data(), **options))
    stored, _ = fitted("module", CachedTeacher(folder), loader(support.data(), **options))
    assert_alike(stored, live)


def test_another_order_of_rows_is_refused_where_the_batch_names_rows(folder):
    x, y = support.data().tensors
    data = Indexed(TensorDataset(x.flip(0), y.flip(0)))
    with pytest.raises(ValueError, match="in another order"):
        fitted("module", CachedTeacher(folder), loader(data))


class Noisy(TensorDataset):
    def __getitem__(self, row):
        x, *rest = super().__getitem__(row)
        return (x + 0.01 * torch.randn_like(x), *rest)


class Mixing(DistillationModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return (x + 0.5 * x.flip(0) if self.trainer.training else x), y


def test_other_data_is_refused_at_set_up(folder):
    x, y = support.data().tensors
    grown = TensorDataset(torch.cat([torch.randn(2, 1, 4, 4), x]), torch.cat([y[:2], y]))
    for data in (support.data(seed=1), TensorDataset(x * 1.01, y), TensorDataset(x.flip(-1), y), Noisy(x, y), grown):
        module = support.module(teacher=CachedTeacher(folder))
        with pytest.raises(ValueError, match=r"are not in .*the first is sample 0 of the batch"):
            support.fit(module, train=loader(data, shuffle=False), max_steps=1)
        assert module.run.setup.shapes is None


def test_samples_that_are_mixed_after_the_loader_are_refused(folder):
    module = Mixing(support.student(), CachedTeacher(folder), support.default_losses())
    with pytest.raises(ValueError, match="on_after_batch_transfer or the training step"):
        support.fit(module)


class MixingStep(support.UserModule):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step((0.7 * x + 0.3 * x.flip(0), y), batch_idx)


def test_samples_that_the_users_step_mixes_are_refused(folder):
    module, callbacks = support.through("callback", guide=CachedTeacher(folder))
    module = MixingStep(module.net)
    with pytest.raises(ValueError, match="The teacher has not seen them"):
        support.fit(module, callbacks=callbacks)


def test_a_layer_that_was_not_stored_is_refused_with_the_command(folder):
    with pytest.raises(ValueError, match=r"'head'.*holds the layers \['features'\].*lightning-kd cache"):
        support.module(teacher=CachedTeacher(folder), losses=[HintLoss("head", "head")])


def test_the_teachers_part_of_an_evaluation_needs_a_store_of_its_own(folder, capsys):
    val = support.loader(count=16)
    _, live = fitted("module", support.teacher(), loader(support.data()), val=val)
    _, without = fitted("module", CachedTeacher(folder), loader(support.data()), val=val)
    assert not any("teacher" in name or "agreement" in name for name in without)
    assert without["val/loss"] == pytest.approx(live["val/loss"], rel=1e-5)
    cache.write(support.teacher(), val.dataset, folder / "val", losses=support.default_losses(), dtype="float32")
    _, stored = fitted("module", CachedTeacher(folder), loader(support.data()), val=val)
    assert stored == pytest.approx(live, rel=1e-5)


def test_what_is_left_out_of_an_evaluation_is_told_once(folder, caplog):
    with caplog.at_level("INFO"):
        fitted("module", CachedTeacher(folder), loader(support.data()))
    told = [record for record in caplog.records if "part of val/ is left out" in record.message]
    assert len(told) == 1
    assert "lightning-kd cache --split val" in told[0].message


@pytest.mark.parametrize("name", sorted(set(support.exported_losses()) - {"MutualLearning", "BYOTLoss", "TfKDLoss"}))
def test_every_loss_reads_stored_answers_as_it_reads_the_teacher(tmp_path, name):
    def networks():
        return (support.seeded(partial(support.StagedNet, width), seed) for width, seed in ((3, 1), (4, 2)))

    def fit(guide, student):
        module = DistillationModule(
            student,
            guide,
            [support.default_loss(name)],
            task_loss=nn.CrossEntropyLoss(),
            optimizer=partial(torch.optim.SGD, lr=0.05),
        )
        support.fit(module, train=loader(Indexed(support.data())), max_epochs=2, limit_val_batches=0)
        return weights(module)

    student, guide = networks()
    live = fit(guide, student)
    student, guide = networks()
    data, losses = Indexed(support.data()), [support.default_loss(name)]
    if name == "OFDLoss":  # reads the weights of the teacher's norms
        folder = cache.write(guide, data, tmp_path, losses=losses, student=student, dtype="float32")
        with pytest.raises(ValueError, match="a stored teacher has none; give the teacher itself"):
            fit(CachedTeacher(folder), next(networks()))
        return
    folder = cache.write(guide, data, tmp_path, losses=losses, student=student, dtype="float32", batch_size=8)
    stored = fit(CachedTeacher(folder), next(networks()))
    assert torch.allclose(live, stored, rtol=0, atol=1e-6)


def test_another_view_of_the_teacher_is_stored_and_asked_by_the_students_input(tmp_path):
    view = Renormalize([0.0], [1.0], [0.5], [2.0])
    losses = support.default_losses()
    folder = cache.write(
        support.teacher(), support.data(), tmp_path, losses=losses, dtype="float32", teacher_inputs=view, batch_size=24
    )
    module = support.module(teacher_inputs=view)
    support.fit(module)
    for given in (None, view):
        stored = support.module(teacher=CachedTeacher(folder), teacher_inputs=given)
        support.fit(stored)
        assert torch.equal(weights(module), weights(stored))
    other = support.module(teacher=CachedTeacher(folder), teacher_inputs=Renormalize([0.0], [1.0], [0.1], [2.0]))
    with pytest.raises(ValueError, match="has no effect on stored answers"):
        support.fit(other)


def test_a_teacher_that_changes_over_time_is_not_stored(tmp_path):
    changing = SwitchingTeacher([support.teacher(), support.teacher()], [1])
    with pytest.raises(ValueError, match="gives other answers at other times"):
        cache.write(changing, support.data(), tmp_path, losses=[KDLoss()])


def test_a_resumed_fit_goes_on_with_stored_answers(folder, tmp_path):
    whole = support.module(teacher=CachedTeacher(folder))
    support.fit(whole, callbacks=[support.SaveEveryStep(tmp_path)])
    resumed = support.module(teacher=CachedTeacher(folder))
    support.fit(resumed, ckpt_path=tmp_path / "4.ckpt")
    assert torch.equal(weights(whole), weights(resumed))


def test_a_fit_that_goes_on_with_the_store_of_another_teacher_says_so(folder, tmp_path):
    support.fit(support.module(teacher=CachedTeacher(folder)), callbacks=[support.SaveEveryStep(tmp_path)])
    other = support.seeded(partial(support.ConvNet, 8), 5)
    losses = support.default_losses()
    elsewhere = cache.write(other, support.data(), tmp_path / "other", losses=losses, dtype="float32")
    resumed = support.module(teacher=CachedTeacher(elsewhere))
    with pytest.warns(UserWarning, match="the teacher is a CachedTeacher with other weights"):
        support.fit(resumed, ckpt_path=tmp_path / "4.ckpt")


def test_a_curriculum_scores_by_stored_answers(folder):
    students = []
    for guide in (support.teacher(), CachedTeacher(folder)):
        module = support.module(teacher=guide)
        curriculum = Curriculum(start=0.5, length=1, scorer=TeacherConfidence())
        support.fit(module, train=loader(Indexed(support.data())), callbacks=[curriculum], limit_val_batches=0)
        students.append(weights(module))
    assert_alike(*students)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_other_precisions_of_the_student_find_the_samples(folder, precision):
    found = []
    for guide in (support.teacher(), CachedTeacher(folder)):
        module = support.module(teacher=guide, losses=[KDLoss()], teacher_dtype=None)
        support.fit(module, train=loader(support.data()), limit_val_batches=0, precision=precision)
        found.append(float(module.trainer.callback_metrics["train/kd"]))
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_an_output_that_is_not_the_stored_one_is_refused(folder):
    by_option = support.module(teacher=CachedTeacher(folder), teacher_logits="aux")
    by_loss = support.module(teacher=CachedTeacher(folder), losses=[KDLoss(head="aux")])
    for module, said in ((by_option, "the fit reads 'aux'"), (by_loss, "'aux' by name, but of the stored")):
        with pytest.raises(ValueError, match=said):
            support.fit(module)


class OnTheDevice(nn.Module):
    """A student that is called by a name."""

    def __init__(self):
        super().__init__()
        self.net = support.student()

    def forward(self, pixels):
        return self.net(pixels)


def test_a_call_by_name_is_the_call_by_place(tmp_path):
    folder = cache.write(support.teacher(), support.data(), tmp_path, losses=[KDLoss()], dtype="float32")

    def named(rows):
        x, y = zip(*rows, strict=True)
        return {"pixels": torch.stack(x), "y": torch.stack(y)}

    losses = []
    for guide in (support.teacher(), CachedTeacher(folder)):
        view = None if isinstance(guide, CachedTeacher) else by_place
        module = DistillationModule(OnTheDevice(), guide, [KDLoss()], teacher_inputs=view)
        support.fit(module, train=loader(support.data(), collate_fn=named), max_epochs=1, limit_val_batches=0)
        losses.append(module.trainer.callback_metrics["train/kd"])
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-5)


def by_place(args, kwargs):
    return tuple(kwargs.values()) or args, {}
