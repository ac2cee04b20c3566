"""The loss component: which layers a distillation loss reads, its weight, and the modules it owns."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_kd.capture.layout import LAYOUTS, View, batch_axis
from lightning_kd.configurable import Configurable
from lightning_kd.distributed.gather import gather, pad_to_longest, share_of_all
from lightning_kd.losses.layer_names import checked_names
from lightning_kd.losses.stage import Stage
from lightning_kd.losses.step_tensors import StepTensors as StepTensors
from lightning_kd.losses.tensors import is_empty, leave_out_padding, zero_of
from lightning_kd.schedules import Moment, Scalar, Schedule, check_number, extremes, value_at

Shape = tuple[int, ...]
Layers = str | Sequence[str] | None
LAYER_MAPS = ("uniform", "skip", "last")
"""Names that pair the blocks of two networks by their depth, see ``engine.layer_maps``."""
Layout = str | Mapping[str, str] | None
Masking = Literal["pack", "zero", "mean", "rescale"]
Reads = Literal["logits", "embedding", "map", "maps", "pre_activation_maps"]
LOGITS = "<logits>"
"""The key under which :meth:`DistillationLoss.build` finds the shape of the logits; no layer can have this name."""
COMPARED = "<compared logits>"
"""The same of the student's logits that are compared with the teacher's, if these are not all."""


OutputKind = Literal["classes", "multilabel", "regression", "embeddings"] | None
"""What a loss takes the outputs for."""


class DistillationLoss(Configurable, nn.Module, ABC):
    """One weighted part of the training loss: a formula, the layers it reads, and the modules it owns.

    A subclass stores every constructor argument under its own name (so that a checkpoint can hold it as plain data),
    states what it needs in class traits, makes its projectors or heads in :meth:`build`,
    and computes a scalar in ``forward``. A component that reads logits is fed the two logits, one that reads layers
    is fed the captured tensors: a tensor if one layer is named, a list of tensors if several are.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default those that ``reads`` asks for.
            ``"<output>"`` is the network's output, ``"<output.NAME>"`` one of several.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        layout: Order of the layers' axes, one of ``LAYOUTS``, or that of each layer by its name; by default it is
            found at set-up.
        weight: Factor of this part in the total loss, >= 0; a number, or a schedule of it.

    Raises:
        ValueError: If the layers do not pair up, one is named twice, a layout is unknown, or the weight is negative or
            not finite.
    """

    reads: ClassVar[Reads] = "logits"
    """What the loss reads if no layer is named: the logits, the last features before them, the last feature map, or
    the last feature map of every resolution, after or before its activation. The layers are chosen, and named, at
    set-up."""
    needs_maps: ClassVar[bool] = False
    """Every layer must be a feature map ``(B, C, H, W)``; tokens are read as the map of their positions."""
    compares_positions: ClassVar[bool] = True
    """The loss compares a position of the student with the same one of the teacher, or channels over positions. If not,
    the loss reads each sample as one vector, in which the order of axes makes no difference."""
    in_a_plane: ClassVar[bool] = False
    """The loss looks at the neighbours of a position in a plane, so a volume or windows cannot be laid flat for it."""
    masking: Masking | None = None
    """How padded tokens are left out: the valid ones are packed into rows ``(M, C)``; the others are set to zero; the
    mean of the valid ones is taken; or the others are set to zero and the mean is taken over the valid ones. ``None``
    if the loss cannot leave them out. May depend on the options."""
    reads_raw: ClassVar[bool] = False
    """The layers are read as they are: the loss knows what their axes mean, and leaves out padding itself, by the
    ``mask`` that its ``forward`` gets."""
    pairs_layers: ClassVar[bool] = True
    """Each student layer is compared with a teacher layer."""
    needs_target: bool = False
    """``forward`` takes the keyword argument ``target``; may depend on the options."""
    needs_index: ClassVar[bool] = False
    """``forward`` takes the keyword argument ``index``: the row of each sample in the data set."""
    needs_teacher_logits: ClassVar[bool] = False
    """The loss reads the teacher's logits, so its forward pass must run to the end."""
    layer_maps: ClassVar[tuple[str, ...]] = ()
    """Names that the loss takes in the place of layers: they pair the blocks of both networks by their depth."""
    reads_sparse: ClassVar[bool] = False
    """The loss takes ``SparseLogits`` in the place of the teacher's logits."""
    needs_student_logits: ClassVar[bool] = False
    """``forward`` takes the keyword argument ``student_logits`` beside the layers that it reads."""
    stage: Stage | None = None
    """What is to be trained before the main training; its loss is :meth:`evaluate_stage`."""
    relational: ClassVar[bool] = False
    """The loss compares samples with one another, so a batch that is split over processes gives another value."""
    gather: bool = False
    """Whether a relational loss compares the samples of all processes; an option of such a loss."""
    output_kind: OutputKind = None
    """What the loss takes the outputs for, which tells a task whose own loss does not; ``None`` if for nothing."""
    means_over_labels: ClassVar[bool] = False
    """The loss is a mean over the labels of all processes: each calls :meth:`of_all` once, with an empty batch too."""
    counted: Tensor | None = None
    """Over how many labels or tokens the last step's value is a mean, on average over the processes; ``None`` if it is
    no such mean."""
    task_ignore_index: int = -100
    """The id by which the task's own loss marks what has no label; set at set-up."""
    replicated_buffers: ClassVar[tuple[str, ...]] = ()
    """Buffers that the loss itself keeps equal in all processes, so DDP need not send them."""

    facts_of_data: ClassVar[tuple[str, ...]] = ()
    """Attributes and buffers that :meth:`set_dataset` gives: a loss that begins anew in another run keeps them."""

    def __init__(
        self, student: Layers = None, teacher: Layers = None, *, layout: Layout = None, weight: Scalar = 1.0
    ) -> None:
        super().__init__()
        check_number(type(self).__name__, "weight", weight)
        if not all(0.0 <= value < float("inf") for value in extremes(weight)):
            raise ValueError(f"{type(self).__name__}: expected a finite weight >= 0, got {weight}.")
        self.weight = weight
        self.layout = layout
        wrong = sorted({*_layout_names(layout)} - {*LAYOUTS})
        if wrong:
            raise ValueError(f"{type(self).__name__}: expected layout to be one of {list(LAYOUTS)}, got {wrong[0]!r}.")
        self.views: dict[str, dict[str, View]] = {"student": {}, "teacher": {}}
        """How the layers of each side are read that are not read as they are; set-up settles it."""
        self.moment = Moment()
        self.details: dict[str, Tensor] = {}
        """Values of the last step that are logged beside the loss, under its name and theirs."""
        self.of_decoder = False  # whether the layers are those of a decoder beside an encoder; set-up finds out
        self.name_layers(student, teacher)

    def name_layers(self, student: Layers, teacher: Layers) -> None:
        """Set the layers to read, for a loss that was constructed without their names.

        Args:
            student: Dotted name of the student layer, or a list of them.
            teacher: Dotted name of the teacher layer for each student layer.

        Raises:
            ValueError: If something else than names is given, the layers do not pair up, or one is named twice.
        """
        if teacher is None and isinstance(student, str) and student in self.layer_maps:
            teacher = student
        self.student, self.teacher = student, teacher
        name = type(self).__name__
        self._student_layers = checked_names(name, "student", student)
        self._teacher_layers = checked_names(name, "teacher", teacher)
        students, teachers = list(self._student_layers), list(self._teacher_layers)
        if self.pairs_layers and len(students) != len(teachers):
            raise ValueError(
                f"{name}: expected as many student layers as teacher layers, got {len(students)} {students} and "
                f"{len(teachers)} {teachers}."
            )

    def take_layers(self, student: Sequence[str], teacher: Sequence[str]) -> None:
        """Read these layers in the place of those that the options name; the options stay as they are."""
        self._student_layers, self._teacher_layers = tuple(student), tuple(teacher)

    @property
    def student_layers(self) -> tuple[str, ...]:
        """Dotted names of the student layers that this loss reads, in order."""
        return self._student_layers

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """Dotted names of the teacher layers that this loss reads, paired with the student's."""
        return self._teacher_layers

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss reads anything of a teacher."""
        return self.needs_teacher_logits or (self.reads != "logits" and self.pairs_layers) or bool(self.teacher_layers)

    @property
    def needs_layers(self) -> bool:
        """Whether the layers to read are yet to be chosen."""
        return self.reads != "logits" and not self._student_layers

    @property
    def reads_text(self) -> bool:
        """Whether a layer holds tokens of which a mask may say which are padding."""
        return self.reads_raw or any(view.text for of in self.views.values() for view in of.values())

    @property
    def local_buffers(self) -> tuple[str, ...]:
        """Buffers that differ between processes, so a checkpoint must hold those of all processes; none by default."""
        return ()

    @property
    def weight_now(self) -> float:
        """The weight at this moment of the run."""
        weight = self.weight
        return weight if type(weight) is float else value_at(weight, self.moment)

    def now(self, scalar: Scalar) -> float:
        """Return the value of a number or schedule at this moment of the run."""
        return value_at(scalar, self.moment)

    @property
    def changes_over_time(self) -> bool:
        """Whether the loss depends on ``moment``, the progress of the run."""
        return self.stage is not None or any(isinstance(value, Schedule) for value in vars(self).values())

    def leaves(self) -> "Iterator[tuple[str, DistillationLoss]]":
        """Yield each loss that reads layers or logits itself, and its name within this one: here this loss, unnamed."""
        yield "", self

    def set_moment(self, moment: Moment) -> None:
        """Set ``moment``, the progress of the run."""
        self.moment = moment

    def trains_now(self, teacher_ready: bool) -> bool:
        """Whether the loss trains in the main training: it is not for its stage alone, and its teacher is ready."""
        only_stage = self.stage is not None and self.stage.then_stops and bool(self.stage.length)
        return not only_stage and (teacher_ready or not self.needs_teacher)

    def set_dataset(self, num_samples: int, targets: Tensor | None) -> None:
        """Receive facts about the training data. Called before :meth:`build`, if the loss ``needs_index``.

        Args:
            num_samples: Number of rows, so that every index is below it.
            targets: Class id of every row, ``None`` if the data set has none.
        """

    def see_networks(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Look at the networks themselves, for a loss that goes by their kind. Called at every set-up.

        A loss must not change a network, and must not keep a reference to it.

        Args:
            student: The student.
            teacher: The teacher, ``None`` if no network answers.
        """

    def see_layers(self, student_layers: Mapping[str, nn.Module], teacher_layers: Mapping[str, nn.Module]) -> None:
        """Read the layers themselves, for a loss that needs more than their outputs. Called before :meth:`build`.

        A loss must not change a layer, and must not keep a reference to it.

        Args:
            student_layers: The student's named layers by name.
            teacher_layers: The teacher's; empty without one, or where its outputs are read from a cache.
        """

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Make the modules that depend on sizes; called once, before the optimizer exists.

        Args:
            student_shapes: Shape of each captured student layer by name, and of the logits under ``LOGITS``;
                the first number is the batch size of the probe and means nothing.
            teacher_shapes: The same for the teacher; empty without one.

        Raises:
            ValueError: If the two sides cannot be compared; the message names both shapes and the remedy.
        """

    def evaluate(self, step: StepTensors) -> Tensor:
        """Pick this loss's tensors out of a training step and return the unweighted scalar, 0 without samples."""
        args: list[Tensor | list[Tensor] | None]
        if self._student_layers:
            args = [self.read_layers("student", step)]
            if self._teacher_layers:
                args.append(self.read_layers("teacher", step))
        else:
            compared = step.student_logits if step.compared_logits is None else step.compared_logits
            args = [compared, step.teacher_logits] if self.needs_teacher_logits else [step.student_logits]
        extra: dict[str, Tensor | None] = {}
        if self.needs_target:
            extra["target"] = step.target
        if self.needs_index:
            extra["index"] = step.index
        if self.needs_student_logits:
            extra["student_logits"] = step.student_logits
        mask = _mask_of_tokens(self, step)
        if self.reads_raw:
            extra["mask"] = mask
        padded = mask is not None and self.reads_text
        if self.relational and self.gather:
            if padded and self.masking == "zero":  # batches are padded to other lengths elsewhere
                args = [_padded(arg) for arg in args]
            args = [_gathered(arg) for arg in args]
            extra = {name: gather(value) if isinstance(value, Tensor) else value for name, value in extra.items()}
        # A loss with replicated buffers exchanges them in `forward`, so a process without samples must call it too.
        if not self.replicated_buffers and is_empty(args[0]):
            zero = zero_of(args[0])
            if self.means_over_labels or self.means_over_tokens:
                self.of_all(zero, zero.detach())
            return zero
        value = self(*args, **extra)
        if not isinstance(value, Tensor):
            raise TypeError(f"{type(self).__name__}: forward must return a tensor, got {type(value).__name__}.")
        if padded and self.masking == "rescale":
            assert mask is not None
            value = value * (mask.numel() / mask.sum().clamp_min(1))
        return self.of_all(value, self._tokens(step)) if self.means_over_tokens else value

    @property
    def means_over_tokens(self) -> bool:
        """Whether the loss is a mean over the valid tokens of texts, of which each process has its own."""
        return self.masking in ("pack", "rescale") and self.reads_text and not (self.relational and self.gather)

    def _tokens(self, step: StepTensors) -> Tensor:
        """Return the number of valid tokens of a step; without a mask, of all positions of the first layer of texts."""
        if (mask := _mask_of_tokens(self, step)) is not None:
            return mask.sum()
        views = self.views["student"]
        first = next((name for name in self._student_layers if name in views and views[name].text), None)
        value = step.student_features[first or self._student_layers[0]]
        return torch.tensor(value.shape[:2].numel(), device=value.device)

    def of_all(self, mean: Tensor, count: Tensor) -> Tensor:
        """Return this process's share of the mean over all processes, and note the count; see ``share_of_all``.

        Args:
            mean: Mean over the labels or tokens of this process, 0 without any.
            count: How many these are.
        """
        share, self.counted = share_of_all(mean, count)
        return share

    def read_layers(self, role: Literal["student", "teacher"], step: StepTensors) -> Tensor | list[Tensor]:
        """Return the values of a role's layers, each in the order that the loss reads, without padding."""
        if role == "student":
            features, layers = step.student_features, self._student_layers
        else:
            features, layers = step.teacher_features, self._teacher_layers
        views, given = self.views[role], _mask_of(self, step)
        if not views and given is None:
            return features[layers[0]] if len(layers) == 1 else [features[layer] for layer in layers]
        values = []
        for layer in layers:
            view, value, mask = views.get(layer), features[layer], given
            if view is not None:
                view = step.fitted(role, layer, view)
                mask = None if given is None else view.of_mask(given, value.shape[batch_axis(view.order)])
                value = view(value, mask)
            if mask is not None and mask.ndim == 1:
                value = value[mask]
            elif mask is not None and view is not None and view.text:
                value = leave_out_padding(value, mask, self.masking)
            values.append(value)
        return values[0] if len(values) == 1 else values

    def evaluate_stage(self, step: StepTensors) -> Tensor:
        """Return the unweighted loss of the stage before the main training; by default that of :meth:`evaluate`."""
        return self.evaluate(step)

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the unweighted scalar loss; the signature is the subclass's own."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DistillationLoss":
        # A bank or a running mean changes by less than 16 bits can represent. So a buffer keeps its format when the
        # module is converted to a 16-bit one.
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, wide in before.items():
            now = self._buffers[name]
            if wide is not None and now is not None and now.dtype.itemsize < min(4, wide.dtype.itemsize):
                self._buffers[name] = wide.to(now.device)
        return self

    def extra_repr(self) -> str:
        """Show the options. Modules are left out, because torch prints each on its own line."""
        shown = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items() if not _holds_modules(value))


def _mask_of(loss: DistillationLoss, step: StepTensors) -> Tensor | None:
    return step.decoder_mask if loss.of_decoder else step.mask


def _mask_of_tokens(loss: DistillationLoss, step: StepTensors) -> Tensor | None:
    mask = _mask_of(loss, step)
    return mask if mask is not None and mask.ndim == 2 else None


def _holds_modules(value: object) -> bool:
    values = value if isinstance(value, Sequence | nn.ModuleList) and not isinstance(value, str) else [value]
    return any(isinstance(one, nn.Module) for one in values)


def as_names(layers: Layers) -> tuple[str, ...]:
    """Return what names layers as a tuple of names."""
    if layers is None:
        return ()
    return (layers,) if isinstance(layers, str) else tuple(layers)


def _gathered(tensors: Tensor | list[Tensor] | None) -> Tensor | list[Tensor] | None:
    """Return the samples of all processes, for a tensor or for each of a list."""
    if isinstance(tensors, list):
        return [gather(tensor) for tensor in tensors]
    return None if tensors is None else gather(tensors)


def _padded(tensors: Tensor | list[Tensor] | None) -> Tensor | list[Tensor] | None:
    """Return tokens with as many positions as the process with the most has."""
    if isinstance(tensors, list):
        return [pad_to_longest(tensor) for tensor in tensors]
    return None if tensors is None else pad_to_longest(tensors)


def _layout_names(layout: Layout) -> Sequence[str]:
    if layout is None:
        return ()
    return (layout,) if isinstance(layout, str) else list(layout.values())
