"""Knowledge distillation for PyTorch Lightning: the published methods, exactly, through ``Trainer.fit``."""

from lightning_kd.callback import DistillationCallback as DistillationCallback
from lightning_kd.capture.batch import Batch as Batch
from lightning_kd.commands.compare import compare as compare
from lightning_kd.curriculum.callback import Curriculum as Curriculum
from lightning_kd.doctor import Doctor as Doctor
from lightning_kd.export.student import export_student as export_student
from lightning_kd.losses import DistillationLoss as DistillationLoss
from lightning_kd.losses.strategies import DistillationStrategyType as DistillationStrategyType
from lightning_kd.module import DistillationModule as DistillationModule
from lightning_kd.simple.distill import distill as distill
from lightning_kd.simple.result import DistillationResult as DistillationResult
from lightning_kd.teachers import BornAgain as BornAgain
from lightning_kd.teachers import EMATeacher as EMATeacher
