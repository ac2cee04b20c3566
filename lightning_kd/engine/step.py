"""One training step: look at the student's call, ask the teacher, compare, add."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_kd.capture.batch import Batch, Hooks, read_if_known
from lightning_kd.capture.call import Call
from lightning_kd.capture.call_mask import as_called, mask_of
from lightning_kd.capture.classes import class_order
from lightning_kd.capture.columns import Inputs, gives_as_is, is_label, is_of_transformers, is_own, of_teacher
from lightning_kd.capture.decoder_mask import decoder_mask, is_encoder_decoder
from lightning_kd.capture.documents import position_ids_of
from lightning_kd.capture.heads import is_output
from lightning_kd.capture.hooks import Capture
from lightning_kd.capture.rows import is_of_batch
from lightning_kd.capture.seen import Seen, seen_in
from lightning_kd.capture.store import Calls
from lightning_kd.engine.attention_choice import choose_attention
from lightning_kd.engine.blocks import show_blocks
from lightning_kd.engine.checks import check_has, check_not_shared, not_finite, scalar
from lightning_kd.engine.fused_heads import FusedHeads
from lightning_kd.engine.idle_losses import tell_of_idle
from lightning_kd.engine.labels import as_class_ids, say_of_labels
from lightning_kd.engine.layer_maps import map_layers
from lightning_kd.engine.objective import Goal, Objective
from lightning_kd.engine.one_answer import OneAnswer, may_draw
from lightning_kd.engine.positions import StepPositions
from lightning_kd.engine.reading import Reading
from lightning_kd.engine.sparse_teacher import sparse_in
from lightning_kd.losses.base import StepTensors
from lightning_kd.losses.tensors import add_up
from lightning_kd.losses.tokens.qkv import QKVRelationLoss
from lightning_kd.losses.tokens.sparse import SparseLogits
from lightning_kd.teachers.base import NO_LESSON, Lesson, Teacher

_NO_BATCH = Batch()
_AS_THEY_ARE = nullcontext()
_COPY = "which would be frozen for both; give the teacher its own copy: copy.deepcopy(student)"
_CHANGED_INPUT = (
    "The {} changed its input in place, so the other network would see something else than the batch. Set "
    "inplace=False in its first layer, or let its forward begin with x = x.clone(), or with a copy of a dictionary, a "
    "list or an object that it writes into."
)
_OTHER_ROWS = (
    "{0} reads the batch row by row, but the student was called with other values than the batch holds, so the rows "
    "may not be the same. Say {0}(..., in_order=True) if the step changes values alone and keeps the order."
)


@dataclass(slots=True)
class Terms:
    """What a step gives: the whole loss, its unweighted parts by name, and the tensors that were compared."""

    total: Tensor
    parts: dict[str, Tensor]
    tensors: StepTensors | None


class TrainingStep:
    """Computes the loss of a step for whichever door asks.

    Args:
        student: The module that learns.
        teacher: Who answers, ``None`` if no loss needs a teacher.
        objective: The losses, which say at each moment what trains.
        hooks: The door, which answers how batches and outputs are read.
        calls: Which calls of the student count, if a step calls it several times; ``None`` if the door makes the one
            call itself, by ``capture.call``.

    Raises:
        ValueError: If a layer does not exist, or student and teacher share parameters.
    """

    def __init__(
        self, student: nn.Module, teacher: Teacher | None, objective: Objective, hooks: Hooks, calls: Calls | None
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.objective = objective
        self.hooks = hooks
        self.calls = calls
        self.looked_for_idle = False
        self.told_left_out = False
        self.heads: FusedHeads | None = None
        """The output layers of both networks, where no logits stand whole; set-up finds out."""
        self.takes_mask = False
        """Whether a loss reads tokens, of which a mask of the batch may say which are padding; set-up finds out."""
        self.reads_decoder = False
        """Whether a loss reads layers of a decoder, which has a mask of its own; set-up finds out."""
        self.batch_axis = 0
        """The axis of the samples in the student's input; 1 where sequences have their positions first."""
        self.positions = StepPositions(student, may_change=calls is None, apart=self.apart)
        self.answers: OneAnswer | None = None
        """Where several students ask one teacher together, each by its number; ``None`` for one that is alone."""
        self.number = 0
        self.class_order: Tensor | None = None
        """Where the teacher has each class of the student, ``None`` if both have the same order."""
        self.watch()
        if teacher is not None and teacher.module is not None:
            check_not_shared(student, teacher.module, "teacher", _COPY)

    @property
    def teacher_ready(self) -> bool:
        """Whether there is a teacher that has something to teach, or no loss needs one."""
        return self.teacher is None or self.teacher.ready

    @property
    def _takes_mask(self) -> bool:
        """Whether to look for a mask: always where the door has read the batch anyway."""
        return self.takes_mask or self.calls is None

    def set_teacher(self, teacher: Teacher) -> None:
        """Give the losses a teacher that was not there at first."""
        self.detach()
        self.teacher = teacher
        self.watch()

    def alone(self) -> AbstractContextManager[object]:
        """Keep fits in other threads from the teacher during a block."""
        return nullcontext() if self.teacher is None else self.teacher.alone()

    def watch(self) -> None:
        """Watch the layers that the losses name."""
        self.objective.forget_goals()
        teacher = None if self.teacher is None else self.teacher.layered
        stored = self.teacher is not None and self.teacher.looks_up
        choose_attention(self.objective, self.student, self.student if teacher is None else teacher, stored=stored)
        losses = self.objective.components
        map_layers(losses, self.student, teacher, stored=self.teacher.axes if stored and self.teacher else ())
        show_blocks(losses, self.student, teacher)
        layers = [name for loss in losses for name in loss.student_layers if not is_output(name)]
        self.reading = Reading(self.hooks, losses)
        self.reading.class_order = self.class_order
        with_call = self.calls is not None
        self.capture = Capture(self.student, layers, "student", calls=self.calls or "one", with_call=with_call)
        self.capture.completed = self.positions.student
        if self.teacher is not None:
            self.positions.see_teacher(self.teacher.called)
            read = tuple(name for loss in losses for name in loss.teacher_layers if not is_output(name))
            if self.answers is not None:
                read = self.answers.watch(self.number, read, layers_only=self.reading.layers_only)
            self.teacher.watch(read)

    def attach(self) -> None:
        """Put the hooks on student and teacher, before either is first called."""
        self._settle_classes()
        self.capture.attach()
        if self.teacher is not None:
            self.teacher.attach()

    def find_again(self, student: nn.Module) -> None:
        """Move the hooks to the modules that run by now, if they are on.

        Args:
            student: The module that is the student by now.
        """
        if not self.capture.attached:
            return
        self.student = self.capture.module = self.positions.student.network = student
        self.attach()

    def thin(self) -> AbstractContextManager[None]:
        """Have both networks compute the logits of one position only, where the losses need no others."""
        return _AS_THEY_ARE if self.heads is None else self.heads.thin()

    def whole(self) -> AbstractContextManager[None]:
        """Have both networks compute all logits in calls that are no part of the step."""
        return _AS_THEY_ARE if self.heads is None else self.heads.whole()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Have both networks answer in full, without a record, in calls that are no part of the step."""
        with self.capture.pausing(), self.whole():
            yield

    def detach(self) -> None:
        """Take the hooks off student and teacher."""
        if self.heads is not None:
            self.heads.detach()
            self.heads = None
        self.capture.detach()
        if self.teacher is not None:
            self.teacher.detach()

    def terms(
        self, goal: Goal, batch: Any, read: Callable[[], Batch], calls: Sequence[Call], task: Tensor | None
    ) -> Terms:
        """Return the loss of a step and its parts.

        Args:
            goal: What trains now.
            batch: The batch as the data loader gave it.
            read: Returns the batch taken apart, the same at every call: taking it apart may draw random numbers.
            calls: The student's recorded calls that count; the parts are means over them.
            task: The unweighted task term, ``None`` without one.

        Raises:
            RuntimeError: If a layer did not run in this step.
            ValueError: If a loss needs a target, an index or logits that are not there.
        """
        tensors = None
        compared: list[dict[str, Tensor]] = []
        if goal.evaluations:
            for call in calls:
                tensors = self.look(goal, batch, read, call)
                compared.append(self._evaluate(goal, tensors))
        parts = _mean(compared)
        if task is not None and not goal.in_stage:
            parts = {"task": scalar("task", task), **parts}
        total = self.objective.total(goal, parts)
        return Terms(total, parts | self.objective.details(parts), tensors)

    def look(self, goal: Goal, batch: Any, read: Callable[[], Batch], call: Call) -> StepTensors:
        """Check a recorded call of the student, ask the teacher, and return what the losses read."""
        self.positions.check(batch, call)
        if call.called:
            self.capture.check_ran(call)
            with_output = self.objective.reads_logits or self.reading.has_layers
            self.capture.check_unchanged(call, with_output=with_output)
            self.capture.check_gradients(call)
        asked = goal.needs_teacher and self.teacher_ready
        lesson = self.ask(batch, call, read, layers_only=self.reading.layers_only) if asked else NO_LESSON
        needs_batch = self.objective.needs_target or self.objective.needs_index or self._takes_mask
        tensors = self.tensors(call, lesson, self.as_called(read(), call) if needs_batch else _NO_BATCH)
        if not goal.in_stage:
            if self._lacks(tensors):
                for name, loss in goal.active:
                    check_has(name, loss, tensors)
            if not self.looked_for_idle:
                self.looked_for_idle = True
                tell_of_idle(goal.active, tensors)
        return tensors

    def ask(
        self,
        batch: Any,
        call: Call,
        read: Callable[[], Batch] | None = None,
        *,
        first: bool = False,
        layers_only: bool = False,
    ) -> Lesson:
        """Ask the teacher about its view of the batch.

        Args:
            batch: The batch as the data loader gave it.
            call: The student's recorded call.
            read: Returns the batch taken apart, if it was.
            first: Whether this is the teacher's first answer, at set-up.
            layers_only: Whether its output is not read, so that it may stop after the layers.

        Raises:
            RuntimeError: If student or teacher changed their common input in place.
        """
        if self.teacher is None:
            return NO_LESSON
        if call.changed_input:
            raise RuntimeError(_CHANGED_INPUT.format("student"))
        if self.teacher.reads_rows and not is_of_batch(call, batch):
            raise ValueError(_OTHER_ROWS.format(type(self.teacher).__name__))
        if self.teacher.looks_up:
            look = partial(self._looked_up, batch, call, read, first)
        else:
            layers_only = layers_only and (self.answers is None or self.answers.layers_only)
            look = partial(self._seen, batch, call, first, layers_only=layers_only)
        answer = partial(self.teacher.first_answer if first else self.teacher.answer, batch)
        if self.answers is None or first or self.teacher.looks_up:
            lesson = answer(look())
        else:
            lesson = self.answers.to_call(batch, call, look, answer, may_draw=may_draw(self.hooks))
        if call.changed_input:
            raise RuntimeError(_CHANGED_INPUT.format("teacher"))
        return lesson

    def _seen(self, batch: Any, call: Call, first: bool, *, layers_only: bool) -> Call:
        """Return what a teacher is called with that computes its answer."""
        args, kwargs = self.hooks.teacher_inputs(batch, call.args, call.kwargs)
        if first:
            self._tell_left_out(call, kwargs)
        if self.positions.teacher is not None:
            self.positions.teacher.check_told(args, kwargs, batch)
            kwargs = self.positions.teacher(args, kwargs)
        return Call(args=args, kwargs=kwargs, layers_only=layers_only)

    def _looked_up(self, batch: Any, call: Call, read: Callable[[], Batch] | None, first: bool) -> Call:
        """Return what a teacher is asked that looks its answer up: the student's own call, and the rows of the batch.

        A step of the user's may mix the samples, whose rows are not known then.
        """
        as_given = (self.calls is None and not first) or is_of_batch(call, batch)
        index = None
        if as_given:
            index = (read_if_known(self.hooks, batch) if read is None else read()).index
        is_example = first and (getattr(self.hooks, "example_input_array", None) is not None or not as_given)
        return Call(of=call, index=index, is_example=is_example)

    def _logits_of_peer(self, call: Call, peer: nn.Module) -> Tensor | None:
        """Call a peer as the student was called, and return its logits."""
        if call.changed_input:
            raise RuntimeError(_CHANGED_INPUT.format("student"))
        return self.hooks.logits_of(peer(*call.args, **self.positions.of_peer(peer, call)))

    def as_called(self, read: Batch, call: Call) -> Batch:
        """Return a batch with masks and labels of a call of the student; what a method of the user's has read stays."""
        return as_called(call, read, self.student, self.batch_axis) if is_own(self.hooks.unpack_batch) else read

    def of_teacher(self, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return what the teacher takes: of the student's call, and of the batch what only the teacher takes."""
        return of_teacher(batch, args, kwargs, self.student, None if self.teacher is None else self.teacher.called)

    def settle_positions(self, batch: Any, call: Call) -> None:
        """Find out what both networks must be told of padding on the left, and of several documents in a row."""
        keys = any(isinstance(loss, QKVRelationLoss) for _, loss in self.objective.leaves)
        seen = partial(self.hooks.teacher_inputs, batch, call.args, call.kwargs)
        self.positions.settle(batch, call, seen, reads_keys=keys)

    def _tell_left_out(self, call: Call, kwargs: dict[str, Any]) -> None:
        """Say once which of the student's inputs the teacher does not take."""
        given = [name for name, value in call.kwargs.items() if isinstance(value, Tensor) and name not in kwargs]
        names = [name for name in given if not is_label(name)]
        if names and gives_as_is(self.hooks) and not self.told_left_out:
            self.told_left_out = True
            rank_zero_info(f"The teacher does not take {names}, which the student is called with, and goes without.")

    def _settle_classes(self) -> None:
        """Learn in which order the teacher has the student's classes, where both name them."""
        network, options = None if self.teacher is None else self.teacher.called, self.hooks.output_options
        chosen = options.teacher_classes is not None or options.student_classes is not None  # the user has said it
        compares = self.reading.needs_logits["teacher"] or self.reading.has_heads
        if network is None or chosen or not compares:
            return
        order = class_order(self.student, network)
        if order is not None and self.class_order is None:
            rank_zero_info("The teacher has the student's classes in another order; its logits are aligned by name.")
        self.class_order = self.reading.class_order = None if order is None else torch.tensor(order)

    def tensors(self, call: Call, lesson: Lesson, batch: Batch) -> StepTensors:
        """Return what the losses read of a call, an answer and a batch."""
        reading, training = self.reading, self.student.training
        sparse = sparse_in(lesson)
        student_logits = reading.student_logits(call, training=training)
        teacher_logits = reading.teacher_logits(lesson)
        if self.heads is not None:
            self.heads.check_returned(student_logits, teacher_logits)
        tensors = StepTensors(
            student_logits=student_logits,
            teacher_logits=teacher_logits,
            student_features=reading.features("student", call),
            teacher_features=reading.features("teacher", lesson),
            target=as_class_ids(batch.target, student_logits),
            index=batch.index,
            mask=batch.mask,
            decoder_mask=self._decoder_mask(batch) if self.reads_decoder else None,
            teacher_ready=self.teacher_ready,
            hidden=self._hidden(sparse),
            sparse=sparse,
            teacher_target=batch.teacher_target,
            teacher_mask=None if batch.teacher_target is None else self._mask_of_teacher(lesson),
            position_ids=position_ids_of(call, self.student),
            heads=None if self.heads is None else self.heads.heads,
            call=partial(self._logits_of_peer, call),
            compared_logits=self.hooks.output_options.compared(student_logits, reading.axis),
            head_of=partial(reading.head, call, lesson, training) if reading.has_heads else None,
            seen=partial(_seen, {"student": call, "teacher": lesson}, batch.target),
        )
        return tensors if batch.mask is None or batch.mask.ndim != 1 else tensors.counting(batch.mask)

    def mask_of_output(self, batch: Batch) -> Tensor | None:
        """Return the mask of the student's output, which is that of its decoder if it has one."""
        of_samples = batch.mask is not None and batch.mask.ndim == 1
        return batch.mask if of_samples or not is_encoder_decoder(self.student) else self._decoder_mask(batch)

    def _decoder_mask(self, batch: Batch) -> Tensor | None:
        """Return the mask of the decoder's tokens: a method of the user's says it itself."""
        theirs = not is_own(self.hooks.unpack_batch) and not is_of_transformers(self.student)
        return batch.mask if theirs else decoder_mask(batch)

    def _mask_of_teacher(self, lesson: Lesson) -> Tensor | None:
        network = None if self.teacher is None else self.teacher.called
        return mask_of(lesson, network) if isinstance(lesson, Call) and network is not None else None

    def _hidden(self, sparse: SparseLogits | None) -> tuple[Tensor, Tensor | SparseLogits] | None:
        if self.heads is None or self.heads.student.value is None:
            return None
        theirs = sparse if self.heads.teacher is None else self.heads.teacher.value
        return None if theirs is None else (self.heads.student.value, theirs)

    def where_not_finite(self, terms: Terms, call: Call) -> str:
        """Return a sentence that names what is not finite in a step: input, layers, logits; for an error."""
        tensors = terms.tensors or self.tensors(call, NO_LESSON, _NO_BATCH)
        bad = not_finite(tensors, self.objective.components, call)
        if not bad:
            return "What the losses read in this step is finite, so the loss itself overflows."
        return f"Not finite in this step: {', '.join(bad)}."

    def _evaluate(self, goal: Goal, tensors: StepTensors) -> dict[str, Tensor]:
        # one call of a module: FSDP2 gathers the losses' own parameters there
        parts: dict[str, Tensor] = self.objective.losses(
            lambda: {name: _value(name, evaluate, tensors) for name, evaluate in goal.evaluations.items()}
        )
        return parts

    def _lacks(self, tensors: StepTensors) -> bool:
        """Whether a step lacks anything that a loss may need."""
        lacks_logits = tensors.student_logits is None or (tensors.teacher_logits is None and tensors.sparse is None)
        lacks_target = self.objective.needs_target and tensors.target is None
        return lacks_logits or lacks_target or (self.objective.needs_index and tensors.index is None)


def _seen(calls: Mapping[str, Lesson], target: Any, role: str) -> Seen | None:
    """Return what the network of a role was called with, ``None`` if there was no call."""
    call = calls[role]
    return seen_in(call.args, call.kwargs, target) if isinstance(call, Call) and call.called else None


def _mean(calls: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(calls) < 2:
        return calls[0] if calls else {}
    return {name: add_up([parts[name] for parts in calls]) / len(calls) for name in calls[0]}


def _value(name: str, evaluate: Callable[[StepTensors], Tensor], tensors: StepTensors) -> Tensor:
    try:
        return scalar(name, evaluate(tensors))
    except (IndexError, RuntimeError) as error:
        say_of_labels(error, f"Part {name!r}", tensors.target, tensors.student_logits)
        raise
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise ValueError(
            f"Part {name!r} normalises over the batch in its projector, which this batch of one sample does not allow; "
            "use DataLoader(..., drop_last=True) or another batch size."
        ) from error
