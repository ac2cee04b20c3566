"""Set-up: choose the layers, learn every size from one small batch, and build what depends on sizes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_kd.capture.activation_input import modules_of
from lightning_kd.capture.networks import isolated_random_state, original
from lightning_kd.engine.attention_choice import check_same_choice
from lightning_kd.engine.attention_rows import check_returns_attention
from lightning_kd.engine.begin_anew import Owner, claim, fingerprint_of_labels
from lightning_kd.engine.checks import (
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
from lightning_kd.engine.layouts import plain_views, settle_views, viewed_shape, views_from
from lightning_kd.engine.look_at_outputs import KnownTask
from lightning_kd.engine.masks import Masks, check_mask, tell_rows_of_tokens, tell_unread_masks
from lightning_kd.engine.measure import Known, Shapes, measure
from lightning_kd.engine.numbers import settle_numbers
from lightning_kd.engine.reading import teacher_heads
from lightning_kd.engine.same_positions import check_one_size
from lightning_kd.engine.step import TrainingStep
from lightning_kd.losses.base import LOGITS, DistillationLoss, Shape
from lightning_kd.projectors import width
from lightning_kd.teachers.frozen import FrozenTeacher


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
        found = measure(self.step, first)
        self.inputs, shapes, masks = found.inputs, found.shapes, found.masks
        if self.shapes is None:
            self._settle_views(found.known, masks)
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
        if isinstance(step.teacher, FrozenTeacher) and step.teacher.changes:
            teacher = None  # what its layers hold now is not what they will
        for loss in step.objective.components:
            loss.see_layers(modules_of(student, loss.student_layers), modules_of(teacher, loss.teacher_layers))

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
