"""What one training step offers to every loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from lightning_kd.capture.heads import Head
from lightning_kd.capture.layout import View
from lightning_kd.capture.seen import Seen


@dataclass(slots=True)
class StepTensors:
    """What one training step offers to every loss; teacher tensors carry no gradient.

    Args:
        student_logits: Student logits, ``None`` if its output has none.
        teacher_logits: Teacher logits, ``None`` without a teacher or if its output has none.
        student_features: Captured student tensors by dotted layer name.
        teacher_features: Captured teacher tensors by dotted layer name.
        target: The batch's target, ``None`` for unlabelled data.
        index: Row of each sample in the data set, ``None`` if the batch has none.
        mask: Which tokens (B, N) are no padding, or which samples (B,) count; ``None`` if all do.
        decoder_mask: Which tokens of the decoder are no padding, in a network that has an encoder too.
        teacher_ready: Whether there is a teacher that has something to teach, or no loss needs one.
        hidden: What the output layers of student and teacher were given, where logits do not stand whole.
        heads: The output layers, for losses of tokens.
        call: Calls another network with what the student was called with, and returns its logits.
        compared_logits: The student's logits that are compared with the teacher's, ``None`` if all are.
        head_of: Returns one of several outputs of a role, by the head's name or number, as they are compared.
        sparse: The teacher's ``SparseLogits``, where these are its answer in the place of logits.
        teacher_target: The labels of the teacher's own tokens, ``None`` if it reads the student's.
        teacher_mask: Which of these are no padding.
        seen: Returns how many samples, and images of which size, the network of a role was called with.
        position_ids: The positions (B, N) that the student was told, for losses that relate tokens to one another.
    """

    student_logits: Tensor | None = None
    teacher_logits: Tensor | None = None
    student_features: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_features: Mapping[str, Tensor] = field(default_factory=dict)
    target: Tensor | None = None
    index: Tensor | None = None
    mask: Tensor | None = None
    decoder_mask: Tensor | None = None
    teacher_ready: bool = True
    hidden: tuple[Tensor, Any] | None = None
    heads: Any = None
    call: Callable[[nn.Module], Tensor | None] | None = None
    compared_logits: Tensor | None = None
    head_of: Callable[[str, Head], Tensor | None] | None = None
    sparse: Any = None
    teacher_target: Tensor | None = None
    teacher_mask: Tensor | None = None
    seen: Callable[[str], Seen | None] | None = None
    position_ids: Tensor | None = None

    def fitted(self, role: str, layer: str, view: View) -> View:
        """Return how a layer is read in this step, whose images may have another size than those of set-up.

        Args:
            role: Whose layer.
            layer: Its name.
            view: How it was read at set-up.

        Raises:
            ValueError: If its windows or patches do not fit the images of this step.
        """
        if self.seen is None or not view.depends_on_size:
            return view
        features = self.student_features if role == "student" else self.teacher_features
        seen = self.seen(role)
        try:
            return view if seen is None else view.fitted(features[layer].shape, seen.samples, seen.image)
        except ValueError as error:
            raise ValueError(f"The {role}'s layer {layer!r}: {error}") from None

    def counting(self, mask: Tensor) -> "StepTensors":
        """Keep the samples that count. Of layers the losses choose them, which know the batch axes.

        Args:
            mask: Which samples (B,) count.
        """

        def chosen(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else rows[mask]

        call, head_of = self.call, self.head_of
        return replace(
            self,
            student_logits=chosen(self.student_logits),
            compared_logits=chosen(self.compared_logits),
            head_of=None if head_of is None else lambda role, head: chosen(head_of(role, head)),
            teacher_logits=chosen(self.teacher_logits),
            sparse=None if self.sparse is None else self.sparse.of_rows(mask),
            target=chosen(self.target),
            teacher_target=chosen(self.teacher_target),
            teacher_mask=chosen(self.teacher_mask),
            index=chosen(self.index),
            hidden=None if self.hidden is None else (self.hidden[0][mask], self.hidden[1][mask]),
            call=None if call is None else lambda network: chosen(call(network)),
        )
