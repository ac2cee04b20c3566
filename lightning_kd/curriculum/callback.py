"""Curriculum: which samples the student sees when, ordered by how hard the teacher finds them."""

from collections.abc import Callable, Sized
from functools import partial
from typing import Any, Literal, cast

import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lightning_kd.curriculum.difficulty import Scorer, TeacherLoss, check_scores, score_samples
from lightning_kd.curriculum.private import restart_iterator, wrapped_sampler
from lightning_kd.curriculum.sampler import CurriculumSampler
from lightning_kd.fit.find import find_run
from lightning_kd.fit.patches import Patches
from lightning_kd.schedules import LinearSchedule, Unit

Order = Literal["easy_to_hard", "hard_to_easy"]
_OTHER_STREAM = 0x5DEECE66D
"""Changes the global seed, so that the order does not use the random numbers of the first weights."""


class Curriculum(Callback):
    r"""Show the student the easy samples first, or the hard ones; the rest is admitted little by little.

    Before the first step the teacher scores every training sample once. From then on the training batches are drawn
    from the admitted share of the data only, which grows in a straight line from ``start`` to all of it. An epoch
    keeps its number of batches, so that learning rate schedules stay right: while few samples are admitted, each
    comes several times (as in the paper, which draws uniformly from the admitted ones). What is drawn is shuffled
    whether or not the data loader shuffles. It changes nothing but the samples, so it goes with every loss and with
    either door, and in several processes all draw from the same share.

    A checkpoint holds the scores and the seed: a run that is resumed, also in the middle of an epoch, equals the
    uninterrupted one.

    Scores are those of the samples as the data set gives them. If it augments at random, give the same samples
    without augmentation as ``dataset``. The module's batch transfer hooks run as they do for validation.

    Args:
        order: Which samples come first.
        start: Share of the data that is admitted at first, > 0 and <= 1.
        length: Number of epochs or steps until all are admitted, >= 1.
        unit: Whether to count epochs or optimizer steps; with epochs the share is constant during an epoch.
        scorer: What tells how hard a sample is: ``TeacherLoss`` (by default), ``TeacherEntropy`` or
            ``TeacherConfidence``, a function (logits, target) -> (B,), or a tensor with a number for each sample.
        dataset: The training samples in the same order, to be scored in their place.
        seed: Seed of the order within the admitted share; by default it follows the global seed.

    Raises:
        ValueError: If a number is out of its range; at the start of the fit, if the data loader does not allow it.

    Example:
        >>> curriculum = Curriculum("easy_to_hard", start=0.5, length=2, scorer=torch.tensor([0.3, 0.1, 0.9, 0.2]))
        >>> trainer = Trainer(callbacks=[curriculum], accelerator="cpu", barebones=True)

    Reference:
        Hacohen & Weinshall, "On The Power of Curriculum Learning in Training Deep Networks", ICML 2019,
        arXiv:1904.03626, whose scores by a trained network and uniform draws this follows; their pacing grows in
        jumps.
    """

    def __init__(
        self,
        order: Order = "easy_to_hard",
        start: float = 0.3,
        length: int = 10,
        unit: Unit = "epoch",
        *,
        scorer: Scorer | Tensor | None = None,
        dataset: Dataset[Any] | None = None,
        seed: int | None = None,
    ) -> None:
        if order not in ("easy_to_hard", "hard_to_easy"):
            raise ValueError(f"Curriculum: expected order 'easy_to_hard' or 'hard_to_easy', got {order!r}.")
        if not 0.0 < start <= 1.0:
            raise ValueError(f"Curriculum: expected start > 0 and <= 1, a share of the data, got {start!r}.")
        self.order = order
        try:
            self.pacing = LinearSchedule(start, 1.0, length, unit)
        except ValueError as error:
            raise ValueError(str(error).replace("LinearSchedule", "Curriculum")) from None
        self.scorer: Scorer | Tensor = TeacherLoss() if scorer is None else scorer
        if isinstance(self.scorer, Tensor) and self.scorer.ndim != 1:
            raise ValueError(
                f"Curriculum: expected a scorer tensor (N,), a number for each sample, got shape "
                f"{tuple(self.scorer.shape)}."
            )
        if isinstance(self.scorer, Tensor) and dataset is not None:
            rank_zero_warn("Curriculum: dataset has no effect, because the scores are given as a tensor.")
        self.dataset = dataset
        self.seed = seed
        self.difficulty: Tensor | None = None
        self.sampler: CurriculumSampler | None = None
        self._seed: int | None = None
        self._started = False
        self._patches = Patches()
        self._ordered: BatchSampler | None = None

    # What the Trainer calls

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wrap ``process_dataloader`` of the strategy, which gets the training data loader before its first use."""
        if stage != "fit":
            return
        same = trainer.overfit_batches  # type: ignore[attr-defined]  # Lightning 2.6 sets it outside of the class
        if same:
            raise ValueError(
                f"Curriculum: overfit_batches={same} trains on the same batches in every epoch, and "
                "a curriculum draws others in each; leave one of the two out."
            )
        self.difficulty = self.sampler = self._seed = None
        self._started = False
        self._warn_without_effect(trainer)
        self._patches.undo_all()
        process = partial(self._process, trainer, pl_module, trainer.strategy.process_dataloader)
        self._patches.replace(trainer.strategy, "process_dataloader", process)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the seed, and note that the teacher can score from now on."""
        if self._seed is None:
            seed = torch.initial_seed() ^ _OTHER_STREAM if self.seed is None else self.seed
            self._seed = trainer.strategy.broadcast(seed % 2**62)
        self._started = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the samples, and begin the epoch anew if worker processes have drawn samples before."""
        if self.sampler is None:
            return
        self._prepare(trainer, pl_module, self.sampler)
        due, drawn = _due(trainer), self.sampler.drawn
        if drawn == due:
            return
        self.sampler.due = due
        if drawn is not None:  # worker processes draw before this hook, when Lightning makes the loader's iterator
            with torch.random.fork_rng(devices=[]):
                restart_iterator(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass the step of the run to the sampler."""
        if self.sampler is not None:
            self.sampler.step = trainer.global_step
            self.sampler.batches_a_step = trainer.accumulate_grad_batches

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the strategy and the data loader as they were."""
        self._patches.undo_all()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the strategy and the data loader as they were."""
        self._patches.undo_all()

    def state_dict(self) -> dict[str, Any]:
        """Return the scores and the seed."""
        return {"difficulty": self.difficulty, "seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores and the seed."""
        self.difficulty, self._seed = state_dict["difficulty"], state_dict["seed"]

    # The data loader

    def _process(
        self, trainer: Trainer, pl_module: LightningModule, process: Callable[[object], object], loader: object
    ) -> object:
        if trainer.training:
            if self._ordered is not None:  # the loader of an epoch before
                self._patches.put_back(self._ordered, "sampler")
            self._install(trainer, pl_module, loader)
        return process(loader)

    def _install(self, trainer: Trainer, pl_module: LightningModule, loader: object) -> None:
        check_loader(loader)
        assert isinstance(loader, DataLoader)
        assert isinstance(loader.batch_sampler, BatchSampler)
        replaced = loader.batch_sampler.sampler
        if isinstance(replaced, DistributedSampler):
            replicas = {"num_replicas": replaced.num_replicas, "rank": replaced.rank}
        else:
            replicas = trainer.distributed_sampler_kwargs or {}
        batch_size = loader.batch_sampler.batch_size
        sampler = CurriculumSampler(len(cast(Sized, replaced)), self.pacing, batch_size, **replicas)
        sampler.prepare = partial(self._prepare, trainer, pl_module, sampler)
        sampler.due = _due(trainer)
        sampler.batches_a_step = trainer.accumulate_grad_batches
        self.sampler, self._ordered = sampler, loader.batch_sampler
        self._patches.replace(self._ordered, "sampler", sampler)

    def _prepare(self, trainer: Trainer, pl_module: LightningModule, sampler: CurriculumSampler) -> None:
        """Give a sampler the order of difficulty, if it has none."""
        if not self._started or sampler.order is not None:
            return
        loader = trainer.train_dataloader
        if not isinstance(loader, DataLoader):
            raise ValueError(
                f"Curriculum: the training data is a {type(loader).__name__} of several data loaders; it can order the "
                "samples of one. Join the data sets: DataLoader(torch.utils.data.ConcatDataset([...]))."
            )
        samples = len(cast(Sized, loader.dataset))
        if self.difficulty is None:
            self.difficulty = self._score(trainer, pl_module, loader)
        if len(self.difficulty) != samples:
            raise ValueError(
                f"Curriculum: there are {len(self.difficulty)} scores, and {samples} training samples. Give a score "
                "for each sample, keep the data set during the run, or resume with that of the checkpoint."
            )
        if self.difficulty.min() == self.difficulty.max():
            rank_zero_warn("Curriculum: all samples are equally difficult, so they are admitted in their order.")
        sign = -1.0 if self.order == "hard_to_easy" else 1.0
        sampler.seed = cast(int, self._seed)
        sampler.order = torch.argsort(sign * self.difficulty, stable=True)

    def _score(self, trainer: Trainer, pl_module: LightningModule, loader: "DataLoader[Any]") -> Tensor:
        if isinstance(self.scorer, Tensor):
            return check_scores(self.scorer.detach().cpu().float(), "the scorer tensor")
        run = find_run(trainer, pl_module)
        if run is None or run.teacher is None:
            raise ValueError(
                "Curriculum: there is no teacher to score the samples. Give DistillationModule a teacher or the "
                "Trainer a DistillationCallback, or give Curriculum the scores: scorer=tensor."
            )
        return score_samples(trainer, pl_module, run, self.scorer, loader, self.dataset)

    def _warn_without_effect(self, trainer: Trainer) -> None:
        length, unit = self.pacing.length, self.pacing.unit
        if self.pacing.start == 1.0:
            rank_zero_warn("Curriculum: start=1.0 admits all samples at once, so that there is no curriculum.")
            return
        whole = trainer.max_epochs if unit == "epoch" else trainer.max_steps
        if whole is not None and 0 < whole <= length:
            rank_zero_warn(
                f"Curriculum: all samples are admitted after {length} {unit}s, but the run ends after {whole}, so that "
                f"the {'hardest' if self.order == 'easy_to_hard' else 'easiest'} are never seen; shorten length."
            )


def _due(trainer: Trainer) -> tuple[int, int, int]:
    """Return epoch and step at which the next epoch begins, and the batches done if it is resumed in the middle."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    done = batches.current.processed if epochs.started > epochs.processed else 0
    if done >= trainer.num_training_batches:  # all batches are done; the hooks at the end of the epoch are not
        return epochs.processed + 1, trainer.global_step, 0
    return epochs.processed, trainer.global_step - done // trainer.accumulate_grad_batches, done


def check_loader(loader: object) -> None:
    """Raise a ``ValueError`` with the remedy unless a curriculum can choose the samples of a data loader."""
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"Curriculum: the training data is a {type(loader).__name__}; it can order the samples of a "
            "torch.utils.data.DataLoader only."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            f"Curriculum: {type(loader.dataset).__name__} is an IterableDataset, whose samples come in its own order; "
            "use a data set with __getitem__ and __len__."
        )
    if loader.batch_sampler is None:
        raise ValueError(
            "Curriculum: the data loader has batch_size=None, so there are no single samples to choose; let it make "
            "the batches: DataLoader(dataset, batch_size=...)."
        )
    batch_sampler: Any = loader.batch_sampler
    if type(batch_sampler).__iter__ is not BatchSampler.__iter__:
        raise ValueError(
            f"Curriculum: the batch sampler {type(batch_sampler).__name__} itself chooses the samples of each "
            "batch; use batch_size=... in place of batch_sampler=..."
        )
    sampler = batch_sampler.sampler
    if isinstance(sampler, DistributedSamplerWrapper):
        sampler = wrapped_sampler(sampler)
    if not isinstance(sampler, RandomSampler | SequentialSampler | DistributedSampler):
        raise ValueError(
            f"Curriculum: the sampler {type(sampler).__name__} itself chooses the samples, and would be replaced; use "
            "shuffle=True in place of sampler=..., and torch.utils.data.Subset to train on some samples only."
        )
