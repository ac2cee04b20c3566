"""Knowledge distillation for PyTorch Lightning: the published methods, exactly, through ``Trainer.fit``.

Public names are imported when they are first asked for. torch and Lightning take seconds to import, and the command
line has something to say before that.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_kd.callback import DistillationCallback as DistillationCallback
    from lightning_kd.capture.batch import Batch as Batch
    from lightning_kd.commands.compare import compare as compare
    from lightning_kd.curriculum.callback import Curriculum as Curriculum
    from lightning_kd.doctor import Doctor as Doctor
    from lightning_kd.export.student import export_student as export_student
    from lightning_kd.losses import DistillationLoss as DistillationLoss
    from lightning_kd.losses.strategies import DistillationStrategyType as DistillationStrategyType
    from lightning_kd.module import DistillationModule as DistillationModule
    from lightning_kd.simple.chain import distill_chain as distill_chain
    from lightning_kd.simple.distill import distill as distill
    from lightning_kd.simple.result import DistillationResult as DistillationResult
    from lightning_kd.teachers import BornAgain as BornAgain
    from lightning_kd.teachers import EMATeacher as EMATeacher

_PLACES = {
    "DistillationCallback": "callback",
    "Batch": "capture.batch",
    "compare": "commands.compare",
    "Curriculum": "curriculum.callback",
    "Doctor": "doctor",
    "export_student": "export.student",
    "DistillationLoss": "losses",
    "DistillationStrategyType": "losses.strategies",
    "DistillationModule": "module",
    "distill_chain": "simple.chain",
    "distill": "simple.distill",
    "DistillationResult": "simple.result",
    "BornAgain": "teachers",
    "EMATeacher": "teachers",
}
"""In which module of this package each public name is."""

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Import a public name, or a part of this package."""
    if name in _PLACES:
        found = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        found = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted({*globals(), *_PLACES})
