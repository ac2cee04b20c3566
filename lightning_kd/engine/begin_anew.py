"""Whose memory is it: a loss that was built in one run begins anew in another.

The same loss object may be given to several modules or callbacks, one after another, as in cross-validation. What it
has learned, remembered and chosen in a run belongs to that run.
"""

import copy
import inspect
import zlib
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_kd.capture.private import version_of
from lightning_kd.losses.base import DistillationLoss

_MEMORY = "_before_runs"
_LAYERS = ("student", "teacher", "_student_layers", "_teacher_layers")


class Owner:
    """Stands for a run that losses were built in. A copy of a run, with its losses, has a copy of this."""


def claim(losses: nn.Module, owner: Owner) -> bool:
    """Let losses belong to a run; those that were built in another begin anew, with the options that they have now.

    Networks and projectors that the user has given to a loss stay as they are. Those that a loss says it trains, in
    ``networks_that_learn``, take the weights again that they had before their first run.

    Args:
        losses: The losses, with those inside them.
        owner: The run.

    Returns:
        Whether losses begin anew.

    Raises:
        RuntimeError: If a loss that was built in another run cannot begin anew.
    """
    every = [loss for loss in losses.modules() if isinstance(loss, DistillationLoss)]
    held = [vars(loss).get(_MEMORY) for loss in every]
    if all(one is not None and one.owner is owner for one in held):
        return False
    anew = any(one is not None for one in held)
    for loss, one in zip(every, held, strict=True):
        if one is None:
            vars(loss)[_MEMORY] = _Memory(loss, owner)
        else:
            one.restore(loss, owner)
    return anew


def forget_layers(losses: nn.Module) -> None:
    """Let losses choose their layers again, where a set-up for another student has chosen them."""
    for loss in losses.modules():
        memory = vars(loss).get(_MEMORY)
        if isinstance(loss, DistillationLoss) and memory is not None and memory.chooses_layers:
            loss.name_layers(None, None)


class _Memory:
    """What a loss was before it was built, and for which run it was built since."""

    def __init__(self, loss: DistillationLoss, owner: Owner) -> None:
        self.owner = owner
        self.changes = _changes(loss)
        self.learners = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _learners(loss).items()}
        self.state: dict[str, Any] | None
        try:
            self.state = _copy(vars(loss), loss)
        except Exception:  # something of the user's that cannot be copied
            self.state = None

    @property
    def chooses_layers(self) -> bool:
        """Whether the user has named no layers."""
        return self.state is not None and self.state["student"] is None and self.state["teacher"] is None

    def restore(self, loss: DistillationLoss, owner: Owner) -> None:
        if self.state is None:
            name = type(loss).__name__
            raise RuntimeError(
                f"This {name} was built in the fit of another module, and holds something that cannot be copied, so "
                f"it cannot begin anew; construct a new {name} for each module."
            )
        now = vars(loss)
        options = set(inspect.signature(type(loss)).parameters) - set(_LAYERS)
        if not self.chooses_layers:
            options |= set(_LAYERS)  # the user's names, not those that a set-up chose
        kept = {name: now[name] for name in options if name in now}
        fresh = _copy(self.state, loss)
        kept |= {name: now[name] for name in loss.facts_of_data if name in now}
        buffers = {name: buffer for name, buffer in loss.named_buffers(recurse=False) if name in loss.facts_of_data}
        self.owner = owner
        now.clear()
        now.update(fresh, **kept)
        now[_MEMORY] = self
        for name, buffer in buffers.items():
            loss.register_buffer(name, buffer)
        learners = _learners(loss)
        if learners:
            _put_back(learners, self.learners, type(loss).__name__)
        elif _changes(loss) != self.changes:
            rank_zero_warn(
                f"{type(loss).__name__} was trained in the fit of another module. What it remembers begins anew, but "
                "the networks that you gave it keep their weights; give copies of untrained ones if this fit must not "
                "know of the other."
            )


def _copy(state: dict[str, Any], loss: DistillationLoss) -> dict[str, Any]:
    """Copy the attributes of a loss, but not the losses in it, nor networks, which are the user's."""
    shared = {id(part): part for part in loss.modules() if part is loss or _is_given(part)}
    return copy.deepcopy(state, shared)


def _is_given(part: nn.Module) -> bool:
    return isinstance(part, DistillationLoss) or any(True for _ in part.parameters())


def _learners(loss: DistillationLoss) -> dict[str, Tensor]:
    """Return the weights and buffers of the networks that the user has given to a loss to be trained by it."""
    names = tuple(f"{name}." for name in getattr(loss, "networks_that_learn", ()))
    tensors = {**dict(loss.named_parameters()), **dict(loss.named_buffers())} if names else {}
    return {name: tensor for name, tensor in tensors.items() if name.startswith(names) and not is_lazy(tensor)}


@torch.no_grad()
def _put_back(now: dict[str, Tensor], before: dict[str, Tensor], name: str) -> None:
    if {key: one.shape for key, one in now.items()} != {key: one.shape for key, one in before.items()}:
        raise RuntimeError(
            f"The networks of this {name} have other weights than before the fit of another module, so they cannot "
            f"begin anew; construct a new {name} for each module."
        )
    for key, tensor in now.items():
        tensor.copy_(before[key])


def _changes(loss: DistillationLoss) -> int:
    """Return how often the weights that the user has given to a loss have been changed in place."""
    inner = [one for one in loss.modules() if one is not loss and isinstance(one, DistillationLoss)]
    theirs = {part for one in (loss, *inner) for part in ([one] if one is loss else one.modules())}
    given = [part for part in loss.modules() if part not in theirs]
    return sum(version_of(weight) for part in given for weight in part.parameters(recurse=False))


def fingerprint_of_labels(targets: Tensor | None) -> int | None:
    """Return a number that differs for other class ids, or the same in another order; ``None`` without any."""
    return None if targets is None else zlib.crc32(targets.detach().cpu().long().numpy().tobytes())
