"""What the losses share that compare pairs of layers: one module or more for each pair, and a sum over the pairs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_kd.losses.base import DistillationLoss, Shape
from lightning_kd.losses.checks import check_map_layers
from lightning_kd.losses.tensors import add_up, pair_up


class LayerPairLoss(DistillationLoss, ABC):
    """A loss that compares every named student layer with its teacher layer, and adds the values of the pairs.

    A subclass computes the loss of one pair in :meth:`compare`. If each pair owns modules or parameters, the subclass
    makes empty lists for them in ``__init__``, names the lists in ``per_pair``, and fills them in :meth:`build_pair`.
    """

    per_pair: tuple[str, ...] = ()
    """Names of the lists that hold one module or parameter for each pair; may depend on the options."""

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Check the layers, and make what each pair owns, in the order of the layers.

        Args:
            student_shapes: Shape of each named student layer.
            teacher_shapes: Shape of each named teacher layer.

        Raises:
            RuntimeError: If the loss is built already.
            ValueError: If a pair cannot be compared; the message names the layers and both shapes.
        """
        name = type(self).__name__
        if any(len(owned) for owned in self._owned()):
            raise RuntimeError(f"{name}: built already; construct a new one for other layers.")
        if self.needs_maps:
            check_map_layers(self, student_shapes, teacher_shapes)
        if not self.per_pair:
            return
        built = []
        for student, teacher in zip(self.student_layers, self.teacher_layers, strict=True):
            try:
                built.append(self.build_pair(student_shapes[student], teacher_shapes[teacher]))
            except ValueError as error:
                raise ValueError(f"{name}, student layer {student!r} and teacher layer {teacher!r}: {error}") from None
        for parts in built:
            for owned, part in zip(self._owned(), parts, strict=True):
                owned.append(part)

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module | nn.Parameter, ...]:
        """Make what one pair owns: one thing for each list in ``per_pair``, in that order.

        Args:
            student: Shape of the student's features, batch axis included.
            teacher: Shape of the teacher's features, batch axis included.

        Raises:
            ValueError: If the two cannot be compared; :meth:`build` puts the names of the layers before the message.
        """
        raise NotImplementedError(f"{type(self).__name__}: per_pair is {self.per_pair}, so write build_pair.")

    def forward(self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor]) -> Tensor:
        """Compute the unweighted loss of one pair of features, or the sum over several."""
        pairs = pair_up(student, teacher)
        if not self.per_pair:
            return self.combine([self.compare(s, t) for s, t in pairs])
        owned = self._owned()
        if not len(owned[0]):
            name = type(self).__name__
            raise RuntimeError(f"{name}: not built yet; call build(student_shapes, teacher_shapes) first.")
        values = [self.compare(s, t, *parts) for (s, t), *parts in zip(pairs, *owned, strict=True)]
        return self.combine(values)

    @abstractmethod
    def compare(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the unweighted loss of one pair, from the student's features, the teacher's, and what the pair owns.

        A subclass has a signature of its own: ``compare(student, teacher)``, and one argument more for each list in
        ``per_pair``.
        """

    def combine(self, values: Sequence[Tensor]) -> Tensor:
        """Return the loss of all pairs, given that of each in order: the sum by default."""
        return add_up(values)

    def _owned(self) -> list[Any]:
        return [getattr(self, name) for name in self.per_pair]
