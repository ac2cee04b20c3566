"""Whether the losses of a run can work on hidden states and output layers, so that logits never stand whole."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_kd.capture.decoder_inputs import DecoderInputs
from lightning_kd.capture.head_input import HeadInput
from lightning_kd.capture.networks import original
from lightning_kd.losses.base import DistillationLoss, Shape
from lightning_kd.losses.tokens.heads import Head, Tail
from lightning_kd.losses.tokens.sparse import SparseLogits
from lightning_kd.losses.tokens.token_kd import TokenKDLoss
from lightning_kd.teachers.base import Teacher
from lightning_kd.teachers.frozen import FrozenTeacher

if TYPE_CHECKING:
    from lightning_kd.engine.step import TrainingStep

BothLogits: TypeAlias = tuple[Tensor | None, Tensor | SparseLogits | None]
"""The logits of student and teacher, or a few tokens in the place of the teacher's."""

_SMALL = 4096
"""Vocabularies below are not worth it, unless the user asks for it."""
_TOLERANCE, _COARSE = 1e-4, 3e-2
"""By how much logits may differ from those of the output layer, in formats of 32 bits and of 16."""


class CannotFuseError(Exception):
    """Why the output layers cannot be taken into the loss."""


@dataclass(slots=True)
class FusedHeads:
    """The output layers of both networks, and what they are given in a step.

    Args:
        student: Records the student's hidden states.
        teacher: Records the teacher's, ``None`` if its answer is a few tokens of each position.
        heads: The output layers with what comes after them, the student's first.
        decoders: Make the inputs of decoders of the labels, of which a network would compute a loss of whole logits.
    """

    student: HeadInput
    teacher: HeadInput | None
    heads: tuple[Head, Head | None]
    decoders: tuple[DecoderInputs, ...] = ()

    @property
    def is_large(self) -> bool:
        """Whether the vocabulary is large enough to be worth it."""
        weight = getattr(self.heads[0].module, "weight", None)
        return not isinstance(weight, Tensor) or weight.shape[0] >= _SMALL

    @contextmanager
    def thin(self) -> Iterator[None]:
        """Have both networks compute the logits of one position only, and record what their heads are given."""
        for one in self._recorded:
            one.start(thin=True)
        self._without_labels(True)
        try:
            yield
        finally:
            for one in self._recorded:
                one.stop()
            self._without_labels(False)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Have both networks compute all logits in calls that are no part of the step."""
        before = any(one.active for one in self.decoders)
        self._without_labels(False)
        try:
            with ExitStack() as stack:
                for one in self._recorded:
                    stack.enter_context(one.pausing())
                yield
        finally:
            self._without_labels(before)

    def check_returned(self, student: Tensor | None, teacher: Tensor | None) -> None:
        """Check in a step that both networks have returned what their output layers give, of the one position.

        Set-up has checked it on a small batch in eval mode. A network may do more in training, or with other batches.

        Args:
            student: The student's logits of the step.
            teacher: The teacher's.

        Raises:
            ValueError: If one has done more; names the remedy.
        """
        for role, recorded, head, logits in (
            ("student", self.student, self.heads[0], student),
            ("teacher", self.teacher, self.heads[1], teacher),
        ):
            if recorded is None or head is None or logits is None or recorded.output is None:
                continue
            with torch.no_grad():
                once = recorded.calls == 1
                if once and (recorded.returned(logits) or _are_of(head, recorded, logits)):
                    continue
            did = "changed its logits after its output layer" if once else "called its output layer several times"
            raise ValueError(
                f"The {role} has {did} in this step, which it had not at set-up, in eval mode. TokenKDLoss works on "
                "what the output layer is given, and would leave that out. Write TokenKDLoss(fused=False)."
            )

    def _without_labels(self, active: bool) -> None:
        for one in self.decoders:
            one.active = active

    def detach(self) -> None:
        """Take the hooks off."""
        for recorded in self._recorded:
            recorded.detach()
        for decoder in self.decoders:
            decoder.detach()

    @property
    def _recorded(self) -> list[HeadInput]:
        return [self.student] if self.teacher is None else [self.student, self.teacher]


def settle_heads(step: "TrainingStep", logits: Shape, call: Callable[[], BothLogits]) -> FusedHeads | None:
    """Take the output layers into the losses of tokens, where nobody else reads whole logits.

    Args:
        step: The training step.
        logits: Shape of the student's logits.
        call: Calls both networks on a small batch and returns their logits.

    Raises:
        ValueError: If a loss asks for it, and it cannot be.
    """
    losses = step.objective.components
    tokens = [loss for loss in losses if isinstance(loss, TokenKDLoss) and loss.fused is not False]
    asked = any(loss.fused for loss in tokens)
    if not tokens or not (asked or len(logits) == 3):
        return None
    found = None
    try:
        _check_readers(losses, step)
        found = find_heads(step.student, step.teacher)
        if asked or found.is_large:
            check_heads(found, call)
            rank_zero_info(
                "TokenKDLoss is fused with the output layers, so logits of all tokens never stand whole; fused=False "
                "computes them."
            )
            return found
    except CannotFuseError as error:
        if asked:
            raise ValueError(f"TokenKDLoss(fused=True) cannot be here: {error}.") from error
        if logits[-1] >= _SMALL:
            rank_zero_info(f"TokenKDLoss works on whole logits: {error}.")
    if found is not None:
        found.detach()
    return None


def _check_readers(losses: Sequence[DistillationLoss], step: "TrainingStep") -> None:
    """Raise a ``CannotFuseError`` if anybody reads whole logits."""
    if step.calls is not None:
        raise CannotFuseError("under DistillationCallback the module's own step reads whole logits")
    if step.answers is not None:
        raise CannotFuseError("several students read the teacher's whole logits together")
    if getattr(step.hooks, "task_loss", None) is not None:
        raise CannotFuseError(
            "task_loss reads whole logits; give TokenKDLoss(cross_entropy=...) in its place, which needs none"
        )
    options = step.hooks.output_options
    if options.teacher_classes is not None or step.class_order is not None:
        raise CannotFuseError("the teacher's classes are read in another order")
    if options.teacher_outputs not in (None, "logits"):
        raise CannotFuseError("the teacher's outputs are no logits")
    for loss in losses:
        if not loss.student_layers or loss.needs_student_logits:
            if not isinstance(loss, TokenKDLoss):
                raise CannotFuseError(f"{type(loss).__name__} reads whole logits")
            if loss.fused is False:
                raise CannotFuseError("a TokenKDLoss(fused=False) reads whole logits")


def find_heads(student: nn.Module, teacher: Teacher | None) -> FusedHeads:
    """Find the output layers, and put hooks on them.

    Args:
        student: The student.
        teacher: The teacher.

    Raises:
        CannotFuseError: If a network does not name its output layer.
    """
    if isinstance(teacher, Teacher) and teacher.module is None:  # a few tokens may be its answer
        ours = _head_of(original(student))
        return FusedHeads(HeadInput(ours.module), None, (ours, None), (DecoderInputs(student),))
    if not isinstance(teacher, FrozenTeacher):
        raise CannotFuseError("the teacher is no network that is called in the step")
    ours, theirs = (_head_of(original(network)) for network in (student, teacher.module))
    decoders = (DecoderInputs(student), DecoderInputs(teacher.module))
    return FusedHeads(HeadInput(ours.module), HeadInput(theirs.module), (ours, theirs), decoders)


def check_heads(found: FusedHeads, call: Callable[[], BothLogits]) -> None:
    """Check on a small batch that head and hidden states give the logits, and that one position can be computed alone.

    Args:
        found: The output layers, with hooks.
        call: Calls both networks and returns their logits.

    Raises:
        CannotFuseError: If they do not, or the network does not run so; says which.
    """
    sides = [("student", found.student, found.heads[0])]
    if found.teacher is not None and found.heads[1] is not None:
        sides.append(("teacher", found.teacher, found.heads[1]))
    for _, recorded, _ in sides:
        recorded.start(thin=False)
    try:
        whole = call()
        if (found.teacher is None) != isinstance(whole[1], SparseLogits):
            raise CannotFuseError("the teacher is no network that is called in the step")
        hidden = [recorded.value for _, recorded, _ in sides]
        for (role, recorded, head), logits, given in zip(sides, whole, hidden, strict=False):
            if not isinstance(logits, Tensor) or given is None or logits.ndim != 3 or recorded.calls != 1:
                raise CannotFuseError(f"the {role} does not call its output layer once, on (B, T, H)")
            with torch.no_grad():
                again, _ = head.tail(head.module(given))
            if again.shape != logits.shape or not torch.allclose(again, logits, _TOLERANCE, _TOLERANCE):
                raise CannotFuseError(f"the {role}'s output is another than that of its output layer")
        with found.thin():
            try:
                thin = call()
            except Exception as error:
                raise CannotFuseError(f"one position alone cannot be computed ({type(error).__name__})") from error
            for (role, recorded, _), logits, given in zip(sides, thin, hidden, strict=False):
                same = recorded.value is not None and given is not None and recorded.value.shape == given.shape
                if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[1] != 1 or not same:
                    raise CannotFuseError(f"the {role} does more with its logits than to return them")
                if any(one.key for one in found.decoders) and not _alike(recorded.value, given):
                    raise CannotFuseError(f"the {role} gives its output layer other values if it computes one position")
    finally:
        for _, recorded, _ in sides:
            recorded.stop()


def _are_of(head: Head, recorded: HeadInput, logits: Tensor) -> bool:
    """Whether logits are those of an output layer, but for rounding."""
    output, given = recorded.output, recorded.value
    assert output is not None, "the caller has looked"
    assert given is not None, "the layer ran"
    if not recorded.returned(output):  # changed in place: what it was is computed again
        with recorded.pausing():
            output = head.module(given[..., :1, :])
    expected, _ = head.tail(output)
    bound = _TOLERANCE if torch.finfo(output.dtype).bits >= 32 else _COARSE
    wide = torch.promote_types(expected.dtype, logits.dtype)
    return expected.shape == logits.shape and torch.allclose(expected.to(wide), logits.to(wide), bound, bound)


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.allclose(one, other, _TOLERANCE, _TOLERANCE)


def _computes_weight(module: nn.Module) -> bool:
    """Whether a module computes its weight in each call, such as by ``spectral_norm``, which may move its state."""
    # reading the weight of a parametrization would compute it; older ways keep a computed one as a plain attribute
    return is_parametrized(module) or isinstance(vars(module).get("weight"), Tensor)


def _head_of(network: nn.Module) -> Head:
    """Return the output layer that a network names, with what comes after it in the models of Hugging Face."""
    layer: Any = getattr(network, "get_output_embeddings", lambda: None)()
    if not isinstance(layer, nn.Module):
        raise CannotFuseError(f"{type(network).__name__} has no get_output_embeddings() that names its output layer")
    if any(map(_computes_weight, layer.modules())):
        raise CannotFuseError(
            f"the weight of {type(network).__name__}'s output layer is computed anew in each call (a parametrization)"
        )
    config = getattr(network, "config", None)
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    bias = getattr(network, "final_logits_bias", None)
    return Head(layer, Tail(scale, None if cap is None else float(cap), bias if isinstance(bias, Tensor) else None))
