"""Born-again networks: the student of one generation teaches the next."""

import copy
from collections.abc import Callable, Collection, Iterable
from typing import Any, final

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_kd.capture.contents import TINY
from lightning_kd.capture.networks import copied, isolated_random_state
from lightning_kd.distributed.whole_state import is_sharded
from lightning_kd.schedules import Moment
from lightning_kd.teachers.ensemble import Ensemble
from lightning_kd.teachers.source import TeacherSource, same_everywhere

_MANY, _APART = 1000, 1.3
"""How many weights tell their spread, and by which factor two spreads are no chance."""


@final
class BornAgain(TeacherSource):
    """Train generation after generation, each taught by the one before (born-again networks).

    All within one ``Trainer.fit``: the first generation learns its task alone; then its student becomes the teacher,
    fresh weights are drawn, optimizer, learning rate schedule and every schedule of a loss begin anew, and the losses
    that need a teacher take part. The weights of the current teacher, and with ``ensemble`` those of every generation,
    are in the checkpoint.

    Best for better accuracy and calibration without a larger teacher. Key parameter: the number of generations; each
    costs a whole training.

    Args:
        generations: Number of students that are trained, the first included, >= 2. The paper finds little gain beyond
            four.
        epochs: Epochs of a generation, >= 1; by default the Trainer's ``max_epochs`` shared evenly.
        make_student: Makes a network with fresh weights; by default every layer's ``reset_parameters`` draws them.
        ensemble: Whether to keep every generation, for :meth:`ensemble_of_generations` after the fit.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> from lightning_kd import DistillationModule
        >>> from lightning_kd.losses import KDLoss
        >>> module = DistillationModule(
        ...     torch.nn.Linear(4, 3), losses=[KDLoss()], task_loss=torch.nn.CrossEntropyLoss()
        ... )
        >>> batches = torch.utils.data.DataLoader([(torch.randn(8, 4), torch.randint(0, 3, (8,)))], batch_size=None)
        >>> born_again = BornAgain(generations=2, ensemble=True)
        >>> trainer = Trainer(max_epochs=4, callbacks=[born_again], logger=False, accelerator="cpu",
        ...                   enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(module, batches, batches)
        >>> len(born_again.ensemble_of_generations().members)
        2

    Reference:
        Furlanello et al., "Born-Again Neural Networks", ICML 2018, arXiv:1805.04770.
    """

    def __init__(
        self,
        generations: int = 3,
        epochs: int | None = None,
        *,
        make_student: Callable[[], nn.Module] | None = None,
        ensemble: bool = False,
    ) -> None:
        if generations < 2:
            raise ValueError(f"BornAgain: expected generations >= 2, got {generations}; one is training without it.")
        if epochs is not None and epochs < 1:
            raise ValueError(f"BornAgain: expected epochs >= 1, got {epochs}.")
        self.generations = generations
        self.epochs = epochs
        self.make_student = make_student
        self.ensemble = ensemble
        self.generation = 0
        """Generation that is being trained, 0 for the first."""
        self.origin = Moment()
        self._length = 0
        self._losses: dict[str, Tensor] = {}
        self._kept: list[dict[str, Tensor]] = []

    def begin(self, losses: nn.Module, trainer: Trainer) -> None:
        """Share the epochs among the generations, and remember how the losses' own parameters start."""
        student, teacher = self.pair()
        if self.make_student is None:
            _check_resettable(student)
            if trainer.ckpt_path is None and not is_sharded(student):
                _tell_of_another_start(student, losses)
        self.generation, self.origin, self._kept, teacher.ready = 0, Moment(), [], False
        self._length = self.epochs or _share(trainer.max_epochs, self.generations)
        if trainer.max_epochs not in (None, -1, self._length * self.generations):
            raise MisconfigurationException(
                f"BornAgain: {self.generations} generations of {self._length} epochs are "
                f"{self._length * self.generations} epochs, but the Trainer has max_epochs={trainer.max_epochs}."
            )
        self._losses = copy.deepcopy(losses.state_dict())

    def start_batch(self, losses: nn.Module, trainer: Trainer) -> bool:
        """Begin the next generation if it is due, and return whether it was."""
        due = min(trainer.current_epoch // self._length, self.generations - 1)
        if due <= self.generation:
            return False
        self.generation = due
        self.origin = Moment(trainer.global_step, trainer.current_epoch)
        self._give_birth(losses)
        return True

    def _give_birth(self, losses: nn.Module) -> None:
        student, teacher = self.pair()
        teacher.module.load_state_dict(student.state_dict())
        same_everywhere(teacher.module, buffers_only=True)  # BatchNorm statistics are each process's own
        teacher.ready = True
        if self.ensemble:
            self._kept.append(_on_cpu(student))
        if self.make_student is None:
            reset_weights(student, but=losses.modules())
        else:
            student.load_state_dict(self.make_student().state_dict())
        same_everywhere(student)
        losses.load_state_dict(self._losses)
        same_everywhere(losses)
        rank_zero_info(f"Generation {self.generation + 1} of {self.generations} begins, taught by the one before.")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the last generation too."""
        if self.ensemble and len(self._kept) < self.generations:
            self._kept.append(_on_cpu(self.pair()[0]))

    def ensemble_of_generations(self) -> Ensemble:
        """Return the network that averages the class probabilities of all generations.

        Raises:
            RuntimeError: If ``ensemble`` was not asked for, or nothing was trained yet.
        """
        if not self._kept or self.teacher is None:
            raise RuntimeError("BornAgain keeps no generations; construct it with ensemble=True and fit first.")
        members = []
        for weights in self._kept:
            member = copied(self.teacher.module).cpu()
            member.load_state_dict(weights)
            members.append(member)
        return Ensemble(members)

    def state_dict(self) -> dict[str, Any]:
        """Return the generation, its teacher, and what is kept."""
        return {
            "generation": self.generation,
            "origin": [self.origin.step, self.origin.epoch],
            "teacher": self.teacher.module.state_dict() if self.teacher is not None and self.teacher.ready else {},
            "losses": dict(self._losses),
            "kept": list(self._kept),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved generation."""
        self.generation, self.origin = state_dict["generation"], Moment(*state_dict["origin"])
        self._losses, self._kept = state_dict["losses"], list(state_dict["kept"])
        if state_dict["teacher"]:
            _, teacher = self.pair()
            teacher.module.load_state_dict(state_dict["teacher"])
            teacher.ready = True


def reset_weights(network: nn.Module, *, but: Iterable[nn.Module] = ()) -> None:
    """Draw fresh weights for every layer, as its ``reset_parameters`` does.

    Args:
        network: The network, changed in place.
        but: Layers that are left as they are, such as losses that a network holds.

    Raises:
        MisconfigurationException: If a parameter belongs to a layer without ``reset_parameters``.
    """
    left = set(but)
    _check_resettable(network, left)
    with torch.no_grad():
        for layer in network.modules():
            reset = None if layer in left else _reset_of(layer)
            if reset is not None:
                reset()


def _reset_of(layer: nn.Module) -> Callable[[], object] | None:
    reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
    return reset if callable(reset) else None


def _check_resettable(network: nn.Module, left: Collection[nn.Module] = ()) -> None:
    own = [
        f"{name}.{key}".lstrip(".")
        for name, layer in network.named_modules()
        for key, _ in layer.named_parameters(recurse=False)
        if layer not in left and _reset_of(layer) is None
    ]
    if own:
        raise MisconfigurationException(
            f"BornAgain cannot draw fresh weights for {own[:5]}: their layers have no reset_parameters. Pass "
            "make_student=..., which makes a new network."
        )


def _tell_of_another_start(student: nn.Module, losses: nn.Module) -> None:
    """Warn if later generations would begin with weights of another size than the first.

    Transformers, timm and torchvision draw the weights of a whole network otherwise than its layers would.
    """
    fresh = copied(student)
    with isolated_random_state():
        reset_weights(fresh, but=losses.modules())
    for (name, first), later in zip(student.named_parameters(), fresh.parameters(), strict=True):
        if first.numel() < _MANY or not first.is_floating_point():
            continue
        sizes = [float(weights.detach().float().std()) for weights in (first, later)]
        if not 1 / _APART <= (sizes[1] + TINY) / (sizes[0] + TINY) <= _APART:
            rank_zero_warn(
                f"BornAgain draws fresh weights by each layer's reset_parameters, so {name!r} begins with a standard "
                f"deviation of {sizes[1]:.3g} in later generations, and of {sizes[0]:.3g} in the first. Pass "
                "make_student=..., which makes a new network as the first was made."
            )
            return


def _share(max_epochs: int | None, generations: int) -> int:
    if max_epochs is None or max_epochs < generations or max_epochs % generations:
        raise MisconfigurationException(
            f"BornAgain: cannot share max_epochs={max_epochs} evenly among {generations} generations; give the Trainer "
            "a multiple of it, or BornAgain(epochs=...)."
        )
    return max_epochs // generations


def _on_cpu(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
