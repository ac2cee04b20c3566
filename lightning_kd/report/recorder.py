"""Collects what a record holds, while one distillation runs. It looks at the run and changes nothing of it."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_kd.capture.call import Call
from lightning_kd.capture.heads import is_module
from lightning_kd.capture.networks import device_of, num_parameters, original, undisturbed
from lightning_kd.capture.probe import is_shared_out
from lightning_kd.engine.step import Terms
from lightning_kd.fit.evaluation import Compared
from lightning_kd.fit.part_gradients import products_of_gradients, why_not
from lightning_kd.fit.run import DistillationRun
from lightning_kd.report.cost import operations_of, seconds_of
from lightning_kd.report.curve import Curve
from lightning_kd.report.kept import Kept
from lightning_kd.report.likeness import Likeness
from lightning_kd.report.record import Record
from lightning_kd.teachers.frozen import FrozenTeacher

_WAIT = 64
"""Steps that wait on an accelerator before their values are looked at."""


class Recorder:
    """Collects what a record of one run holds.

    Args:
        run: The run.
        points: How many points each curve has at most.
        rows: How many rows of the validation data are kept at most.
        pictures: How many images are kept at most.
        class_names: The names of the classes, ``None`` to look for them in the data set.
    """

    def __init__(
        self, run: DistillationRun, *, points: int, rows: int, pictures: int, class_names: list[str] | None
    ) -> None:
        self.run = run
        self.rows, self.pictures = rows, pictures
        self.class_names = class_names
        self.curve = Curve(points)
        self.metrics: list[dict[str, Any]] = []
        self.gradients: list[dict[str, Any]] = []
        self.layers: dict[str, Any] | None = None
        self.notes: dict[str, str] = {}
        """Why something was not measured, by its name."""
        self.costs: dict[str, dict[str, Any]] = {"student": {}, "teacher": {}}
        self.kept = Kept(rows, pictures)
        self._epoch = 0
        self._look_at_gradients = False
        self._waiting: list[tuple[int, Tensor, list[str], dict[str, float]]] = []
        self._began = time.monotonic()

    def start(self, trainer: Trainer, earlier: Record | None) -> None:
        """Begin to look, and go on from an earlier record of the same run."""
        if earlier is not None and trainer.global_step:
            step = trainer.global_step
            self.curve.restore(earlier.facts["curve"], before=step)
            self.metrics = [one for one in earlier.facts["metrics"] if one["step"] <= step]
            self.gradients = [one for one in earlier.facts["gradients"] if one["step"] < step]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        reason = why_not(self.run, processes=trainer.world_size, scaled=scaled)
        if reason is not None:
            self.notes["gradients"] = reason
        self.run.lines.readers.append(self.see_step)
        self.run.evaluation.readers.append(self.see_answers)

    def stop(self) -> None:
        """Look no more."""
        if self.see_step in self.run.lines.readers:  # a run that has ended has taken it away
            self.run.lines.readers.remove(self.see_step)
        if self.see_answers in self.run.evaluation.readers:
            self.run.evaluation.readers.remove(self.see_answers)

    # Training

    def start_epoch(self, epoch: int) -> None:
        """Look at the gradients of the next step, in the first epochs and in every tenth later on."""
        self._epoch = epoch
        self._look_at_gradients = "gradients" not in self.notes and (epoch < 20 or epoch % 10 == 0)

    def see_step(self, terms: Terms, step: int) -> None:
        """Keep the values of a step; the first of an epoch shows its gradients."""
        in_stage = self.run.clock.goal.in_stage
        with torch.no_grad():
            values = torch.stack([terms.total.detach(), *[value.detach() for value in terms.parts.values()]])
        now = self.run.objective.weights()
        weights = {name: 1.0 if in_stage else float(now[name]) for name in terms.parts if in_stage or name in now}
        self._waiting.append((step, values, ["loss", *terms.parts], weights))
        if values.is_cpu or len(self._waiting) >= _WAIT:
            self._look()
        if self._look_at_gradients and not in_stage:
            self._look_at_gradients = False
            try:
                found = products_of_gradients(self.run, terms)
            except (RuntimeError, NotImplementedError) as error:  # of a graph that can be walked once only
                self.notes["gradients"] = _brief(error)
            else:
                if found is not None:
                    self.gradients.append({"epoch": self._epoch, "step": step, **found})

    def _look(self) -> None:
        for step, values, names, weights in self._waiting:
            self.curve.add(step, dict(zip(names, values.tolist(), strict=True)), weights)
        self._waiting = []

    # Evaluation

    def start_evaluation(self) -> None:
        """Begin to keep the answers of an evaluation in place of the last one's."""
        self.kept = Kept(self.rows, self.pictures)

    def see_answers(self, compared: Compared) -> None:
        """Keep what both networks say of a batch."""
        self.kept.add(compared, self.run.task.task)

    def end_evaluation(self, trainer: Trainer) -> None:
        """Keep what an evaluation gave."""
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if _is_number(value)}
        values = {name: value for name, value in logged.items() if not name.startswith("train/")}
        values |= {f"val/{name}": value for name, value in self.run.results.items()}
        self.metrics.append({"epoch": trainer.current_epoch, "step": trainer.global_step, "values": values})

    # The end

    def measure(self, trainer: Trainer) -> None:
        """Measure what needs the networks once the fit has ended: costs, and how alike the layers are."""
        student, teacher = self.run.student, self.run.teacher
        if is_shared_out(student) or (teacher is not None and teacher.module and is_shared_out(teacher.module)):
            self.notes |= dict.fromkeys(("flops", "latency", "layers"), "the networks are split over the processes")
            return
        if not self.kept.calls:
            self.notes |= dict.fromkeys(("flops", "latency", "layers"), "the fit had no validation data")
            return
        networks: dict[str, tuple[Any, Callable[[int], Any]]] = {
            "student": (student, lambda at: _called(student, self.kept.calls[at][0]))
        }
        if isinstance(teacher, FrozenTeacher) and isinstance(self.kept.calls[0][1], Call):
            networks["teacher"] = (teacher.module, lambda at: _called(teacher, self.kept.calls[at][1]))
        elif teacher is not None:
            self.notes["teacher"] = f"what {type(teacher).__name__} costs is not that of one network"
        device = device_of(student)
        with trainer.precision_plugin.forward_context(), self.run.step.apart():
            for role, (network, call) in networks.items():
                with undisturbed(network):
                    self._try("flops", role, partial(operations_of, partial(call, 0)))
                    self._try("latency", role, partial(seconds_of, partial(call, 0), device))
            if len(networks) == 2:
                with undisturbed(student), undisturbed(networks["teacher"][0]):
                    self._measure_layers(networks["student"][1], networks["teacher"][1])
            elif "layers" not in self.notes:
                self.notes["layers"] = "there is no teacher that is one network"

    def _try(self, what: str, role: str, measured: Callable[[], float]) -> None:
        try:
            self.costs[role][what] = measured()
        except Exception as error:  # a number that is missing is no reason to lose the rest
            self.notes[what] = f"the {role} gave an error, {_brief(error)}"

    def _measure_layers(self, student: Callable[[int], Any], teacher: Callable[[int], Any]) -> None:
        if self.run.step.batch_axis != 0:
            self.notes["layers"] = "the samples are not in the first axis"
            return
        reading, hooks = self.run.step.reading, self.run.step.hooks
        losses = self.run.objective.components

        def ours(at: int) -> tuple[Tensor | None, int]:
            return reading.known_logits(student(at)), self.kept.calls[at][0].rows()

        def theirs(at: int) -> tuple[Tensor | None, int]:
            output = teacher(at)
            return hooks.output_options.as_returned(output, hooks.logits_of), self.kept.calls[at][0].rows()

        read = (
            [name for loss in losses for name in loss.student_layers if is_module(name)],
            [name for loss in losses for name in loss.teacher_layers if is_module(name)],
        )
        try:
            assert isinstance(self.run.teacher, FrozenTeacher)
            likeness = Likeness(self.run.student, self.run.teacher.module, read)
            found = likeness.matrix((ours, theirs), len(self.kept.calls))
        except Exception as error:
            self.notes["layers"] = _brief(error)
            return
        if found["student"] and found["teacher"]:
            self.layers = found
        else:
            self.notes["layers"] = "no layer has one row of features for each sample"

    def record(self, trainer: Trainer, *, finished: bool) -> Record:
        """Return what was collected so far.

        Args:
            trainer: The Trainer.
            finished: Whether the fit has ended.
        """
        self._look()
        run = self.run
        teacher = None if run.teacher is None else run.teacher
        network = None if teacher is None else teacher.module
        student = original(run.student)
        classes = self.class_names or self._names_in(trainer)
        outputs = self.kept.outputs() if finished else {}
        facts = {
            "student": {"name": type(student).__name__, "parameters": num_parameters(student), **self.costs["student"]},
            "teacher": None
            if teacher is None
            else {
                "name": type(teacher if network is None else original(network)).__name__,
                "parameters": None if network is None else num_parameters(network),
                **self.costs["teacher"],
            },
            "losses": {name: type(loss).__name__ for name, loss in run.objective.named.items()},
            "run": {
                "steps": trainer.global_step,
                "epochs": trainer.current_epoch,
                "finished": finished,
                "seconds": time.monotonic() - self._began,
                "device": _device_name(device_of(student)),
                "precision": str(trainer.precision),
                "processes": trainer.world_size,
                "threads": torch.get_num_threads(),
                "batch": self.kept.calls[0][0].rows() if self.kept.calls else None,
                "rows": self.kept.count,
                "seen": self.kept.seen,
            },
            "curve": self.curve.state(),
            "metrics": self.metrics,
            "gradients": self.gradients,
            "layers": self.layers,
            "classes": classes,
            "notes": self.notes | ({"outputs": self.kept.why} if self.kept.why else {}),
            "torch": torch.__version__,
        }
        return Record(facts, outputs)

    def _names_in(self, trainer: Trainer) -> list[str] | None:
        """Return the names of the classes that the validation data says it has, as torchvision's data sets do."""
        loaders = trainer.val_dataloaders
        first = loaders[0] if isinstance(loaders, list | tuple) and loaders else loaders
        names = getattr(getattr(first, "dataset", None), "classes", None)
        whole = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        return [str(name) for name in names] if whole and names else None


def _called(network: Callable[..., Any], call: Call) -> Any:
    return network(*call.args, **call.kwargs)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
