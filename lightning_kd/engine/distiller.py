"""The engine behind the three doors: run the teacher, capture the layers, evaluate the losses, add them up."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_kd.capture.batch import Batch, Hooks
from lightning_kd.capture.call import Call, describe_call
from lightning_kd.capture.example import remember_call
from lightning_kd.capture.hooks import Calls, Capture, Recording
from lightning_kd.capture.networks import device_of, original, taking_any_device, undisturbed
from lightning_kd.capture.trace import Seen, Trace
from lightning_kd.engine.checks import check_has, check_has_logits, check_not_shared, not_finite, only_frozen
from lightning_kd.engine.default_layers import choose_layers
from lightning_kd.losses.base import LOGITS, DistillationLoss, Shape, StepTensors, add_up
from lightning_kd.losses.naming import NamedLosses
from lightning_kd.losses.stage import Stage
from lightning_kd.projectors import width
from lightning_kd.schedules import Moment
from lightning_kd.teachers.frozen import FrozenTeacher

_NO_BATCH = Batch()
Shapes = dict[str, dict[str, Shape]]
_COPY = "which would be frozen for both; give the teacher its own copy: copy.deepcopy(student)"
_CHANGED_INPUT = (
    "The {} changed its input in place, so the other network would see something else than the batch. Set "
    "inplace=False in its first layer, or let its forward begin with x = x.clone()."
)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a step of the main training evaluates, the same in every step until a teacher has something to say."""

    active: list[tuple[str, DistillationLoss]]
    added: Mapping[str, Callable[[StepTensors], Tensor]]
    with_teacher: bool


class Distiller:
    """Computes the distillation parts of a training step for whichever door asks.

    A step is: record the student's call (:meth:`recording`), then :meth:`parts` runs the teacher on what the
    student was called with and evaluates every loss, and :func:`weighted_sum` adds them to the task term.

    Args:
        student: The module that learns.
        teacher: The frozen teacher, or ``None`` if no loss needs one.
        losses: Loss components by name, see ``name_losses``.
        hooks: The door, which answers how batches and outputs are read.
        calls: Which calls of the student count, if a step calls it several times; ``None`` if the door makes the one
            call itself, by ``capture.call``.

    Raises:
        ValueError: If a layer does not exist, or student and teacher share parameters.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: FrozenTeacher | None,
        losses: NamedLosses,
        hooks: Hooks,
        *,
        calls: Calls | None = None,
    ) -> None:
        self.calls = calls
        self.student = student
        self.teacher = teacher
        self.losses = losses
        self.hooks = hooks
        self.shapes: Shapes | None = None
        self.step: StepTensors | None = None
        """What the losses of this step read; whoever has evaluated them lets go of it."""
        self._looked_for_frozen = False
        self._plans: dict[bool, _Plan] = {}
        self.inputs: dict[str, Any] | None = None
        """What the student was called with when the sizes were learned, without its values; see ``remember_call``."""
        self._named = cast("dict[str, DistillationLoss]", dict(losses.items()))
        self._leaves = [
            (f"{name}.{inner}" if inner else name, leaf)
            for name, loss in self._named.items()
            for inner, leaf in loss.leaves()
        ]
        self._timed = [loss for loss in self._named.values() if loss.changes_over_time]
        self._staged = [(name, leaf) for name, leaf in self._leaves if leaf.stage is not None]
        self._reads_logits = any(not one.student_layers or one.needs_student_logits for one in self.components)
        self._needs_target = any(loss.needs_target for loss in self.components)
        self._needs_index = any(loss.needs_index for loss in self.components)
        self._make_captures()
        if teacher is not None:
            check_not_shared(student, teacher.module, "teacher", _COPY)

    def set_teacher(self, teacher: FrozenTeacher) -> None:
        """Give the losses a teacher that was not there at first."""
        self.detach()
        self.teacher = teacher
        self._make_captures()

    def check_teacher(self) -> None:
        """Raise a ``ValueError`` if a loss needs a teacher and there is none."""
        needy = [name for name, loss in self._leaves if loss.needs_teacher]
        if self.teacher is None and needy:
            raise ValueError(
                f"The loss part(s) {needy} need a teacher; pass teacher=..., or add a callback that makes one of the "
                "student: EMATeacher or BornAgain."
            )

    @property
    def components(self) -> list[DistillationLoss]:
        """The losses that read layers or logits themselves, those inside a hybrid included, in order."""
        return [loss for _, loss in self._leaves]

    @property
    def changes_over_time(self) -> bool:
        """Whether a loss has a schedule or a stage."""
        return bool(self._timed)

    def set_moment(self, moment: Moment) -> None:
        """Tell the losses how far the run has come."""
        for loss in self._timed:
            loss.set_moment(moment)

    def stages(self) -> list[Stage]:
        """Return the stages that the losses want before the main training."""
        return [loss.stage for _, loss in self._staged if loss.stage is not None]

    def stage_at(self, moment: Moment) -> list[tuple[str, DistillationLoss]]:
        """Return the losses, with their names, whose stage is going on; without a teacher yet, not those of it."""
        return [
            (name, loss)
            for name, loss in self._staged
            if loss.stage is not None
            and loss.stage.includes(moment)
            and (self._teacher_ready or not loss.needs_teacher)
        ]

    def _make_captures(self) -> None:
        self.plan_anew()
        layers = [name for loss in self.components for name in loss.student_layers]
        with_call = self.calls is not None
        self.capture = Capture(self.student, layers, "student", calls=self.calls or "one", with_call=with_call)
        self.teacher_capture: Capture | None = None
        if self.teacher is not None:
            layers = [name for loss in self.components for name in loss.teacher_layers]
            self.teacher_capture = Capture(self.teacher.module, layers, "teacher", with_call=False)

    def attach(self) -> None:
        """Put the hooks on student and teacher, before either is first called."""
        self.capture.attach()
        if self.teacher_capture is not None:
            self.teacher_capture.attach()

    def detach(self) -> None:
        """Take the hooks off student and teacher."""
        self.capture.detach()
        if self.teacher_capture is not None:
            self.teacher_capture.detach()

    def prepare(self, batch: Any, call_student: Callable[[Any], object], module: nn.Module) -> None:
        """Put the hooks on, learn every size from one small batch, and build what depends on sizes.

        Neither BatchNorm statistics nor any random state nor the modes of the modules are changed.

        Args:
            batch: A small batch, on the student's device.
            call_student: Calls the student once on that batch.
            module: The whole module, which is put in eval mode for the probe.

        Raises:
            ValueError: If a loss cannot work on these shapes, or they contradict a checkpoint's.
        """
        self.check_teacher()
        if any(loss.needs_layers for loss in self.components):
            self._choose_layers(batch, call_student, module)
        if self.shapes is None:
            self._show_layers()
        self.attach()
        self._build_or_check(self._measure(batch, call_student, module))

    def name_layers(self, chosen: Mapping[str, Mapping[str, Any]]) -> None:
        """Give the losses that name no layers those that were chosen when a checkpoint was made."""
        waiting = [(name, loss) for name, loss in self._leaves if loss.needs_layers and name in chosen]
        if not waiting:
            return
        attached = self.capture.attached
        self.detach()
        for name, loss in waiting:
            loss.name_layers(chosen[name]["student"], chosen[name]["teacher"])
        self._make_captures()
        if attached:
            self.attach()

    def build(self, shapes: Shapes) -> None:
        """Build every component for the given shapes; called once.

        The weights that are drawn leave the random state as it is: a run sees the same batches and the same dropout
        whichever losses it has.
        """
        with isolate_rng():
            for loss in self.components:
                loss.build(shapes["student"], shapes["teacher"])
        check_not_shared(self.student, self.losses, "losses", "which the optimizer would take twice; copy them")
        self.shapes = shapes

    def recording(self) -> Recording:
        """Record the student's call inside the block."""
        return self.capture.recording()

    def run_teacher(self, batch: Any, record: Call) -> Call:
        """Run the teacher on its view of the batch, and return what its layers gave."""
        if self.teacher is None or self.teacher_capture is None or not self.teacher.ready:
            return Call()
        if record.changed_input:
            raise RuntimeError(_CHANGED_INPUT.format("student"))
        args, kwargs = self.hooks.teacher_inputs(batch, record.args, record.kwargs)
        with self.teacher_capture.recording() as seen:
            output = self.teacher(*args, **kwargs)
        if record.changed_input:
            raise RuntimeError(_CHANGED_INPUT.format("teacher"))
        seen.called, seen.args, seen.kwargs, seen.output = True, args, kwargs, output
        return seen

    def parts(self, batch: Any, read: Callable[[], Batch], records: Sequence[Call]) -> dict[str, Tensor]:
        """Evaluate every loss of the main training on a recorded step.

        Args:
            batch: The batch as the data loader gave it.
            read: Returns the batch taken apart, the same at every call: it may have been drawn.
            records: The calls of the student in this step that count.

        Returns:
            The unweighted parts by name, each the mean over the calls.

        Raises:
            RuntimeError: If a layer did not run in this step.
            ValueError: If a loss needs a target, an index or logits that are not there.
        """
        if not self._named:
            return {}
        return _mean([self._parts(batch, read, record) for record in records])

    def plan_anew(self) -> None:
        """Find out anew which losses belong to the main training; asked when a stage gets its length."""
        self._plans.clear()

    def _plan(self) -> "_Plan":
        teacher_ready = self._teacher_ready
        if teacher_ready not in self._plans:
            active = [(name, loss) for name, loss in self._leaves if loss.trains_now(teacher_ready)]
            added = {name: loss.evaluate for name, loss in self._named.items() if loss.trains_now(teacher_ready)}
            self._plans[teacher_ready] = _Plan(active, added, any(loss.needs_teacher for _, loss in active))
        return self._plans[teacher_ready]

    def _parts(self, batch: Any, read: Callable[[], Batch], record: Call) -> dict[str, Tensor]:
        plan = self._plan()
        active = plan.active
        step = self._step(batch, read, record, with_teacher=plan.with_teacher)
        if self._lacks(step):
            for name, loss in active:
                check_has(name, loss, step)
        if not self._looked_for_frozen:
            self._warn_of_frozen(active, step)
        return self._evaluate(plan.added, step)

    def stage_parts(
        self,
        batch: Any,
        read: Callable[[], Batch],
        records: Sequence[Call],
        active: Sequence[tuple[str, DistillationLoss]],
    ) -> dict[str, Tensor]:
        """Evaluate the losses whose stage is going on; the other arguments and errors are those of :meth:`parts`."""
        return _mean([self._stage_parts(batch, read, record, active) for record in records])

    def _stage_parts(
        self, batch: Any, read: Callable[[], Batch], record: Call, active: Sequence[tuple[str, DistillationLoss]]
    ) -> dict[str, Tensor]:
        step = self._step(batch, read, record, with_teacher=any(loss.needs_teacher for _, loss in active))
        return self._evaluate({name: loss.evaluate_stage for name, loss in active}, step)

    def _evaluate(self, losses: Mapping[str, Callable[[StepTensors], Tensor]], step: StepTensors) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = self.losses(
            lambda: {name: _value(name, evaluate, step) for name, evaluate in losses.items()}
        )
        return parts

    @property
    def _teacher_ready(self) -> bool:
        """Whether there is a teacher that has something to teach, or no loss needs one."""
        return self.teacher is None or self.teacher.ready

    def _lacks(self, step: StepTensors) -> bool:
        """Whether a step lacks anything that a loss may need."""
        lacks_logits = step.student_logits is None or step.teacher_logits is None
        lacks_target = self._needs_target and step.target is None
        return lacks_logits or lacks_target or (self._needs_index and step.index is None)

    def _step(self, batch: Any, read: Callable[[], Batch], record: Call, *, with_teacher: bool) -> StepTensors:
        if record.called:
            self.capture.check_ran(record)
            self.capture.check_unchanged(record, with_output=self._reads_logits)
            self.capture.check_gradients(record)
        seen = self.run_teacher(batch, record) if with_teacher else Call()
        if self.teacher_capture is not None and seen.called:
            self.teacher_capture.check_ran(seen)
            self.teacher_capture.check_unchanged(seen, with_output=False)
        needs_batch = self._needs_target or self._needs_index
        unpacked = read() if needs_batch else _NO_BATCH
        self.step = self._tensors(record, seen, unpacked)
        return self.step

    def _tensors(self, record: Call, seen: Call, unpacked: Batch) -> StepTensors:
        logits_of = self.hooks.logits_of
        return StepTensors(
            student_logits=logits_of(record.output) if record.called else None,
            teacher_logits=logits_of(seen.output) if seen.called else None,
            student_features=record.features,
            teacher_features=seen.features,
            target=unpacked.target,
            index=unpacked.index,
            teacher_ready=self._teacher_ready,
            call=lambda network: logits_of(network(*record.args, **record.kwargs)),
        )

    def _warn_of_frozen(self, active: Sequence[tuple[str, DistillationLoss]], step: StepTensors) -> None:
        """Warn once of losses that cannot teach the student, because nothing that they read of it can be trained."""
        self._looked_for_frozen = True
        frozen = [name for name, loss in active if torch.is_grad_enabled() and only_frozen(loss, step)]
        if frozen:
            rank_zero_warn(
                f"The loss part(s) {frozen} read only frozen layers of the student, so they cannot teach it; unfreeze "
                "a layer at or before those, or name later ones."
            )

    def where_not_finite(self, record: Call) -> str:
        """Return a sentence that names what is not finite in this step: input, layers, logits; for an error."""
        bad = not_finite(self.step or self._tensors(record, Call(), _NO_BATCH), self.components, record)
        if not bad:
            return "What the losses read in this step is finite, so the loss itself overflows."
        return f"Not finite in this step: {', '.join(bad)}."

    def named_losses(self) -> Mapping[str, DistillationLoss]:
        """Return the losses that are added by name, in order."""
        return self._named

    def named_leaves(self) -> list[tuple[str, DistillationLoss]]:
        """Return the losses that read layers or logits themselves, with their dotted names, in order."""
        return self._leaves

    def _show_layers(self) -> None:
        """Show the losses the layers that they read.

        Raises:
            ValueError: If a loss looks at a teacher's layers that have no weights yet.
        """
        if self.teacher is not None and self.teacher.on_meta:
            for name, loss in self._leaves:
                if type(loss).see_layers is not DistillationLoss.see_layers:
                    raise ValueError(
                        f"Part {name!r} reads the weights of the teacher's layers at set-up, but the teacher is on the "
                        "meta device; build it with its weights, or leave this loss out."
                    )
        student = original(self.student)
        teacher = None if self.teacher is None else original(self.teacher.module)
        for loss in self.components:
            mine = {name: student.get_submodule(name) for name in loss.student_layers}
            its = {} if teacher is None else {name: teacher.get_submodule(name) for name in loss.teacher_layers}
            loss.see_layers(mine, its)

    def _measure(self, batch: Any, call_student: Callable[[Any], object], module: nn.Module) -> Shapes:
        with self._probing(module), self.recording():
            call_student(batch)
            (record,) = self.capture.counting_calls()
            self.inputs = remember_call(record.args, record.kwargs)
            self.capture.check_ran(record)
            self.capture.copy_changed(record)
            seen = self._try_teacher(batch, record)
            if self.teacher_capture is not None:
                self.teacher_capture.check_ran(seen)
                self.teacher_capture.copy_changed(seen)
            self._check_first(record, seen)
            return {"student": self._shapes_of(record), "teacher": self._shapes_of(seen)}

    def _choose_layers(self, batch: Any, call_student: Callable[[Any], object], module: nn.Module) -> None:
        self.detach()
        self.capture.attach()
        with self._probing(module), self.recording(), Trace(self.student) as student:
            call_student(batch)
            (record,) = self.capture.counting_calls()
            mine = student.before(self.hooks.logits_of(record.output))
            its = self._trace_teacher(batch, record)
        self.detach()
        for name, loss in self._leaves:
            if loss.needs_layers:
                choose_layers(loss, mine, its)
                rank_zero_info(f"Part {name!r} reads student {loss.student!r} and teacher {loss.teacher!r}.")
        self._make_captures()

    @contextmanager
    def _probing(self, module: nn.Module) -> Iterator[None]:
        """Leave no trace, and ask a teacher too that has nothing to teach yet, or no weights.

        With gradients, for a step may call the student without them first, which does not count.
        """
        teacher = self.teacher
        if teacher is None:
            with undisturbed(module), torch.enable_grad(), taking_any_device(self.student):
                yield
            return
        teacher.move(device_of(self.student))
        ready, teacher.ready = teacher.ready, True
        try:
            student, guide = taking_any_device(self.student), taking_any_device(teacher.module)
            with undisturbed(module), torch.enable_grad(), student, guide:
                yield
        finally:
            teacher.ready = ready

    def _try_teacher(self, batch: Any, record: Call) -> Call:
        """Run the teacher for the first time, and say what to do if it cannot be called like the student."""
        try:
            return self.run_teacher(batch, record)
        except Exception as error:
            if record.changed_input or self.teacher is None:
                raise
            raise ValueError(
                f"The teacher {type(original(self.teacher.module)).__name__} cannot be called with what the student "
                f"was called with, {describe_call(record)}: {type(error).__name__}: {error}. Override "
                "teacher_inputs(batch, args, kwargs) to return the teacher's own (args, kwargs); if its weights are of "
                "another format than the student's, pass teacher_dtype."
            ) from error

    def _check_first(self, record: Call, seen: Call) -> None:
        """See that the outputs on the first samples have what the losses read, and that it is finite."""
        step = self._tensors(record, seen, Batch())
        for name, loss in self._leaves:
            check_has_logits(name, loss, step)
        bad = not_finite(step, self.components)
        if bad:
            raise ValueError(
                f"Not finite on the first samples of the training data: {', '.join(bad)}. Look at the weights of the "
                "model, the format that it computes in, and these samples."
            )

    def _trace_teacher(self, batch: Any, record: Call) -> list[Seen]:
        if self.teacher is None:
            return []
        with Trace(self.teacher.module) as trace:
            seen = self._try_teacher(batch, record)
        return trace.before(self.hooks.logits_of(seen.output))

    def _shapes_of(self, record: Call) -> dict[str, Shape]:
        shapes = {name: tuple(tensor.shape) for name, tensor in record.features.items()}
        logits = self.hooks.logits_of(record.output) if record.called else None
        return shapes if logits is None else {**shapes, LOGITS: tuple(logits.shape)}

    def _build_or_check(self, shapes: Shapes) -> None:
        if self.shapes is None:
            self.build(shapes)
            return
        for role, now in shapes.items():
            for layer, shape in self.shapes[role].items():
                if layer in now and (len(now[layer]) != len(shape) or width(now[layer]) != width(shape)):
                    raise ValueError(
                        f"The {role}'s {layer or 'logits'!r} has shape {now[layer]}, but its losses were built for "
                        f"{shape}; fit with the models and data that the checkpoint was made with."
                    )


def weighted_sum(base: Tensor | None, parts: Mapping[str, Tensor], losses: Mapping[str, DistillationLoss]) -> Tensor:
    """Add the weighted parts to the task term, in order.

    Args:
        base: The weighted task term, ``None`` without one.
        parts: The unweighted parts by name.
        losses: The components, which know their weights.
    """
    total = base
    for name, value in parts.items():
        weight = losses[name].weight_now
        term = value if weight == 1.0 else weight * value
        total = term if total is None else total + term
    if total is None:
        raise ValueError("There is neither a task loss nor a distillation loss to train with.")
    return total


def _mean(calls: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(calls) == 1:
        return calls[0]
    return {name: add_up([parts[name] for parts in calls]) / len(calls) for name in calls[0]}


def _value(name: str, evaluate: Callable[[StepTensors], Tensor], step: StepTensors) -> Tensor:
    try:
        return evaluate(step)
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise ValueError(
            f"Part {name!r} normalises over the batch in its projector, which this batch of one sample does not allow; "
            "use DataLoader(..., drop_last=True) or another batch size."
        ) from error
