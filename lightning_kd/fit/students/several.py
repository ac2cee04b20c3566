"""Several students in one module, which learn side by side of one teacher that answers each batch once."""

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import LRSchedulerTypeUnion, OptimizerLRScheduler
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_kd.capture.call import any_changed, with_versions
from lightning_kd.capture.columns import is_own
from lightning_kd.capture.tensors_in import is_held, tensors_in
from lightning_kd.distributed.sharding import mesh_of
from lightning_kd.files.checkpoint import CHECKPOINT_KEY
from lightning_kd.fit.first_batch import probe_batch
from lightning_kd.fit.hooks import ModuleHooks
from lightning_kd.fit.optimizers import configure
from lightning_kd.fit.patches import Patches
from lightning_kd.fit.run import DistillationRun
from lightning_kd.fit.students.batch import TRANSFER, OneBatch
from lightning_kd.fit.students.hooks import SeveralHooks
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.teachers.frozen import as_teacher
from lightning_kd.teachers.source import TeacherSource

_Losses = Sequence[DistillationLoss] | Mapping[str, Sequence[DistillationLoss]] | None


class OneOrSeveral:
    """Makes a module of one student or, if ``students=`` is given, a :class:`SeveralStudents` of such modules."""

    def __new__(
        cls, *args: Any, students: Mapping[str, nn.Module] | None = None, losses: _Losses = None, **kwargs: Any
    ) -> Any:
        """Make one module, or one for each student and what holds them.

        Raises:
            ValueError: If ``student`` is given beside ``students``, or the class has hooks that would not be called.
        """
        if students is None:
            return super().__new__(cls)
        if args or kwargs.pop("student", None) is not None:
            raise ValueError(
                f"{cls.__name__}: give student=... or students={{name: ...}}, and with students= the rest by name too: "
                "teacher=..., losses=...."
            )
        _check_names(students)
        _check_hooks(cls)
        kwargs["teacher"] = as_teacher(
            kwargs.get("teacher"), kwargs.pop("teacher_dtype", None), kwargs.pop("teacher_weights", None)
        )
        of_each = _losses_of_each(losses, list(students))
        make: Callable[..., Any] = cls
        members = {}
        for name, network in students.items():
            with _named(name):
                members[name] = make(student=network, losses=of_each[name], **_own(kwargs))
        return SeveralStudents(members)


def check_one_student(
    owner: object, student: nn.Module | None, students: object, losses: _Losses
) -> tuple[nn.Module, Sequence[DistillationLoss] | None]:
    """Return the only student and its losses.

    Raises:
        ValueError: If there is none, or several where one module is being made.
    """
    name = type(owner).__name__
    if students is not None:
        raise ValueError(
            f"{name}.__init__ passes students= on, but several students make another module. Call "
            "DistillationModule(students=...), or a subclass that keeps its __init__."
        )
    if student is None:
        raise ValueError(f"{name} needs a student: student=network, or several, students={{name: network}}.")
    if isinstance(losses, Mapping):
        raise ValueError(f"{name}: losses by name are those of several students; give a list, losses=[KDLoss()].")
    return student, losses


class SeveralStudents(OneBatch):
    r"""Several students that learn side by side; the teacher answers each batch once for all of them.

    .. math::
        L = \sum_s L_s

    Each student has its own losses, metrics and group of the optimizer, and learns what it would learn alone: the sum
    of the losses is differentiated, of which each student has its own term, and gradients are clipped for each student
    by itself. What one student draws, such as dropout, shifts the random numbers of the others.

    ``DistillationModule(students={"small": ..., "tiny": ...}, ...)`` makes it, with the other arguments as for one.
    All students get copies of the losses; ``losses={"small": [...], "tiny": [...]}`` gives each its own.
    ``module.small`` is the ``DistillationModule`` of that student, and ``module.students["small"]`` the network itself.
    Names of what is logged hold the student's: ``train/small/kd``, ``val/small/accuracy``.

    Args:
        members: The module of each student by its name.

    Example:
        >>> from lightning_kd import DistillationModule
        >>> from lightning_kd.losses import KDLoss
        >>> students = {"small": nn.Linear(4, 3), "tiny": nn.Linear(4, 3, bias=False)}
        >>> module = DistillationModule(students=students, teacher=nn.Linear(4, 3), losses=[KDLoss()])
        >>> sorted(module.state_dict())
        ['small.student.bias', 'small.student.weight', 'tiny.student.weight']
    """

    def __init__(self, members: Mapping[str, Any]) -> None:
        super().__init__(members)
        self._member_names = tuple(members)
        self.lr: float | None = None
        """Learning rate in place of the optimizer's own; a learning rate finder sets it, and so may you."""
        self._lr_at_setup: float | None = None
        self._patches = Patches()
        self.save_hyperparameters(dict(self.first.hparams))

    @property
    def members(self) -> dict[str, Any]:
        """The ``DistillationModule`` of each student by name."""
        return {name: getattr(self, name) for name in self._member_names}

    @property
    def students(self) -> dict[str, nn.Module]:
        """The students by name, your own objects."""
        return {name: member.student for name, member in self.members.items()}

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher, ``None`` without one, or if it is no network."""
        teacher: nn.Module | None = self.first.teacher
        return teacher

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Call every student; returns the outputs by name."""
        return {name: student(*args, **kwargs) for name, student in self.students.items()}

    # A training loop of your own, in place of the Trainer's

    def prepare(self, batch: Any) -> None:
        """Build the losses for the sizes of a batch; see :meth:`DistillationModule.prepare`."""
        self._share()
        for member in self.members.values():
            member.prepare(batch)

    def set_moment(self, step: int, epoch: int = 0) -> None:
        """Tell schedules and stages how far a loop of your own has come; a Trainer tells them itself."""
        for member in self.members.values():
            member.set_moment(step, epoch)

    # Training

    def setup(self, stage: str) -> None:
        """Learn the sizes from one small batch, and build the losses of each student."""
        members = self.members
        for member in members.values():
            member.run.leave()
        self._lr_at_setup = self.lr
        hooks = {name: ModuleHooks(member.run, _nothing) for name, member in members.items()}
        SeveralHooks(hooks, members, self._take_up_lr).join(self.trainer)
        _check_trainer(self.trainer)
        self._share()
        for member in members.values():
            self._patches.replace(member, "log", partial(self._log_of, member))
        batch = probe_batch(self.trainer, self, self._patches) if stage == "fit" else None
        for name, member in members.items():
            rank_zero_info(f"Student {name!r}:")
            with _named(name):
                member.set_up(stage, self, f"{name}.", batch)
        _check_stages({name: member.run for name, member in members.items()})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make one optimizer with a group of parameters for each student, and its scheduler."""
        groups = [{"params": member.trained_parameters()} for member in self.members.values()]
        first = self.first
        return configure(first.make_optimizer(groups), first.make_lr_scheduler, first.lr_interval, self.lr)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the sum of the students' losses."""
        with self.one_batch():
            losses = [_step_of(name, member, batch, batch_idx) for name, member in self.members.items()]
        total: Tensor = sum(losses[1:], start=losses[0])
        return total

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of each student by itself, as it would be clipped alone."""
        if not gradient_clip_val or gradient_clip_val <= 0:
            return
        for group in optimizer.param_groups:
            if gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(group["params"], gradient_clip_val)
            else:
                nn.utils.clip_grad_norm_(group["params"], gradient_clip_val)

    def lr_scheduler_step(self, scheduler: LRSchedulerTypeUnion, metric: Any | None) -> None:
        """Move the learning rate on, except in a stage before the main training."""
        if not self.first.run.clock.was_in_stage(self):
            super().lr_scheduler_step(scheduler, metric)

    # Evaluation

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the values of each student, such as ``val/small/accuracy``."""
        with self.one_batch():
            for member in self.members.values():
                member.validation_step(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the values of each student, such as ``test/small/accuracy``."""
        with self.one_batch():
            for member in self.members.values():
                member.test_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return by name what each student gives."""
        with self.one_batch():
            return {name: one.predict_step(batch, batch_idx, dataloader_idx) for name, one in self.members.items()}

    # State

    def export(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write each student as a file of its own, at any time.

        Args:
            path: Where to; ``{student}`` in it stands for the name: ``"{student}.safetensors"``.
            *args: Further arguments of :meth:`DistillationModule.export`.
            **kwargs: The same by name.

        Raises:
            ValueError: If there is no ``{student}`` in the path.
        """
        if "{student}" not in str(path):
            raise ValueError(
                f"{str(path)!r} names one file for {len(self._member_names)} students; write '{{student}}' into it, "
                f"or export one of them: module.{self._member_names[0]}.export({str(path)!r})."
            )
        for name, member in self.members.items():
            member.export(str(path).replace("{student}", name), *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what resuming needs beside weights, of each student."""
        of_each = {}
        for name, member in self.members.items():
            own: dict[str, Any] = {}
            member.run.save(self.trainer, own)
            of_each[name] = own[CHECKPOINT_KEY]
        checkpoint[CHECKPOINT_KEY] = {"students": of_each}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits, and build the losses for its sizes."""
        saved = checkpoint.get(CHECKPOINT_KEY, {}).get("students", {})
        if tuple(saved) != self._member_names:
            raise ValueError(
                f"The checkpoint holds {f'the students {list(saved)}' if saved else 'one student'}, but the module has "
                f"{list(self._member_names)}; give the same names in the same order."
            )
        for name, member in self.members.items():
            begin = f"{name}."
            state = {k.removeprefix(begin): v for k, v in checkpoint["state_dict"].items() if k.startswith(begin)}
            member.on_load_checkpoint({CHECKPOINT_KEY: saved[name], "state_dict": state})

    # Inside

    def _share(self) -> None:
        """Have all students ask the teacher together, and read each batch once where a user's method may draw."""
        self._patches.undo_all()
        self.begin_answers()
        for number, (name, member) in enumerate(self.members.items()):
            member.run.share(self.answers, self._patches, name, number)
            if not is_own(member.unpack_batch):
                self._patches.replace(member, "unpack_batch", partial(self.read_once, member.unpack_batch))

    def _log_of(self, member: Any, name: str, *args: Any, **options: Any) -> None:
        self.log(member.run.names.shown(name), *args, **options)

    def _take_up_lr(self) -> None:
        """Make optimizer and scheduler anew if a finder has set the learning rate since set-up."""
        if self.lr != self._lr_at_setup:  # a scheduler knows the rates that it was made with
            self.trainer.strategy.setup_optimizers(self.trainer)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say of which student an error speaks."""
    try:
        yield
    except (ValueError, MisconfigurationException) as error:
        kind = ValueError if isinstance(error, ValueError) else MisconfigurationException
        raise kind(f"Student {name!r}: {error}") from error


def _nothing() -> None:
    """Be what the hooks of one of several students do before a fit."""


def _own(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options for one student: a schedule or a metric of its own, but the same teacher."""
    shared = ("teacher", "optimizer", "lr_scheduler")
    return {name: value if name in shared else copy.deepcopy(value) for name, value in options.items()}


def _losses_of_each(losses: _Losses, names: Sequence[str]) -> dict[str, Sequence[DistillationLoss] | None]:
    if not isinstance(losses, Mapping):
        return {name: copy.deepcopy(losses) for name in names}
    if set(losses) != set(names):
        raise ValueError(f"losses are given for {sorted(losses)}, but the students are {sorted(names)}.")
    return {name: copy.deepcopy(losses[name]) for name in names}


def _check_names(students: Mapping[str, nn.Module]) -> None:
    if not students:
        raise ValueError("students={}: give at least one, students={name: network}.")
    for name, student in students.items():
        if not (isinstance(name, str) and name.isidentifier()) or name.startswith("_"):
            quotes = "" if isinstance(name, str) else " In YAML, quotes make text of a name such as 'no' or 'on'."
            raise ValueError(
                f"A student is called {name!r}; give a name of letters, digits and '_' that begins with a letter, such "
                f"as 'small'.{quotes}"
            )
        if hasattr(SeveralStudents, name) or name in ("lr", "training"):
            raise ValueError(f"A student cannot be called {name!r}, which means something else in a LightningModule.")
        if not isinstance(student, nn.Module):
            raise ValueError(f"students[{name!r}] is a {type(student).__name__}, no torch.nn.Module.")
    owners: dict[int, str] = {}
    for name, student in students.items():
        for tensor in (*student.parameters(), *student.buffers()):
            if owners.setdefault(id(tensor), name) != name:
                what = "parameters" if isinstance(tensor, nn.Parameter) else "buffers"
                raise ValueError(
                    f"The students {owners[id(tensor)]!r} and {name!r} share {what}, which would then follow both; "
                    "give each its own: copy.deepcopy(network)."
                )


def _step_of(name: str, member: Any, batch: Any, batch_idx: int) -> Tensor:
    """Return the loss of one student, and raise a ``RuntimeError`` if the next one would see another batch."""
    held = tensors_in((batch,))
    before = with_versions(held.values())
    loss: Tensor = member.training_step(batch, batch_idx)
    if any_changed(before) or not is_held(held, tensors_in((batch,))):
        raise RuntimeError(
            f"The student {name!r} changed the batch in place, so the next one would see another. Set inplace=False in "
            "its first layer, or let its forward begin with x = x.clone()."
        )
    return loss


def _check_hooks(cls: type) -> None:
    """Raise a ``ValueError`` if a user's class has hooks of Lightning's, which are not called with several students."""
    theirs = []
    for base in cls.__mro__:
        if base.__module__.startswith("lightning_kd."):
            break
        theirs += [name for name in vars(base) if hasattr(LightningModule, name) and not name.startswith("__")]
    refused = sorted({name for name in theirs if name not in TRANSFER})
    if refused:
        raise ValueError(
            f"{cls.__name__} has its own {', '.join(refused)}, which students= does not call. Override unpack_batch, "
            "teacher_inputs and logits_of there, write a Callback for the rest, or train one student at a time."
        )


def _check_trainer(trainer: Trainer) -> None:
    if mesh_of(trainer) is not None:
        raise MisconfigurationException(
            "Several students do not train under a ModelParallelStrategy, which splits one; use DDP or one process, or "
            "train one student at a time."
        )
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    sources = [type(one).__name__ for one in callbacks if isinstance(one, TeacherSource)]
    if sources:
        raise MisconfigurationException(
            f"{sources[0]} makes the teacher of the student, but there are several; train one student at a time."
        )


def _check_stages(runs: Mapping[str, DistillationRun]) -> None:
    """Raise a ``ValueError`` if the students have first stages at other times: they share optimizer and schedule."""
    stages = {name: [(s.length, s.unit) for s in run.objective.stages] for name, run in runs.items()}
    if len({str(one) for one in stages.values()}) > 1:
        raise ValueError(
            f"The students' losses have first stages of other lengths: {stages}. They share one optimizer, so give "
            "them the same stage_length, or train one student at a time."
        )
