"""Whether the rows of a batch are still those that a network was called with, after a step of the user's own."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_kd.capture.call import Call
from lightning_kd.capture.private import UNKNOWN, tree_leaves
from lightning_kd.capture.tensors_in import tensors_in

NOT_OF_BATCH = (
    "A loss needs the target or the row of each sample, but training_step calls the student with other values than the "
    "batch held: it may have mixed or reordered the samples, and the targets of the batch would be those of others. "
    "Override unpack_batch(batch) of the callback to return a lightning_kd.Batch with target and index in the order of "
    "the student's input, or use DistillationModule. Do so, too, if the step changes values alone and keeps the order."
)


def is_of_batch(call: Call, batch: Any) -> bool:
    """Whether a network was called with a tensor of the batch, or with a copy of its values.

    Args:
        call: The recorded call; one without tensors counts as of the batch.
        batch: The batch as the data loader gave it.

    Example:
        >>> x = torch.arange(6.0).reshape(3, 2)
        >>> is_of_batch(Call(args=(x.clone(),)), (x, torch.zeros(3))), is_of_batch(Call(args=(x.flip(0),)), (x,))
        (True, False)
    """
    inputs = [value for value in tensors_in(call.args, call.kwargs).values() if value.ndim]
    if not inputs:
        return True
    given = [*tensors_in((batch,)).values()]
    if _is_reordered(call, given):
        return False
    if any(one is leaf or _shares_memory(one, leaf) for one in inputs for leaf in given):
        return True
    return any(one.shape == leaf.shape and torch.equal(one, leaf.to(one)) for one in inputs for leaf in given)


def is_changed_since(call: Call, held: Iterable[tuple[Tensor, int]]) -> bool:
    """Whether a network was called with a tensor of the batch after it was changed in place, as timm's ``Mixup`` does.

    Args:
        call: The recorded call.
        held: The tensors of the batch, each with its version at the start of the step.

    Example:
        >>> from lightning_kd.capture.call import with_versions
        >>> x = torch.arange(6.0).reshape(3, 2)
        >>> held = with_versions([x])
        >>> mixed = x.mul_(0.5).add_(x.flip(0), alpha=0.5)
        >>> is_changed_since(Call(args=(mixed,), inputs=with_versions([mixed])), held)
        True
    """
    return any(
        UNKNOWN not in (version, before) and version != before and _shares_memory(one, leaf)
        for one, version in call.inputs
        for leaf, before in held
    )


def leaves_of(batch: Any) -> list[Any]:
    """Return what a batch holds; torch's own look does not see into a ``UserDict``, as a ``BatchEncoding`` is.

    Example:
        >>> from collections import UserDict
        >>> leaves_of(UserDict(x=1, y=(2, [3])))
        [1, 2, 3]
    """
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return [leaf for one in batch for leaf in leaves_of(one)] if isinstance(batch, tuple | list) else tree_leaves(batch)


def _is_reordered(call: Call, given: list[Tensor]) -> bool:
    """Whether a list of samples holds tensors of the batch, or rows of one, in another order than the batch."""
    for samples in (*call.args, *call.kwargs.values()):
        if isinstance(samples, list) and all(isinstance(one, Tensor) for one in samples):
            places = [
                (i, one.storage_offset())
                for one in samples
                for i, leaf in enumerate(given)
                if _shares_memory(one, leaf)
            ]
            if places != sorted(places):
                return True
    return False


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() != 0
