"""Set-up: choose the layers, learn every size from one small batch, and build what depends on sizes."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_kd.capture.activation_input import modules_of
from lightning_kd.capture.axes import Axes, axes_in_call
from lightning_kd.capture.batch import Batch, read_if_known
from lightning_kd.capture.call import Call
from lightning_kd.capture.call_mask import mask_given
from lightning_kd.capture.columns import check_embeddings, gives_as_is, is_own, target_that_is_input
from lightning_kd.capture.example import remember_call
from lightning_kd.capture.followed import Followed, following
from lightning_kd.capture.hooks import module_of
from lightning_kd.capture.networks import isolated_random_state, original
from lightning_kd.capture.rows import leaves_of
from lightning_kd.capture.seen import batch_of
from lightning_kd.engine.attention_choice import check_same_choice
from lightning_kd.engine.attention_rows import check_attention, check_returns_attention, check_same_order
from lightning_kd.engine.begin_anew import Owner, claim, fingerprint_of_labels
from lightning_kd.engine.checks import (
    check_first_values,
    check_has_layers,
    check_not_lazy,
    check_not_shared,
    check_parts_not_lazy,
    check_stored_heads,
    has_lazy,
)
from lightning_kd.engine.default_layers import choose_layers, chosen_before
from lightning_kd.engine.embedding_output import Embeddings
from lightning_kd.engine.first_call import FirstCall
from lightning_kd.engine.fused_heads import settle_heads
from lightning_kd.engine.idle_losses import tell_of_one_position
from lightning_kd.engine.input_scale import tell_of_scale
from lightning_kd.engine.labels import check_classes
from lightning_kd.engine.layouts import (
    are_patches,
    axes_of_outputs,
    plain_views,
    settle_views,
    viewed_shape,
    views_from,
)
from lightning_kd.engine.look_at_outputs import KnownTask, SigmoidWatch, look_at_outputs, shapes_read
from lightning_kd.engine.masks import (
    Masks,
    check_mask,
    check_mask_values,
    settle_masks,
    tell_rows_of_tokens,
    tell_unread_masks,
)
from lightning_kd.engine.model_loss import tell_of_router
from lightning_kd.engine.numbers import settle_numbers
from lightning_kd.engine.reading import teacher_heads
from lightning_kd.engine.same_positions import check_one_size
from lightning_kd.engine.sparse_teacher import check_sparse_answer
from lightning_kd.engine.step import TrainingStep
from lightning_kd.engine.task import check_classes_on_axis_1
from lightning_kd.losses.base import LOGITS, DistillationLoss, Shape, StepTensors
from lightning_kd.losses.tokens.blocks import ReadsAttention
from lightning_kd.projectors import width
from lightning_kd.teachers.base import Lesson, Teacher
from lightning_kd.teachers.frozen import FrozenTeacher

Shapes = dict[str, dict[str, Shape]]
Known = dict[str, dict[str, Axes]]


class SetUp:
    """What the losses of a step were built for, and how they are built.

    Args:
        step: The training step, whose losses are set up.
        task: Who knows what the task's own loss tells.
    """

    def __init__(self, step: TrainingStep, task: KnownTask) -> None:
        self.step = step
        self.embeddings = Embeddings(step, task)
        """Which losses read the network's output as the embedding."""
        self.shapes: Shapes | None = None
        """Shapes of the layers and logits that the losses read, by role and name; ``None`` before they are built."""
        self.inputs: dict[str, Any] | None = None
        """What the student was called with when the sizes were learned, without its values; see ``remember_call``."""
        self.dataset: tuple[int, bool] = (0, False)
        """Number of rows of the training data, and whether it has class ids, for losses that remember samples."""
        self.labels: int | None = None
        """Fingerprint of these class ids, ``None`` if they are not known."""
        self.owner = Owner()
        """Stands for this run in the losses that belong to it."""
        self.from_checkpoint = False
        """Whether the losses hold what a checkpoint has remembered."""

    def go_on_from(self, earlier: "SetUp") -> None:
        """Take over what the losses were built for in an earlier fit of theirs."""
        self.shapes, self.inputs, self.dataset = earlier.shapes, earlier.inputs, earlier.dataset
        self.labels, self.owner, self.from_checkpoint = earlier.labels, earlier.owner, earlier.from_checkpoint

    def claim(self) -> None:
        """Let the losses belong to this run; those that another run has built begin anew."""
        if claim(self.step.objective.losses, self.owner):
            self.shapes = None
            self.from_checkpoint = False
            self.step.detach()
            self.step.watch()

    def prepare(self, batch: Any, call_student: Callable[[Any], object], module: nn.Module) -> None:
        """Put the hooks on, learn every size from one small batch, and build what depends on sizes.

        Neither BatchNorm statistics nor any random state nor the modes of the modules are changed.

        Args:
            batch: A small batch, on the student's device.
            call_student: Calls the student once on that batch.
            module: The whole module, which is put in eval mode meanwhile.

        Raises:
            ValueError: If a loss cannot work on these shapes, or they contradict a checkpoint's.
        """
        check_parts_not_lazy(self.step.objective.leaves)
        self.claim()
        with self.step.alone(), self.step.positions.setting_up():
            self._prepare(FirstCall(self.step, batch, call_student, module))

    def _prepare(self, first: FirstCall) -> None:
        self._check_teacher()
        if has_lazy(self.step.student):  # whose layers get their weights in the first call
            with first.rehearsing():
                first.call_student(first.batch)
            check_not_lazy(self.step.student)
        if isinstance(self.step.teacher, FrozenTeacher):  # in a loop without a Trainer; else they are there by now
            self.step.teacher.read_weights()
        if any(loss.needs_layers for loss in self.step.objective.components):
            self._choose_layers(first)
        self._show_networks()
        if self.shapes is None:
            self._show_layers()
        self.step.attach()
        shapes, known, masks = self._measure(first)
        if self.shapes is None:
            self._settle_views(known, masks)
        check_mask(self.step.objective.leaves, masks, shapes)
        tell_rows_of_tokens(self.step.objective.leaves, masks, shapes)
        settle_numbers(self.step.objective.leaves, masks, shapes)
        if self.shapes is None:
            self.build(shapes)
        else:
            self._check_same_sizes(shapes)
        self.step.takes_mask = any(loss.reads_text for _, loss in self.step.objective.leaves)
        tell_unread_masks(self.step, first.batch, masks, shapes)
        logits = self.shapes["student"].get(LOGITS, ()) if self.shapes else ()
        self.step.heads = settle_heads(self.step, logits, first.logits_of_both)

    def name_layers(self, chosen: Mapping[str, Mapping[str, Any]]) -> None:
        """Give the losses that name no layers those that were chosen when a checkpoint was made."""
        waiting = [(n, loss) for n, loss in self.step.objective.leaves if loss.needs_layers and n in chosen]
        if not waiting:
            return
        attached = self.step.capture.attached
        self.step.detach()
        for name, loss in waiting:
            loss.name_layers(chosen[name]["student"], chosen[name]["teacher"])
        self.step.watch()
        if attached:
            self.step.attach()

    def show_dataset(self, rows: int, targets: Tensor | None) -> None:
        """Show the training data to the losses that remember samples.

        Args:
            rows: Number of rows.
            targets: Class id of each row, ``None`` if the data does not tell.

        Raises:
            ValueError: If the losses come from a checkpoint, and remember other data.
        """
        self.claim()
        labels = fingerprint_of_labels(targets)
        if self.shapes is None:
            remembering = [loss for loss in self.step.objective.components if loss.needs_index]
        else:
            self._check_same_data(rows, labels)
            known = self.labels is None or labels == self.labels
            remembering = [] if rows == self.dataset[0] and known else self._forget()
        self.dataset, self.labels = (rows, targets is not None), labels
        for loss in remembering:
            loss.set_dataset(rows, targets)

    def _check_same_data(self, rows: int, labels: int | None) -> None:
        """Raise a ``ValueError`` if the losses come from a checkpoint, and remember other data than this."""
        if not self.from_checkpoint:
            return
        if rows != self.dataset[0]:
            raise ValueError(
                f"The training data has {rows} rows, but the losses of the checkpoint remember {self.dataset[0]}; "
                "fit with the data that the checkpoint was made with."
            )
        if None not in (labels, self.labels) and labels != self.labels:
            raise ValueError(
                f"The training data has {rows} rows like that of the checkpoint, but other class ids, or the same in "
                "another order, so what the losses remember of a row is of another sample; fit with the data that "
                "the checkpoint was made with (a random split must be drawn with the same seed)."
            )

    def _forget(self) -> list[DistillationLoss]:
        """Return the losses whose memory is of the data of an earlier fit, and say that it begins anew."""
        forgetting = [(name, loss) for name, loss in self.step.objective.leaves if loss.needs_index]
        rank_zero_info(
            f"The training data is not that of the earlier fit, so what {', '.join(name for name, _ in forgetting)} "
            "remembers of its rows begins anew."
        )
        return [loss for _, loss in forgetting]

    def build(self, shapes: Shapes) -> None:
        """Build every component for the given shapes; called once.

        The weights that are drawn leave the random state as it is: a run sees the same batches and the same dropout
        whichever losses it has.
        """
        objective = self.step.objective
        with isolated_random_state():
            for loss in objective.components:
                loss.build(*(self._viewed(loss, role, shapes[role]) for role in ("student", "teacher")))
        weights = [weight.dtype for weight in self.step.student.parameters() if weight.is_floating_point()]
        if weights and all(dtype == torch.float64 for dtype in weights):  # a student that was made so by double()
            objective.losses.double()
        check_parts_not_lazy(objective.leaves)
        for name, leaf in objective.leaves:
            tell_of_one_position(
                name, leaf, *(self._viewed(leaf, role, shapes[role]) for role in ("student", "teacher"))
            )
        check_not_shared(
            self.step.student, objective.losses, "losses", "which the optimizer would take twice; copy them"
        )
        self.shapes = shapes

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Build the losses for the sizes that a checkpoint holds, unless they are built.

        Args:
            saved: What :meth:`state` returned.

        Raises:
            ValueError: If a loss cannot work on these shapes.
        """
        self.inputs = saved["inputs"]
        check_same_choice(self.step.objective.leaves, saved)
        if saved["shapes"] is None:
            return
        if self.shapes is not None:  # a fit goes on from a checkpoint: its own data is known
            rows, labels = self.dataset[0], self.labels
            self.dataset, self.labels, self.from_checkpoint = (*saved["dataset"],), saved.get("labels"), True
            if rows and self.dataset[0]:
                self._check_same_data(rows, labels)
            return
        self.claim()
        self.name_layers(saved["layers"])
        leaves = dict(self.step.objective.leaves)
        for name, views in saved.get("views", {}).items():
            if name in leaves:
                leaves[name].views = views_from(views)
        rows, with_targets = saved["dataset"]
        self.show_dataset(rows, torch.zeros(rows, dtype=torch.long) if with_targets else None)
        self.labels, self.from_checkpoint = saved.get("labels"), True
        self.build({role: {n: tuple(shape) for n, shape in of.items()} for role, of in saved["shapes"].items()})

    def state(self) -> dict[str, Any]:
        """Return as plain data what :meth:`restore` needs."""
        shapes = self.shapes
        return {
            "shapes": shapes and {role: {n: list(shape) for n, shape in of.items()} for role, of in shapes.items()},
            "inputs": self.inputs,
            "layers": {
                name: {"student": loss.student, "teacher": loss.teacher}
                for name, loss in self.step.objective.leaves
                if loss.reads != "logits" and not loss.needs_layers
            },
            "dataset": self.dataset,
            "views": {
                name: plain_views(loss.views) for name, loss in self.step.objective.leaves if any(loss.views.values())
            },
            "labels": self.labels,
        }

    def _check_teacher(self) -> None:
        needy = [name for name, loss in self.step.objective.leaves if loss.needs_teacher]
        if self.step.teacher is None and needy:
            raise ValueError(
                f"The loss part(s) {needy} need a teacher; pass teacher=..., or add a callback that makes one of the "
                "student: EMATeacher or BornAgain."
            )

        check_stored_heads(self.step.teacher, teacher_heads(self.step.objective.components))

    def _show_networks(self) -> None:
        """Show the losses the networks."""
        teacher = None if self.step.teacher is None else self.step.teacher.layered
        for loss in self.step.objective.components:
            loss.see_networks(original(self.step.student), None if teacher is None else original(teacher))

    def _show_layers(self) -> None:
        """Show the losses the layers that they read.

        Raises:
            ValueError: If a loss looks at a teacher's layers that have no weights yet.
        """
        step = self.step
        check_has_layers(step.objective.leaves, step.teacher)
        student = original(step.student)
        teacher = None if step.teacher is None or step.teacher.layered is None else original(step.teacher.layered)
        for loss in step.objective.components:
            loss.see_layers(modules_of(student, loss.student_layers), modules_of(teacher, loss.teacher_layers))

    def _measure(self, first: FirstCall) -> tuple[Shapes, Known, Masks]:
        """Call both networks.

        Returns:
            The shapes of what the losses read, what the axes of the layers mean, and the masks of the batch.
        """
        capture, teacher = self.step.capture, self.step.teacher
        network = None if teacher is None else teacher.layered
        with first.rehearsing():
            with capture.recording(), following(self.step.student) as student_runs, SigmoidWatch() as watch:
                call = first.of_student()
                self.inputs = remember_call(call.args, call.kwargs)
                capture.check_ran(call)
                capture.copy_changed(call)
                capture.copy_before_dropout()
                if self.step.calls is not None and gives_as_is(self.step.hooks) and network is not None:
                    check_embeddings(call, first.batch)
                with following(network) if network is not None else nullcontext() as teacher_runs:
                    lesson = first.lesson(call)
                if teacher is not None:
                    teacher.check_first_answer(lesson)
                read = self.step.as_called(read_if_known(self.step.hooks, first.batch), call)
                if self.step.calls is not None and is_own(self.step.hooks.unpack_batch):
                    told = target_that_is_input(call.args, call.kwargs, read.target, read.index)
                    if told is not None:
                        rank_zero_warn(told)
                followed = {"student": student_runs, "teacher": teacher_runs}
                tensors = self._check_first(call, lesson, watch, read, followed)
            check_mask_values(self.step, read, mask_given(call, self.step.student))
            check_attention(call, lesson, network, read.target)
            for loss in self.step.objective.components:
                check_same_order(loss, tensors.student_features, tensors.teacher_features)
            self.step.settle_positions(first.batch, call)
            known = {
                "student": self._axes(self.step.student, call, student_runs, "student", read),
                "teacher": _as_stored(teacher, lesson)
                if teacher_runs is None or not isinstance(lesson, Call)
                else self._axes(teacher, lesson, teacher_runs, "teacher", read),
            }
            for role, features in (("student", tensors.student_features), ("teacher", tensors.teacher_features)):
                known[role] |= axes_of_outputs(role, features)
            shapes = {"student": shapes_read(self.step, "student", call, tensors)}
            shapes["teacher"] = shapes_read(self.step, "teacher", lesson, tensors)
            self.step.batch_axis = (batch_of(call.args, call.kwargs, read.target) or (0, 0))[1]
            masks = settle_masks(self.step, read, mask_given(call, self.step.student))
            if masks.of_ids and any(isinstance(one, Tensor) and one.ndim == 4 for one in leaves_of(call.kwargs)):
                self._settle_patches(call, student_runs, read)
            return shapes, known, masks

    def _axes(self, network: Any, call: Call, runs: Followed, role: str, read: Batch) -> dict[str, Axes]:
        """Find what the axes of a network's layers mean, by calling the network with one sample more."""
        losses = self.step.objective.components
        layers = {name for loss in losses for name in getattr(loss, f"{role}_layers")}
        return axes_in_call(network, call.args, call.kwargs, read.target, layers, runs)

    def _settle_patches(self, call: Call, runs: Followed, read: Batch) -> None:
        """Tell the losses of attention whether their blocks are of images beside a text."""
        for _, loss in self.step.objective.leaves:
            if isinstance(loss, ReadsAttention):
                blocks = {module_of(layer) for layer in loss.student_layers}
                found = axes_in_call(self.step.student, call.args, call.kwargs, read.target, blocks, runs)
                loss.of_patches = bool(found) and all(map(are_patches, found.values()))

    def _settle_views(self, known: Known, masks: Masks) -> None:
        for name, loss in self.step.objective.leaves:
            try:
                check_one_size(loss, self.step.student)
                check_returns_attention(loss, known)
                views = settle_views(loss, known, masked=masks.of_tokens(loss) is not None, of_ids=masks.of_ids)
            except ValueError as error:
                raise ValueError(f"Part {name!r}: {error}") from None
            loss.views = {role: {n: v for n, v in of.items() if not v.is_plain} for role, of in views.items()}

    def _choose_layers(self, first: FirstCall) -> None:
        step = self.step
        student_layers, teacher_layers = first.trace()
        outputs = self.embeddings.that_are_outputs(student_layers.output)
        for name, loss in step.objective.leaves:
            if name in outputs or loss.needs_layers:
                told = outputs.get(name) or chosen_before(name, loss, step.teacher)
                told = told or choose_layers(loss, student_layers, teacher_layers)
                rank_zero_info(f"Part {name!r} reads {told}.")
        step.watch()

    def _check_first(
        self, call: Call, lesson: Lesson, watch: SigmoidWatch, read: Batch, runs: Mapping[str, Followed | None]
    ) -> StepTensors:
        """Check that the outputs on the first samples have what the losses read, and that it is finite."""
        tensors = self.step.tensors(call, lesson, Batch())
        look_at_outputs(self.step, call, lesson, tensors, watch, runs, read)
        tell_of_scale(runs["teacher"])
        tell_of_router(self.step.student, call.output, self.step.hooks)
        check_sparse_answer(tensors.sparse, tensors.student_logits, read.mask)
        check_classes(self.step.objective.leaves, read.target, tensors.student_logits)
        logits, student = tensors.student_logits, runs["student"]
        axis = None if logits is None or student is None else student.known_axis(logits)
        check_classes_on_axis_1(getattr(self.step.hooks, "task_loss", None), logits, read.target, axis)
        check_first_values(tensors, self.step.objective.components)
        return tensors

    def _viewed(self, loss: DistillationLoss, role: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return the shapes of a role's layers and logits as a loss reads them."""
        return {name: viewed_shape(shape, loss.views[role].get(name)) for name, shape in shapes.items()}

    def _check_same_sizes(self, shapes: Shapes) -> None:
        assert self.shapes is not None
        for loss in self.step.objective.components:
            for role, now in shapes.items():
                built_for, found = (self._viewed(loss, role, one) for one in (self.shapes[role], now))
                for layer, shape in built_for.items():
                    if layer in found and (len(found[layer]) != len(shape) or width(found[layer]) != width(shape)):
                        raise ValueError(
                            f"The {role}'s {layer or 'logits'!r} has shape {found[layer]}, but its losses were built "
                            f"for {shape}; fit with the models and data that the checkpoint was made with."
                        )


def _as_stored(teacher: Teacher | None, lesson: Lesson) -> dict[str, Axes]:
    """Return the axes of answers that no network gives; of whom nothing is known (B, C), (B, N, C) or (B, C, H, W)."""
    known = {} if teacher is None else teacher.axes
    return {
        layer: known.get(layer) or Axes(tuple(value.shape), channels={3: 2}.get(value.ndim, 1))
        for layer, value in lesson.features.items()
    }
