"""Default readings of a batch and of a model's output; both doors let users override them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lightning_kd.capture.columns import INDEX_KEYS, TARGET_KEYS, is_row_number, makes_inputs_of, of_student, takes
from lightning_kd.capture.heads import Head, check_one_head, head_of
from lightning_kd.capture.networks import first_tensor
from lightning_kd.capture.outputs import Outputs


@dataclass(slots=True)
class Batch:
    """A batch taken apart.

    Args:
        args: Positional inputs of the model.
        kwargs: Named inputs of the model.
        target: Class ids or soft targets, ``None`` for unlabelled data.
        index: Row of each sample in the data set, ``None`` if not given.
        mask: Which tokens (B, N) are no padding, for losses of layers with such tokens, or which samples (B,) count,
            for all losses but the task's own; ``None`` if all do.
        teacher_target: The labels of the teacher's own tokens, for ``ULDLoss``; ``None`` if it reads the student's.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    target: Tensor | None = None
    index: Tensor | None = None
    mask: Tensor | None = None
    teacher_target: Tensor | None = None


class Hooks(Protocol):
    """What the engine asks a door. Users override these methods where their batches or outputs have another form."""

    output_options: Outputs
    """How the outputs of student and teacher are read."""

    def plain_output_options(self) -> dict[str, Any]:
        """Return how outputs are read and what the teacher is given, as plain data."""

    def unpack_batch(self, batch: Any) -> Batch:
        """Take a batch apart."""

    def teacher_inputs(
        self, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the teacher is called with, given the batch and what the student was called with."""

    def logits_of(self, output: Any) -> Tensor | None:
        """Find the logits in a model's output."""

    def shard_teacher(self, teacher: nn.Module, mesh: DeviceMesh) -> None:
        """Split the teacher over the processes of a ``ModelParallelStrategy``."""


def unpack_batch(batch: Any) -> Batch:
    """Take apart a tensor, ``(x,)``, ``(x, y)``, ``(x, y, index)``, or a dictionary of named inputs.

    In a dictionary the target is found under ``target``, ``labels``, ``label`` or ``y``, the row under ``index`` or
    ``idx`` (of one number a sample), and everything else is passed to the model by name. ``attention_mask`` also says
    which tokens are padding, and ``teacher_labels`` are the labels of the teacher's own tokens.
    ``x`` may itself be a tuple of positional inputs or a dictionary of named ones. A named tuple is read in its order.

    Args:
        batch: One batch of the data loader.

    Raises:
        ValueError: If the batch has another form, its third element is no row of each sample, or the names of a named
            tuple do not fit its order.

    Example:
        >>> import torch
        >>> unpack_batch((torch.zeros(2, 3), torch.tensor([0, 1]))).target
        tensor([0, 1])
        >>> sorted(unpack_batch({"input_ids": torch.ones(2, 3), "labels": torch.tensor([0, 1])}).kwargs)
        ['input_ids']
    """
    if not isinstance(batch, tuple | list | Tensor) and isinstance(batch, Mapping):
        named = dict(batch)
        target = _pop_first(named, TARGET_KEYS)
        index = _pop_first(named, tuple(key for key in INDEX_KEYS if is_row_number(key, named.get(key))))
        theirs = named.get("teacher_labels")
        its = theirs if isinstance(theirs, Tensor) else None
        return Batch(kwargs=named, target=target, index=index, mask=_mask_in(named), teacher_target=its)
    parts = (batch,) if isinstance(batch, Tensor) else batch
    if not isinstance(parts, tuple | list) or not 1 <= len(parts) <= 3:
        size = f" of {len(parts)} elements" if isinstance(parts, tuple | list) else ""
        raise ValueError(
            f"Cannot take apart a batch that is a {type(batch).__name__}{size}: expected x, (x, y), (x, y, index) "
            "or a dictionary of named inputs. Override unpack_batch(batch) to return a lightning_kd.Batch."
        )
    _check_fields(getattr(parts, "_fields", ()))
    x, target, index = (*parts, None, None)[:3]
    if isinstance(index, Tensor):
        _check_index(x, target, index)
    elif index is not None:  # paths, names, notes: nothing that a loss reads
        index = None
    if isinstance(x, Mapping):
        return Batch(kwargs=dict(x), target=target, index=index, mask=_mask_in(x))
    return Batch(args=tuple(x) if isinstance(x, tuple | list) else (x,), target=target, index=index)


def _check_fields(fields: Sequence[str]) -> None:
    """Raise a ``ValueError`` if the names in a named tuple say something else than its order."""
    misplaced = [
        name
        for place, keys in ((1, TARGET_KEYS), (2, INDEX_KEYS))
        for name in set(fields).intersection(keys)
        if fields.index(name) != place
    ]
    if misplaced:
        raise ValueError(
            f"A batch is a named tuple of {tuple(fields)}, which is read in the order x, y, index, but "
            f"{misplaced[0]!r} stands elsewhere. Override unpack_batch(batch) to return a lightning_kd.Batch, or let "
            "the data set return (x, y) or a dictionary."
        )


def read_if_known(hooks: Hooks, batch: Any) -> Batch:
    """Take a batch apart, or return an empty one if its form is not known."""
    try:
        return hooks.unpack_batch(batch)
    except Exception:
        # Under the callback a batch may have any form as long as no loss needs it. A loss that needs it takes the batch
        # apart again in the first step, where the user sees the error.
        return Batch()


def call_in_words(call: Callable[[Any], object], batch: Any) -> object:
    """Call a student with a batch, and say what the batch is if the student does not take what was made of it.

    Raises:
        TypeError: If the student does not take it; names the form of the batch and the remedy.
    """
    try:
        return call(batch)
    except TypeError as error:
        raise TypeError(
            f"The student cannot be called with what unpack_batch makes of a batch that is {_form_of(batch)}: {error}. "
            "Override unpack_batch(batch) to return a lightning_kd.Batch, or give the loader another collate_fn."
        ) from error


def _form_of(value: object, depth: int = 2) -> str:
    """Return what a batch is made of, such as ``a list of 2: a tuple of 2: float32[3], int64[]; ...``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple | list) and value and depth:
        more = ", ..." if len(value) > 3 else ""
        return (
            f"a {type(value).__name__} of {len(value)} ({', '.join(_form_of(v, depth - 1) for v in value[:3])}{more})"
        )
    return f"a {type(value).__name__}"


def for_student(
    read: Batch, batch: Any, model: nn.Module, *, with_labels: bool = False, without: Sequence[str] = ()
) -> Batch:
    """Keep the columns that the student takes, and the labels only if it cannot do without them.

    Encoder-decoders of Hugging Face (T5, BART, Whisper) make the decoder's inputs of the labels. A model whose forward
    has an argument of that name without a default needs them as well.

    Args:
        read: The batch taken apart.
        batch: The batch as the data loader gave it.
        model: The model that is called with it.
        with_labels: Whether the model is to compute its own loss of them.
        without: Columns that somebody else reads, which the model gets only if its ``forward`` names them.
    """
    read = with_labels_inside(read, batch, model, always=with_labels)
    return replace(read, kwargs=of_student(read.kwargs, model, without)) if read.kwargs else read


def with_labels_inside(read: Batch, batch: Any, model: nn.Module, *, always: bool = False) -> Batch:
    """Leave the labels among the inputs of a model that cannot do without them, or always if it takes them."""
    if not isinstance(batch, Mapping) or read.target is None:
        return read
    key = next((key for key in TARGET_KEYS if key in batch), None)
    if key is None:
        return read
    needed = makes_inputs_of(model, key) and "decoder_input_ids" not in batch
    if needed or (always and key in takes(model)):
        return replace(read, kwargs={**read.kwargs, key: batch[key]})
    return read


def logits_of(output: Any, head: Head = None) -> Tensor | None:
    """Find the logits: the tensor itself, ``output.logits``, ``output["logits"]``, or the first of a tuple.

    Args:
        output: What a model returned.
        head: Which of several outputs is meant, by name or number; a tensor is a network's only output.

    Returns:
        The logits, or ``None`` if there are none.

    Raises:
        ValueError: If there is no such head, or none is named and the first of a tuple has the shape of another.

    Example:
        >>> import torch
        >>> logits_of({"logits": torch.tensor([1.0, 2.0]), "hidden": None})
        tensor([1., 2.])
    """
    if isinstance(output, Tensor):
        return output
    if head is not None:
        return head_of(output, head)
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif hasattr(output, "logits"):
        found = output.logits
    else:
        found = first_tensor(output)
        if found is not None and len(output) > 1:
            check_one_head(output, found)
    return found if isinstance(found, Tensor) else None


def _mask_in(named: Mapping[str, Any]) -> Tensor | None:
    """Return which tokens are no padding, as Hugging Face's models are told.

    Models of multiple choice take ids and mask (B, choices, T), and read each choice as a text of its own.
    """
    mask, ids = named.get("attention_mask"), named.get("input_ids")
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 3 and isinstance(ids, Tensor) and ids.shape == mask.shape and not ids.is_floating_point():
        mask = mask.flatten(0, 1)
    return mask.bool() if mask.ndim == 2 else None


def _check_index(x: Any, target: Any, index: Tensor) -> None:
    """Raise a ``ValueError`` unless a batch of three reads as (x, target, index)."""
    whole = not (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool)
    rows = len(x) if isinstance(x, Tensor) and x.ndim else None
    if not whole or index.ndim != 1 or (rows is not None and len(index) != rows):
        raise ValueError(
            f"The third element of a batch is read as each sample's row in the data set, but it is {_show(index)}. "
            "Override unpack_batch(batch) to return a lightning_kd.Batch(args=..., target=..., index=...)."
        )
    if not isinstance(x, Tensor) or not isinstance(target, Tensor) or x.ndim < 2 or target.shape != x.shape:
        return
    if x.is_floating_point() == target.is_floating_point():
        raise ValueError(
            f"A batch of three is read as (x, target, index), but its second element {_show(target)} looks like "
            f"another input beside {_show(x)}, as in (view1, view2, y) or (ids, mask, y). Give ((view1, view2), y), or "
            "override unpack_batch(batch) to return a lightning_kd.Batch(args=..., target=..., index=...)."
        )


def _show(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _pop_first(named: dict[str, Any], keys: tuple[str, ...]) -> Any:
    for key in keys:
        if key in named:
            return named.pop(key)
    return None
