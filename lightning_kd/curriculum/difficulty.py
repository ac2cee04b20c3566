"""Difficulty: how hard the teacher finds every training sample."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sized
from typing import Any, ClassVar, TypeAlias, cast, final

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import is_own
from lightning_kd.capture.networks import undisturbed
from lightning_kd.capture.rehearsal import student_call
from lightning_kd.capture.rows import is_of_batch, leaves_of
from lightning_kd.configurable import Configurable
from lightning_kd.curriculum.private import before_transfer
from lightning_kd.fit.run import DistillationRun
from lightning_kd.losses.logits.base import IGNORE_INDEX
from lightning_kd.losses.tensors import upcast

_CHANGED = "Curriculum: training_step calls the student with other values than the batch holds"
_REMEDY = "Give the scores, scorer=tensor; or change samples in on_after_batch_transfer while trainer.training."


class Difficulty(Configurable, ABC):
    """How hard each sample of a batch is, computed from the teacher's logits."""

    needs_target: ClassVar[bool] = False
    """Whether the score is computed from the target too."""

    @abstractmethod
    def __call__(self, logits: Tensor, target: Tensor | None) -> Tensor:
        """Return one number a sample, larger for harder ones.

        Args:
            logits: The teacher's, (B, ..., C).
            target: The batch's target, ``None`` for unlabelled data.
        """


Scorer: TypeAlias = Difficulty | Callable[[Tensor, Tensor | None], Tensor]


@final
class TeacherLoss(Difficulty):
    r"""The teacher's cross entropy: :math:`-\log p_T(y \mid x)`, the mean over the labelled positions of a sequence.

    Positions labelled -100 do not count; a sample that has no other is the easiest.

    Example:
        >>> logits = torch.tensor([[3.0, 1.0], [3.0, 1.0]])
        >>> TeacherLoss()(logits, torch.tensor([0, 1]))  # log(1 + exp(-2)), log(1 + exp(2))
        tensor([0.1269, 2.1269])
    """

    needs_target = True

    def __call__(self, logits: Tensor, target: Tensor | None) -> Tensor:
        """Return the cross entropy of each sample; targets are class ids, or probabilities of the logits' shape."""
        if target is None:
            raise ValueError("TeacherLoss: the batch has no target; use TeacherEntropy or TeacherConfidence.")
        log_p = upcast(logits).log_softmax(-1)
        if target.is_floating_point() and target.shape == logits.shape:
            return _mean_over_positions(-(target * log_p).sum(-1))
        if target.is_floating_point() or target.shape != logits.shape[:-1]:
            raise ValueError(
                f"TeacherLoss: expected class ids of shape {tuple(logits.shape[:-1])}, or probabilities of shape "
                f"{tuple(logits.shape)}, got {target.dtype} {tuple(target.shape)}; give Curriculum a function "
                "(logits, target) -> difficulty as scorer."
            )
        loss = F.nll_loss(log_p.flatten(0, -2), target.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
        labelled = (target != IGNORE_INDEX).reshape(len(logits), -1).sum(1)
        return loss.reshape(len(logits), -1).sum(1) / labelled.clamp(min=1)


@final
class TeacherEntropy(Difficulty):
    r"""The entropy of the teacher's probabilities: :math:`-\sum_c p_c \log p_c`; needs no labels.

    Example:
        >>> TeacherEntropy()(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), None)  # log 2, and 0.8808 * 0.1269 + ...
        tensor([0.6931, 0.3653])
    """

    def __call__(self, logits: Tensor, target: Tensor | None) -> Tensor:
        """Return the entropy of each sample, the mean over the positions of a sequence."""
        log_p = upcast(logits).log_softmax(-1)
        return _mean_over_positions(-torch.special.xlogy(log_p.exp(), log_p.exp()).sum(-1))


@final
class TeacherConfidence(Difficulty):
    r"""How far the teacher is from certain: :math:`1 - \max_c p_c`; needs no labels.

    Example:
        >>> TeacherConfidence()(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), None)  # 1 - 1 / (1 + exp(-2))
        tensor([0.5000, 0.1192])
    """

    def __call__(self, logits: Tensor, target: Tensor | None) -> Tensor:
        """Return the doubt about each sample, the mean over the positions of a sequence."""
        return _mean_over_positions(1.0 - upcast(logits).softmax(-1).amax(-1))


def score_samples(
    trainer: Trainer,
    pl_module: LightningModule,
    run: DistillationRun,
    scorer: Scorer,
    loader: "DataLoader[Any]",
    dataset: "Dataset[Any] | None" = None,
) -> Tensor:
    """Return the difficulty of every sample of a data set, in float32 on the CPU; each process scores its part.

    The student does not run. Gradients, random states and the modes of the modules stay as they are.

    Args:
        trainer: The Trainer, once the models are in place.
        pl_module: The module; its training step decides what the models are called with.
        run: The distillation run, which has a teacher.
        scorer: Computes how hard a sample is.
        loader: The training data loader; batches are made in the same way.
        dataset: The data set to score; by default the loader's.

    Raises:
        ValueError: If the scorer does not return a finite number for each sample.
    """
    run.place_teacher()
    dataset = loader.dataset if dataset is None else dataset
    rows = range(trainer.global_rank, len(cast(Sized, dataset)), trainer.world_size)
    difficulty = torch.zeros(len(cast(Sized, dataset)), dtype=torch.float32, device=pl_module.device)
    name = scorer.__name__ if inspect.isfunction(scorer) else type(scorer).__name__
    rank_zero_info(f"Curriculum: the teacher scores {len(difficulty)} samples by {name}.")
    trainer.validating = True  # a transfer hook that augments in training only leaves these batches alone
    try:
        with undisturbed(pl_module), trainer.precision_plugin.forward_context():
            done = 0
            for batch in _in_order(loader, dataset, rows):
                scores = _score_batch(trainer, pl_module, run, scorer, batch)
                difficulty[list(rows[done : done + len(scores)])] = scores
                done += len(scores)
    finally:
        trainer.training = True
    if trainer.world_size > 1:
        difficulty = cast(Tensor, trainer.strategy.reduce(difficulty, reduce_op="sum"))
    return check_scores(difficulty.cpu(), name)


def check_scores(difficulty: Tensor, source: str) -> Tensor:
    """Return the scores, or raise a ``ValueError`` that names the first that is not finite."""
    wrong = (~difficulty.isfinite()).nonzero().flatten()
    if len(wrong):
        raise ValueError(
            f"Curriculum: {len(wrong)} of {len(difficulty)} scores of {source} are not finite, first that of sample "
            f"{int(wrong[0])}: {float(difficulty[wrong[0]])}."
        )
    return difficulty


def _score_batch(
    trainer: Trainer, pl_module: LightningModule, run: DistillationRun, scorer: Scorer, batch: Any
) -> Tensor:
    batch = trainer.precision_plugin.convert_input(batch)
    batch = before_transfer(pl_module, batch)
    batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
    hooks = run.step.hooks
    call = student_call(pl_module, run.student, batch)
    if run.step.calls is not None and is_own(hooks.unpack_batch) and not is_of_batch(call, batch):
        _check_order(call, batch)
    logits = run.step.reading.teacher_logits(run.step.ask(batch, call))
    if logits is None:
        raise ValueError("Curriculum: the teacher's output has no logits; override logits_of.")
    target = None
    try:
        target = hooks.unpack_batch(batch).target
    except ValueError:  # unpack_batch does not know this batch; a scorer without target needs no unpacking
        if getattr(scorer, "needs_target", False):
            raise
    scores = scorer(logits, target)
    if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"Curriculum: expected the scorer to return a tensor {tuple(logits.shape[:1])}, a number for each "
            f"sample, got {got}."
        )
    return scores.float()


def _check_order(call: Call, batch: Any) -> None:
    """Refuse a step that reorders the samples of a batch, and warn of one that changes their values."""
    inputs = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor) and value.ndim]
    for one in inputs:
        for leaf in leaves_of(batch):
            if isinstance(leaf, Tensor) and leaf.shape == one.shape:
                rows = [torch.unique(value.reshape(len(value), -1), dim=0) for value in (one, leaf.to(one))]
                if rows[0].shape == rows[1].shape and torch.equal(*rows):  # the same samples
                    raise ValueError(f"{_CHANGED}, in another order, so scores would be those of others. {_REMEDY}")
    rank_zero_warn(
        f"{_CHANGED}. If it mixes samples, as mixup does, the scores are not those of each sample. {_REMEDY}"
    )


def _in_order(loader: "DataLoader[Any]", dataset: "Dataset[Any]", rows: range) -> "DataLoader[Any]":
    return DataLoader(
        dataset,
        batch_size=cast(BatchSampler, loader.batch_sampler).batch_size,
        sampler=rows,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def _mean_over_positions(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).mean(1)
