"""The curriculum: scores, draws, both doors, resume, processes, and what it refuses."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import lightning_kd.curriculum.difficulty
from lightning_kd import Curriculum, DistillationCallback, DistillationModule
from lightning_kd.curriculum.difficulty import Difficulty, TeacherConfidence, TeacherEntropy, TeacherLoss
from lightning_kd.curriculum.sampler import CurriculumSampler
from lightning_kd.losses import KDLoss
from lightning_kd.schedules import LinearSchedule, Moment
from tests import support
from tests.support import processes
from tests.support.names import named

pytestmark = pytest.mark.filterwarnings("ignore:Curriculum. all samples are admitted after:UserWarning")  # short runs

ROOT = Path(__file__).parents[2]
DOORS = ["module", "callback"]
COUNT = 24
HALF = torch.log(torch.tensor([[1.0, 3.0], [4.0, 1.0]]))  # probabilities (1/4, 3/4) and (4/5, 1/5)


class Rows(Dataset):
    """Images whose first pixel is their row, so that what was seen can be read off a batch."""

    def __init__(self, count=COUNT, offset=0.0):
        self.x, self.y = support.data(count).tensors
        self.x[:, 0, 0, 0] = torch.arange(count)
        self.offset = offset

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row] + self.offset, self.y[row]


class Seen(Callback):
    """Notes the rows of every training batch, by epoch."""

    def __init__(self):
        self.epochs = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        while len(self.epochs) <= trainer.current_epoch:
            self.epochs.append([])
        self.epochs[trainer.current_epoch].append(batch[0][:, 0, 0, 0].long().tolist())

    def rows(self, epoch):
        return [row for batch in self.epochs[epoch] for row in batch]


class RowScore(Difficulty):
    """Finds later rows harder, whatever the teacher says."""

    def __call__(self, logits, target):
        RowScore.grad = logits.requires_grad or torch.is_grad_enabled()
        return self.of(logits)


def loader(count=COUNT, **options):
    return DataLoader(Rows(count), **({"batch_size": 8, "shuffle": True} | options))


def teacher_of_rows():
    """A teacher whose doubt is known: it finds (row * 7) % 24 hard."""

    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            certainty = (COUNT - (x[:, 0, 0, 0] * 7) % COUNT) / 8 * self.scale
            return torch.stack([certainty, *[torch.zeros_like(certainty)] * (support.CLASSES - 1)], 1)

    return Teacher()


HARDNESS = (torch.arange(COUNT) * 7) % COUNT
EASIEST = HARDNESS.argsort().tolist()


def fit(door, curriculum, *, train=None, callbacks=(), dropout=0.0, **options):
    losses = [lightning_kd.losses.KDLoss(temperature=2.0)]
    made, more = support.through(door, support.student(dropout), guide=teacher_of_rows(), losses=losses)
    seen = Seen()
    every = [*more, curriculum, seen, *callbacks]
    trainer = support.fit(made, train=train or loader(), callbacks=every, **({"max_epochs": 4} | options))
    return made, seen, trainer


def curriculum(**options):
    return Curriculum(**({"start": 0.25, "length": 3, "scorer": TeacherConfidence()} | options))


# Scores


def test_teacher_loss_by_hand():
    # -log(3/4), -log(4/5)
    expected = torch.tensor([0.28768207, 0.22314355])
    torch.testing.assert_close(TeacherLoss()(HALF, torch.tensor([1, 0])), expected)
    soft = torch.tensor([[0.0, 1.0], [0.5, 0.5]])  # the second: -(log(4/5) + log(1/5)) / 2
    torch.testing.assert_close(TeacherLoss()(HALF, soft), torch.tensor([0.28768207, 0.91629073]))


def test_teacher_entropy_and_confidence_by_hand():
    # -(1/4) log(1/4) - (3/4) log(3/4), -(4/5) log(4/5) - (1/5) log(1/5)
    torch.testing.assert_close(TeacherEntropy()(HALF, None), torch.tensor([0.56233514, 0.50040242]))
    torch.testing.assert_close(TeacherConfidence()(HALF, None), torch.tensor([0.25, 0.2]))


def test_scores_of_sequences_are_means_over_the_labelled_positions():
    logits = HALF[None]  # one sequence of two positions
    torch.testing.assert_close(TeacherConfidence()(logits, None), torch.tensor([0.225]))
    torch.testing.assert_close(TeacherLoss()(logits, torch.tensor([[1, -100]])), torch.tensor([0.28768207]))
    torch.testing.assert_close(TeacherLoss()(logits, torch.tensor([[1, 0]])), torch.tensor([0.25541281]))
    assert TeacherLoss()(logits, torch.tensor([[-100, -100]])).tolist() == [0.0]


@pytest.mark.parametrize("scorer", [TeacherLoss(), TeacherEntropy(), TeacherConfidence()], ids=named)
@pytest.mark.parametrize("size", [0.0, 1e-8, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_finite_and_in_float32(scorer, size, dtype):
    scores = scorer(size * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=dtype), torch.tensor([0, 0]))
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert (scores >= 0).all()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (None, "no target; use TeacherEntropy"),
        (torch.zeros(3, dtype=torch.int64), r"expected class ids of shape \(2,\).*got torch.int64 \(3,\)"),
        (torch.zeros(2), r"got torch.float32 \(2,\)"),
    ],
)
def test_teacher_loss_refuses_targets_that_do_not_fit(target, words):
    with pytest.raises(ValueError, match=words):
        TeacherLoss()(HALF, target)


# Draws


def sampler(count, samples=None, *, start=0.5, length=2, unit="epoch", seed=0, **options):
    made = CurriculumSampler(count if samples is None else samples, LinearSchedule(start, 1.0, length, unit), **options)
    made.order = torch.arange(count)
    made.seed = seed
    return made


def draw(made, epoch=0, step=0):
    made.set_epoch(epoch)
    made.step = step
    return list(made)


def test_admitted_samples_come_equally_often_and_others_not_at_all():
    drawn = draw(sampler(12))  # half of 12: each of 0..5 twice
    assert sorted(drawn) == sorted([*range(6), *range(6)])
    assert sorted(drawn[:6]) == list(range(6))
    assert drawn[:6] != drawn[6:]


@pytest.mark.parametrize(("epoch", "admitted"), [(0, 6), (1, 9), (2, 12), (5, 12)])
def test_the_admitted_share_grows_by_epoch_and_the_length_stays(epoch, admitted):
    made = sampler(12)
    drawn = draw(made, epoch)
    assert set(drawn) == set(range(admitted))
    assert len(drawn) == len(made) == 12


def test_epochs_and_seeds_differ_and_the_same_is_the_same():
    made = sampler(12)
    assert draw(made, 3) == draw(made, 3)
    assert draw(made, 3) != draw(made, 4)
    assert draw(made, 3) != draw(sampler(12, seed=77), 3)
    before = torch.get_rng_state()
    draw(made, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_with_steps_the_share_grows_within_an_epoch():
    # 16 samples in batches of 4; 4/16 at step 0, then 3 more a step: 4, 7, 10, 13
    made = sampler(16, start=0.25, length=4, unit="step", batch_size=4)
    drawn = draw(made)
    for step, admitted in enumerate([4, 7, 10, 13]):
        assert made.admitted(Moment(step=step)) == admitted
        batch = drawn[4 * step : 4 * step + 4]
        assert len(set(batch)) == 4
        assert max(batch) < admitted
    assert sorted(drawn[:4]) == [0, 1, 2, 3]
    assert sorted(draw(made, epoch=1, step=4)) == list(range(16))


def test_a_step_draws_every_admitted_sample_equally_often_without_repetition():
    # 40 of 400 a step, out of the first 200: each is expected 2000 * 40 / 200 = 400 times, with deviation 18
    made = sampler(400, 80_000, start=0.5, length=10**9, unit="step", batch_size=40)
    drawn = torch.tensor(draw(made)).view(2000, 40)
    assert all(len(set(step)) == 40 for step in drawn.tolist())
    counts = drawn.flatten().bincount(minlength=400)
    assert counts[200:].sum() == 0
    assert counts[:200].min() > 400 - 5 * 18
    assert counts[:200].max() < 400 + 5 * 18


def test_a_step_may_be_of_several_batches():
    made = sampler(16, start=0.25, length=4, unit="step", batch_size=4)
    made.batches_a_step = 2
    drawn = draw(made)
    assert set(drawn[:8]) == {0, 1, 2, 3}
    assert set(drawn[8:]) <= set(range(7))


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("skip", [0, 1, 3, 4])
def test_an_epoch_that_is_resumed_in_the_middle_goes_on_where_it_stopped(unit, skip):
    made = sampler(16, unit=unit, length=5, batch_size=4)
    whole = draw(made)
    made.skip = skip
    assert draw(made) == whole[4 * skip :]
    assert draw(made) == whole


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_processes_split_one_permutation(unit):
    # 10 samples over 2 processes, 5 each, of which half are admitted: together each of 0..4 twice
    parts = [draw(sampler(10, 5, unit=unit, num_replicas=2, rank=rank)) for rank in (0, 1)]
    if unit == "epoch":
        assert sorted([*parts[0], *parts[1]]) == sorted([*range(5), *range(5)])
    assert parts[0][:1] != parts[1][:1]
    whole = draw(sampler(10, unit=unit, batch_size=2, length=2))
    assert [row for pair in zip(*parts, strict=True) for row in pair] == whole


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.24, 2), (0.26, 3)])
def test_the_share_is_rounded_and_at_least_one(share, count):
    assert sampler(10, start=share).admitted(Moment()) == count


# A fit


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("order", ["easy_to_hard", "hard_to_easy"])
def test_a_fit_sees_the_first_share_of_the_order_then_all(door, shuffle, order):
    first = EASIEST if order == "easy_to_hard" else EASIEST[::-1]
    made = curriculum(order=order)
    _, seen, trainer = fit(door, made, train=loader(shuffle=shuffle))
    # a quarter, a half, three quarters, all of 24
    assert [set(seen.rows(epoch)) for epoch in range(4)] == [set(first[:n]) for n in (6, 12, 18, 24)]
    assert [len(seen.rows(epoch)) for epoch in range(4)] == [24] * 4
    assert sorted(seen.rows(0)) == sorted(first[:6] * 4)
    assert trainer.global_step == 12
    # the teacher's doubt about row 0, whose logits are (3, 0, 0, 0): 1 - exp(3) / (exp(3) + 3)
    assert float(made.difficulty[0]) == pytest.approx(3 / (3 + 20.085537), rel=1e-5)


def test_both_doors_train_the_same_student():
    module, _, _ = fit("module", curriculum())
    user, _, _ = fit("callback", curriculum())
    support.assert_same_weights(module.student, user.net)


def test_with_everything_admitted_every_epoch_is_a_permutation():
    with pytest.warns(UserWarning, match="no curriculum"):
        _, seen, _ = fit("module", curriculum(start=1.0), max_epochs=2)
    assert [sorted(seen.rows(epoch)) for epoch in (0, 1)] == [list(range(COUNT))] * 2


def test_steps_are_counted_within_an_epoch_and_over_accumulated_batches():
    # 6 batches of 4, two of which are a step: a quarter of 24, then 9/24 more a step: 6, 15, 24
    made = curriculum(unit="step", length=2)
    _, seen, _ = fit("module", made, train=loader(batch_size=4), max_epochs=2, accumulate_grad_batches=2)
    first, second, third = ([*seen.epochs[0][i], *seen.epochs[0][i + 1]] for i in (0, 2, 4))
    assert set(first) <= set(EASIEST[:6])
    assert len(set(first)) == 6
    assert set(second) <= set(EASIEST[:15])
    assert not set(third) <= set(EASIEST[:15])
    assert sorted(seen.rows(1)) == list(range(COUNT))


@pytest.mark.parametrize("door", DOORS)
def test_scoring_disturbs_nothing(door):
    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            self.state = torch.get_rng_state()
            self.modes = [part.training for part in pl_module.modules()]
            self.stage = trainer.state.stage

    watches = [Watch(), Watch()]
    fits = [fit(door, part, callbacks=[w]) for part, w in zip((curriculum(), Callback()), watches, strict=True)]
    assert torch.equal(watches[0].state, watches[1].state)
    assert watches[0].modes == watches[1].modes
    assert watches[0].stage == watches[1].stage
    assert all("process_dataloader" not in vars(trainer.strategy) for _, _, trainer in fits)
    assert all(not part._forward_pre_hooks for part in fits[0][0].modules())


def test_without_shuffling_an_all_admitting_curriculum_is_the_only_change():
    """The student's batch statistics and dropout see the batches alone: scores leave no trace in the weights."""
    scores = teacher_scores()
    given, _, _ = fit("module", curriculum(scorer=scores), dropout=0.5)
    scored, _, _ = fit("module", curriculum(), dropout=0.5)
    support.assert_same_weights(given, scored)


def teacher_scores():
    with torch.no_grad():
        return TeacherConfidence()(teacher_of_rows()(Rows().x), None)


def test_the_scores_are_those_of_the_teacher_without_gradient():
    def score(logits, target):
        flags.append((logits.requires_grad, torch.is_grad_enabled(), tuple(target.shape)))
        return 1.0 - logits.softmax(1).amax(1)

    flags = []
    made = curriculum(scorer=score)
    fit("callback", made, max_epochs=1, train=loader(batch_size=10))
    assert torch.equal(made.difficulty, teacher_scores())
    assert flags == [(False, False, (n,)) for n in (10, 10, 4)]


@pytest.mark.filterwarnings("ignore:Curriculum. training_step calls the student with other values:UserWarning")
def test_the_callback_scores_what_the_student_is_called_with():
    """A module that prepares its batch: the teacher must see the prepared one."""

    class Prepares(support.UserModule):
        def training_step(self, batch, batch_idx):
            self.log("before", 1.0)
            x, y = batch
            return self.criterion(self.net((x + 1.0) % COUNT), y)

    callback = lightning_kd.DistillationCallback(teacher_of_rows(), [lightning_kd.losses.KDLoss()])
    made = curriculum()
    support.fit(Prepares(support.student()), train=loader(), callbacks=[callback, made], max_epochs=1)
    assert torch.equal(made.difficulty, teacher_scores().roll(-1))


def test_a_data_set_without_augmentation_is_scored_in_place_of_the_training_set():
    class Noisy(Rows):
        def __getitem__(self, row):
            x, y = super().__getitem__(row)
            return x + 1000 * torch.rand(()), y

    made = curriculum(dataset=Rows())
    fit("module", made, train=DataLoader(Noisy(), batch_size=8), max_epochs=1)
    assert torch.equal(made.difficulty, teacher_scores())


def test_transfer_hooks_that_augment_in_training_do_not_augment_scores():
    class Augments(DistillationModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y = batch
            return (x + 1000, y) if self.trainer.training else batch

    module = Augments(support.student(), teacher_of_rows(), support.default_losses()[:1])
    made = curriculum()
    support.fit(module, train=loader(), callbacks=[made], max_epochs=1)
    assert torch.equal(made.difficulty, teacher_scores())


@pytest.mark.parametrize("door", DOORS)
def test_mixed_precision_and_unlabelled_scorers_run(door):
    made = curriculum(scorer=TeacherEntropy())
    fit(door, made, precision="bf16-mixed", max_epochs=1)
    assert made.difficulty.dtype == torch.float32


@pytest.mark.parametrize("persistent", [True, False])
def test_worker_processes_draw_what_one_process_draws(persistent):
    _, alone, _ = fit("module", curriculum())
    _, seen, _ = fit("module", curriculum(), train=loader(num_workers=1, persistent_workers=persistent))
    assert seen.epochs == alone.epochs


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_is_made_before_the_fit_to_count_batches_draws_the_same(workers):
    class Counts(DistillationModule):
        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches == 12
            return super().configure_optimizers()

    _, alone, _ = fit("module", curriculum())
    module = Counts(support.student(), teacher_of_rows(), [lightning_kd.losses.KDLoss(temperature=2.0)])
    seen = Seen()
    support.fit(module, train=loader(num_workers=workers), callbacks=[curriculum(), seen], max_epochs=4)
    assert seen.epochs == alone.epochs


@pytest.mark.parametrize("batches", [1, 0.5])
def test_the_same_batches_in_every_epoch_are_no_curriculum(batches):
    made = support.module(losses=[KDLoss()])
    with pytest.raises(ValueError, match=f"Curriculum: overfit_batches={batches} .*leave one of the two out"):
        support.fit(made, callbacks=[Curriculum()], overfit_batches=batches)


def test_a_loader_that_is_made_anew_every_epoch_draws_the_same():
    class Reloads(DistillationModule):
        def train_dataloader(self):
            return loader()

        def val_dataloader(self):
            return loader(shuffle=False)

    module = Reloads(support.student(), teacher_of_rows(), [lightning_kd.losses.KDLoss(temperature=2.0)])
    seen = Seen()
    trainer = support.trainer(max_epochs=4, callbacks=[curriculum(), seen], reload_dataloaders_every_n_epochs=1)
    torch.manual_seed(11)
    trainer.fit(module)
    _, alone, _ = fit("module", curriculum())
    assert seen.epochs == alone.epochs


def test_a_second_fit_scores_anew():
    made = curriculum()
    fit("module", made, max_epochs=1)
    fit("module", made, train=loader(16), max_epochs=1)
    assert len(made.difficulty) == 16


def test_the_users_loader_is_left_as_it_was():
    train = loader()
    before = train.batch_sampler.sampler
    fit("module", curriculum(), train=train)
    assert train.batch_sampler.sampler is before

    class Failing(Callback):
        def on_train_batch_end(self, *args):
            assert train.batch_sampler.sampler is not before
            raise KeyError

    with pytest.raises(KeyError):
        fit("module", curriculum(), train=train, callbacks=[Failing()])
    assert train.batch_sampler.sampler is before


def test_the_seed_decides_over_the_order():
    def rows(**options):
        return fit("module", curriculum(**options), max_epochs=1)[1].rows(0)

    assert rows(seed=1) == rows(seed=1)
    assert rows(seed=1) != rows(seed=2)


# Resume


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("workers", [0, 1])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(door, unit, workers, tmp_path):
    options = {"unit": unit, "length": 3 if unit == "epoch" else 9}
    train = loader(num_workers=workers)
    whole, seen, _ = fit(door, curriculum(**options), dropout=0.5, train=train)
    saver = ModelCheckpoint(tmp_path, filename="half", save_top_k=-1)
    saving = {"callbacks": [saver], "enable_checkpointing": True}
    fit(door, curriculum(**options), dropout=0.5, max_epochs=2, train=train, **saving)

    path = tmp_path / "half.ckpt"
    torch.manual_seed(99)
    made = curriculum(**options, seed=5)  # the checkpoint's scores and seed count
    saving = {"callbacks": [ModelCheckpoint(tmp_path, filename="more")], "enable_checkpointing": True}
    resumed, again, _ = fit(door, made, dropout=0.5, train=train, ckpt_path=path, seed=99, **saving)
    support.assert_same_weights(whole, resumed)
    assert again.epochs[2:] == seen.epochs[2:]
    state = torch.load(path, weights_only=True)["callbacks"]["Curriculum"]
    assert torch.equal(state["difficulty"], made.difficulty)
    assert torch.equal(made.difficulty, teacher_scores())


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended:UserWarning")
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("steps", [5, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (4, 6))])
@pytest.mark.parametrize("workers", [0, 1])
def test_resume_in_the_middle_of_an_epoch_sees_the_samples_that_are_left(door, steps, workers, tmp_path):
    train = loader(num_workers=workers)  # three batches an epoch
    whole, seen, _ = fit(door, curriculum(), train=train, dropout=0.5)
    saving = {"enable_checkpointing": True, "train": train, "dropout": 0.5}

    def saver():
        return ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)

    fit(door, curriculum(), max_epochs=3, callbacks=[saver()], **saving)
    path = tmp_path / f"step={steps}.ckpt"
    resumed, again, _ = fit(door, curriculum(), seed=99, callbacks=[saver()], ckpt_path=path, **saving)
    batches = [batch for epoch in seen.epochs for batch in epoch][steps:]
    assert [batch for epoch in again.epochs for batch in epoch] == batches
    support.assert_same_weights(whole, resumed)


def test_a_resumed_run_does_not_score_again(tmp_path):
    saving = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(tmp_path, filename="half", save_top_k=-1)]}
    fit("module", curriculum(), max_epochs=2, **saving)
    path = tmp_path / "half.ckpt"

    def fails(logits, target):
        raise AssertionError

    with pytest.raises(ValueError, match="24 scores, and 16 training samples"):
        fit("module", curriculum(), train=loader(16), ckpt_path=path, **saving)
    fit("module", curriculum(scorer=fails), ckpt_path=path, **saving)


# Refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": "easy"}, "expected order 'easy_to_hard' or 'hard_to_easy', got 'easy'"),
        ({"start": 0.0}, "expected start > 0 and <= 1"),
        ({"start": 1.5}, "expected start > 0 and <= 1"),
        ({"start": float("nan")}, "expected start > 0 and <= 1"),
        ({"length": 0}, "Curriculum: expected a whole number length >= 1, got 0"),
        ({"length": 2.5}, "Curriculum: expected a whole number length >= 1"),
        ({"unit": "batch"}, "Curriculum: expected unit 'epoch' or 'step'"),
        ({"scorer": torch.zeros(3, 2)}, r"scorer tensor \(N,\).*got shape \(3, 2\)"),
    ],
)
def test_arguments_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Curriculum(**options)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([Rows()[0]] * 8)


class Plain:
    def __iter__(self):
        return iter(loader())


class Bucketing(BatchSampler):
    def __iter__(self):
        return super().__iter__()


def bad_loaders():
    rows = Rows()
    batches = [next(iter(loader()))] * 3
    return {
        "IterableDataset": DataLoader(Stream(), batch_size=4),
        "batch_size=None": DataLoader(batches, batch_size=None),
        "WeightedRandomSampler": DataLoader(rows, 8, sampler=WeightedRandomSampler([1.0] * COUNT, COUNT)),
        "SubsetRandomSampler": DataLoader(rows, 8, sampler=SubsetRandomSampler(range(8))),
        "Bucketing": DataLoader(rows, batch_sampler=Bucketing(SequentialSampler(rows), 4, False)),
        "several data loaders": CombinedLoader([loader(), loader()]),
        "is a Plain": Plain(),
    }


@pytest.mark.parametrize("words", bad_loaders())
def test_a_loader_whose_samples_cannot_be_chosen_is_refused(words):
    class FromEither(DistillationModule):
        def unpack_batch(self, batch):
            return super().unpack_batch(batch[0] if isinstance(batch[0], list | tuple) else batch)

    module = FromEither(support.student(), teacher_of_rows(), [lightning_kd.losses.KDLoss()])
    with pytest.raises(ValueError, match=f"^Curriculum: .*{words}"):
        support.trainer(callbacks=[curriculum()], max_epochs=4).fit(module, bad_loaders()[words], loader(shuffle=False))


def test_the_process_is_released_after_an_error():
    trainer = support.trainer(callbacks=[curriculum()], max_epochs=4)
    with pytest.raises(ValueError, match="Curriculum"):
        trainer.fit(
            support.module(losses=[lightning_kd.losses.KDLoss()]),
            DataLoader(Stream(), batch_size=4),
            loader(shuffle=False),
        )
    assert "process_dataloader" not in vars(trainer.strategy)


def test_without_a_teacher_the_scores_must_be_given():
    def run(scorer):
        module, seen = support.module(teacher=None, losses=None), Seen()
        support.fit(module, train=loader(), callbacks=[curriculum(scorer=scorer), seen], max_epochs=4)
        return set(seen.rows(0))

    with pytest.raises(ValueError, match=r"no teacher to score.*DistillationModule a teacher.*scorer=tensor"):
        run(TeacherEntropy())
    assert run(torch.arange(COUNT)) == set(range(6))


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        (lambda logits, target: logits, r"expected the scorer to return a tensor \(8,\).*got \(8, 4\)"),
        (lambda logits, target: 1.0, r"got float"),
        (
            lambda logits, target: logits[:, 0] * float("nan"),
            "24 of 24 scores of <lambda> are not .*sample 0: nan",
        ),
        (torch.zeros(5), "5 scores, and 24 training samples"),
        (
            torch.tensor([0.0, float("inf")]),
            "1 of 2 scores of the scorer tensor .* first that of sample 1",
        ),
    ],
)
def test_scores_that_do_not_fit_are_refused(scorer, words):
    with pytest.raises(ValueError, match=words):
        fit("module", curriculum(scorer=scorer))


def test_settings_without_effect_warn():
    with pytest.warns(UserWarning, match="the run ends after 2, so that the hardest are never seen"):
        fit("module", curriculum(length=2), max_epochs=2)
    with pytest.warns(UserWarning, match="dataset has no effect"):
        curriculum(scorer=torch.zeros(3), dataset=Rows())
    with pytest.warns(UserWarning, match="all samples are equally difficult"):
        fit("module", curriculum(scorer=torch.zeros(COUNT)))


# The command line, and several processes


def test_a_curriculum_is_written_in_yaml(tmp_path, monkeypatch):
    from lightning_kd.commands.fit import run

    monkeypatch.chdir(ROOT)
    (tmp_path / "curriculum.yaml").write_text(
        "trainer:\n"
        "  callbacks:\n"
        "    - class_path: lightning_kd.Curriculum\n"
        "      init_args:\n"
        "        order: hard_to_easy\n"
        "        start: 0.5\n"
        "        length: 3\n"
        "        unit: step\n"
        "        scorer: TeacherEntropy\n"
    )
    quick = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=4"]
    quiet = ["--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    configs = [f"--config={ROOT}/examples/digits/response.yaml", f"--config={tmp_path}/curriculum.yaml"]
    cli = run(["fit", *configs, *quick, *quiet])
    (made,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, Curriculum))
    assert isinstance(made.scorer, TeacherEntropy)
    assert made.pacing.options() == {"start": 0.5, "end": 1.0, "length": 3, "unit": "step", "delay": 0}
    assert len(made.difficulty) == len(cli.trainer.train_dataloader.dataset)


def two_processes(mode, folder):
    processes.program("programs.distributed_curriculum", mode, folder / mode, limit=300)
    return [torch.load(f"{folder / mode}.{rank}", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lightning", "user"])
def test_two_processes_see_disjoint_halves_of_the_same_admitted_share(mode, tmp_path):
    one, other = two_processes(mode, tmp_path)
    assert torch.equal(one["difficulty"], other["difficulty"])
    torch.testing.assert_close(one["difficulty"], teacher_scores(), rtol=0, atol=0)
    for epoch, admitted in enumerate([12, 18, 24]):  # a half, three quarters, all of 24
        rows = [*one["rows"][epoch], *other["rows"][epoch]]
        assert set(rows) == set(EASIEST[:admitted])
        assert len(one["rows"][epoch]) == len(other["rows"][epoch]) == 12
        assert not set(one["rows"][epoch][:6]) & set(other["rows"][epoch][:6])  # of the first permutation
    assert not set(one["rows"][2]) & set(other["rows"][2])


def test_a_users_distributed_sampler_is_replaced_and_its_share_kept():
    half = DistributedSampler(Rows(), num_replicas=2, rank=1, shuffle=False)
    made = curriculum()
    _, seen, _ = fit("module", made, train=loader(shuffle=False, sampler=half, batch_size=4))
    assert (made.sampler.num_replicas, made.sampler.rank, len(seen.rows(0))) == (2, 1, 12)


def test_every_difficulty_is_plain_data_and_tested_here():
    public = {cls for cls in Difficulty.__subclasses__() if cls.__module__.startswith("lightning_kd")}
    assert public == {TeacherLoss, TeacherEntropy, TeacherConfidence}
    from lightning_kd.configurable import describe, restore

    assert all(isinstance(restore(describe(cls()), Difficulty), cls) for cls in public)


def test_tensor_data_sets_work():
    x, y = support.data(COUNT).tensors
    made = curriculum(scorer=None)
    fit("module", made, train=DataLoader(TensorDataset(x, y), batch_size=8))
    assert len(made.difficulty) == COUNT


def step_that(change):
    class Own(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = support.student()

        def training_step(self, batch, batch_idx):
            x, y = change(batch[0]), batch[1]
            return torch.nn.functional.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

    callbacks = [DistillationCallback(support.teacher(), losses=[KDLoss()], student="net"), Curriculum(length=1)]
    support.trainer(max_epochs=2, callbacks=callbacks).fit(Own(), support.loader())


def test_a_step_that_reorders_the_samples_before_the_call_is_refused():
    with pytest.raises(ValueError, match=r"Curriculum: training_step calls.*in another order.*scorer=tensor"):
        step_that(lambda x: x.flip(0))


@pytest.mark.parametrize(
    "change", [lambda x: 0.6 * x + 0.4 * x.flip(0), lambda x: x.flip(-1)], ids=["mixed", "mirrored"]
)
def test_a_step_that_changes_the_samples_before_the_call_is_warned_of(change):
    with pytest.warns(UserWarning, match=r"Curriculum: training_step calls.*If it mixes samples.*scorer=tensor"):
        step_that(change)
