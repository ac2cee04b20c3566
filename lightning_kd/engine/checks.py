"""What is checked of the networks' parameters and outputs, and the words for what is wrong with them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_kd.capture.call import Call
from lightning_kd.capture.networks import original
from lightning_kd.distributed.whole_state import on_meta
from lightning_kd.engine.reading import named_heads, reads_logits
from lightning_kd.losses.base import DistillationLoss, StepTensors
from lightning_kd.teachers.base import Teacher


def check_has_logits(
    name: str, loss: DistillationLoss, step: StepTensors, heads: Mapping[str, str] | None = None
) -> None:
    """Raise a ``ValueError`` with the remedy if a step lacks logits that a loss reads.

    Args:
        name: Name of the part.
        loss: The loss.
        step: What the step offers.
        heads: What the output of each role has instead, in words.
    """
    for role, logits in (("student", step.student_logits), ("teacher", step.teacher_logits)):
        reads = reads_logits(loss, role)
        if reads and logits is None and role == "teacher" and step.sparse is not None:
            if loss.reads_sparse:
                continue
            raise ValueError(
                f"Part {name!r} reads whole logits of the teacher, but its answer is SparseLogits, a few tokens of "
                f"each position, which TokenKDLoss can read and {type(loss).__name__} cannot."
            )
        if reads and logits is None:
            raise ValueError(
                f"Part {name!r} reads the {role}'s logits, but its output has none{(heads or {}).get(role, '')}; "
                "override logits_of(output)."
            )


def check_has(name: str, loss: DistillationLoss, step: StepTensors) -> None:
    """Raise a ``ValueError`` with the remedy if a step lacks logits, a target or rows that a loss needs."""
    check_has_logits(name, loss, step)
    if loss.needs_target and step.target is None:
        raise ValueError(f"Part {name!r} needs a target, but the batch has none; give (x, y) or override unpack_batch.")
    if loss.needs_index and step.index is None:
        raise ValueError(
            f"Part {name!r} needs each sample's row in the data set, but the batch has none; "
            "give (x, y, index) or override unpack_batch."
        )


def scalar(name: str, value: object) -> Tensor:
    """Return the value of a part as a scalar ``()``.

    Raises:
        TypeError: If it is no tensor; names the part.
        ValueError: If it holds several values; names the part, their shape and the remedy.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"Part {name!r} returned a {type(value).__name__}, not a tensor; return the loss alone.")
    if value.ndim == 0:
        return value
    if value.numel() != 1:
        raise ValueError(
            f"Part {name!r} returned a tensor of shape {tuple(value.shape)}, not one value; return its mean: "
            "loss.mean(), or reduction='mean'."
        )
    return value.reshape(())


def check_first_values(step: StepTensors, losses: Sequence[DistillationLoss]) -> None:
    """Raise a ``ValueError`` with the remedy if what losses read of the first samples is not real, or not finite."""
    for place, value in what_is_read(step, losses).items():
        if isinstance(value, Tensor) and value.is_complex():
            raise ValueError(
                f"The losses read {place}, which holds complex numbers ({value.dtype}), and no loss compares those. "
                "Name a layer of real numbers, or let the network go on with torch.view_as_real(x) or x.abs()."
            )
    bad = not_finite(step, losses)
    if bad:
        if _has_masked_classes(step, losses):
            raise ValueError(
                f"Not finite on the first samples of the training data: {', '.join(bad)}. Where -inf marks classes "
                "that are left out, a divergence is 0 * (inf - inf), which is not a number. Mark them in both networks "
                "by a large finite number: logits.masked_fill(mask, -1e4), whose probability is 0 too."
            )
        raise ValueError(
            f"Not finite on the first samples of the training data: {', '.join(bad)}. Look at the weights of the "
            "model, the format that it computes in, and these samples."
        )


def _has_masked_classes(step: StepTensors, losses: Sequence[DistillationLoss]) -> bool:
    """Whether -inf in logits is all that is not finite."""
    bad = {place: value for place, value in what_is_read(step, losses).items() if isinstance(value, Tensor)}
    bad = {place: value for place, value in bad.items() if not (value.is_meta or bool(value.isfinite().all()))}
    return all("logits" in place and not bool((value.isnan() | value.isposinf()).any()) for place, value in bad.items())


def check_not_shared(student: nn.Module, other: nn.Module, role: str, remedy: str) -> None:
    """Raise a ``ValueError`` with the remedy if another module has parameters or buffers of the student.

    Two tensors are the same too if their numbers lie in the same memory: a view, a tied weight, ``p.data = q.data``.
    """
    shared = {id(p) for p in student.parameters()} & {id(p) for p in other.parameters()}
    if shared:
        raise ValueError(f"Student and {role} share {len(shared)} parameter(s), {remedy}.")
    others = {id(part) for part in other.modules()}
    for name, part in student.named_modules():
        if id(part) in others and _reads_its_mode(part):
            raise ValueError(
                f"The student's {name!r}, a {type(part).__name__}, is one of the {role}'s too, {remedy}. It does "
                "another thing in train mode, and the two have other modes."
            )
    # from the first address to the last, with the tensor of each side that reaches furthest so far
    furthest: dict[str, tuple[tuple[str, int], str]] = {}
    sides = [(place, "student") for place in _places(student)] + [(place, "other") for place in _places(other)]
    for (start, end, name), side in sorted(sides):
        reach, met = furthest.get("other" if side == "student" else "student", (start, ""))
        if reach > start:
            mine, its = (name, met) if side == "student" else (met, name)
            raise ValueError(f"The student's {mine!r} and the {role}'s {its!r} lie in the same memory, {remedy}.")
        furthest[side] = max(furthest.get(side, (end, name)), (end, name))


def _reads_its_mode(part: nn.Module) -> bool:
    """Whether the code of a module's ``forward`` reads ``training``, as that of dropout does."""
    code = getattr(type(part).forward, "__code__", None)
    return code is not None and "training" in code.co_names


def _places(module: nn.Module) -> Iterator[tuple[tuple[str, int], tuple[str, int], str]]:
    """Yield where each parameter and buffer begins and ends in memory, each a device and an address, and its name."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        # a sharded tensor has its memory in a local one; those on the meta device, and lazy ones, have none
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if is_lazy(local) or local.is_meta or not local.numel() or local.layout != torch.strided:
            continue
        device, first = str(local.device), local.data_ptr()
        extent = sum((size - 1) * stride for size, stride in zip(local.shape, local.stride(), strict=True)) + 1
        yield (device, first), (device, first + extent * local.element_size()), name


def check_has_weights(student: nn.Module) -> None:
    """Raise a ``ValueError`` with the remedy if the student is on the meta device."""
    if on_meta(student):
        raise ValueError(
            f"The student {type(student).__name__} is on the meta device, so it has no weights; build it with its "
            "weights, or, under a ModelParallelStrategy, override shard_student to shard it and then "
            "materialize(student, files, self.trainer.strategy.root_device)."
        )


def has_lazy(module: nn.Module) -> bool:
    """Whether a module has parameters whose sizes it learns from its first batch."""
    return any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers()))


def check_parts_not_lazy(losses: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise a ``ValueError`` with the remedy if networks or projectors of the losses have no sizes yet."""
    for name, loss in losses:
        lazy = [own for own, tensor in (*loss.named_parameters(), *loss.named_buffers()) if is_lazy(tensor)]
        if lazy:
            raise ValueError(
                f"Lazy layers of part {name!r} have no weights yet, so no optimizer could train them: {lazy}. Call the "
                "network once on a batch before the fit, or give those layers their sizes."
            )


def check_not_lazy(student: nn.Module) -> None:
    """Raise a ``ValueError`` with the remedy if parts of the student have no sizes after a first call."""
    lazy = [name for name, tensor in (*student.named_parameters(), *student.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise ValueError(
            f"Lazy layers of the student have no weights after a first call, since it has not called them: {lazy}. "
            "Call the student once in a way that runs all of its layers before the fit, or give those layers their "
            "sizes."
        )


def check_learns(student: nn.Module) -> None:
    """Raise a ``ValueError`` if no parameter of the student can be trained."""
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ValueError(
            f"Nothing in the student {type(original(student)).__name__} can be trained: all of its parameters are "
            "frozen, or it has none. Call student.requires_grad_(True), or freeze only a part."
        )


def only_frozen(loss: DistillationLoss, step: StepTensors) -> bool:
    """Whether no gradient of a loss reaches the student through what the loss reads of it."""
    read: list[Tensor | None] = [step.student_features[layer] for layer in loss.student_layers]
    if not read or loss.needs_student_logits:
        head = named_heads(loss).get("student")
        of_head = step.head_of if head is not None else None
        read.append(step.student_logits if of_head is None else of_head("student", head))
    return not any(one is not None and one.requires_grad for one in read)


def not_finite(step: StepTensors, losses: Sequence[DistillationLoss], record: Call | None = None) -> list[str]:
    """Name what is not finite of the tensors that losses read, each with how many of its numbers are not.

    Args:
        step: The tensors.
        losses: The losses.
        record: The student's call, to look at its input too.
    """
    inputs: dict[str, object] = {}
    if record is not None:
        inputs |= {f"input {i}": value for i, value in enumerate(record.args)}
        inputs |= {f"input {name!r}": value for name, value in record.kwargs.items()}
    inputs["the target"] = step.target
    return _counted(inputs | what_is_read(step, losses))


def what_is_read(step: StepTensors, losses: Sequence[DistillationLoss]) -> dict[str, object]:
    """Return the tensors that losses read in a step, by the words for their places."""
    read: dict[str, object] = {}
    if any(loss.needs_teacher_logits for loss in losses):
        read["the teacher's logits"] = step.teacher_logits
    read |= {f"the teacher's layer {layer!r}": value for layer, value in step.teacher_features.items()}
    read |= {f"the student's layer {layer!r}": value for layer, value in step.student_features.items()}
    if any(not loss.student_layers or loss.needs_student_logits for loss in losses):
        read["the student's logits"] = step.student_logits
    return read


def _counted(values: Mapping[str, object]) -> list[str]:
    named = []
    for name, value in values.items():
        if isinstance(value, Tensor) and not value.is_meta:
            bad = value.numel() - int(value.isfinite().sum())
            if bad:
                named.append(f"{name} ({bad} of {value.numel()} values)")
    return named


def check_has_layers(losses: Iterable[tuple[str, DistillationLoss]], teacher: Teacher | None) -> None:
    """Raise a ``ValueError`` if a loss looks at a teacher's layers that have no weights yet, or never have."""
    if teacher is None or not (teacher.on_meta or teacher.looks_up):
        return
    why = "the teacher is on the meta device; build it with its weights"
    if teacher.looks_up:
        why = "a stored teacher has none; give the teacher itself"
    for name, loss in losses:
        if type(loss).see_layers is not DistillationLoss.see_layers:
            raise ValueError(
                f"Part {name!r} reads the weights of the teacher's layers at set-up, but {why}, or leave this loss out."
            )


def check_stored_heads(teacher: Teacher | None, heads: Iterable[int | str]) -> None:
    """Raise a ``ValueError`` if a loss reads one of several outputs of a teacher that was not stored."""
    if teacher is None or not teacher.looks_up:
        return
    held = teacher.stored_heads
    missing = [head for head in heads if head not in held]
    if missing:
        words = f"the outputs {list(held)}" if held else "one output, which has no name"
        raise ValueError(
            f"A loss reads the teacher's output {missing[0]!r} by name, but of the stored teacher there is {words}. "
            "Store it: run `lightning-kd cache` with a configuration that has this loss and the teacher itself, or "
            "give the loss to lightning_kd.cache.write(..., losses=[...]). If the stored output is meant, leave the "
            "name out."
        )
