"""Whoever teaches: frozen, in eval mode, and out of the checkpoint; some teachers are made of the student itself.

May import ``files``, ``distributed``, ``capture`` and the losses. Begin with ``base.py``, then ``frozen.py``.
To add a teacher, derive from ``Teacher`` and write ``answer``.
"""

from lightning_kd.files.weights import from_checkpoint as from_checkpoint
from lightning_kd.files.weights import materialize as materialize
from lightning_kd.teachers.base import Lesson as Lesson
from lightning_kd.teachers.base import Teacher as Teacher
from lightning_kd.teachers.born_again import BornAgain as BornAgain
from lightning_kd.teachers.cached import CachedTeacher as CachedTeacher
from lightning_kd.teachers.ema import EMATeacher as EMATeacher
from lightning_kd.teachers.ensemble import Ensemble as Ensemble
from lightning_kd.teachers.frozen import FrozenTeacher as FrozenTeacher
from lightning_kd.teachers.in_batch import BatchTeacher as BatchTeacher
from lightning_kd.teachers.inputs import Chain as Chain
from lightning_kd.teachers.inputs import Keys as Keys
from lightning_kd.teachers.inputs import Renormalize as Renormalize
from lightning_kd.teachers.inputs import Resize as Resize
from lightning_kd.teachers.inputs import TeacherInputs as TeacherInputs
from lightning_kd.teachers.onnx import OnnxTeacher as OnnxTeacher
from lightning_kd.teachers.outside import FunctionTeacher as FunctionTeacher
from lightning_kd.teachers.own_columns import OwnColumns as OwnColumns
from lightning_kd.teachers.quantized import QuantizedTeacher as QuantizedTeacher
from lightning_kd.teachers.routed import RoutedTeacher as RoutedTeacher
from lightning_kd.teachers.source import TeacherSource as TeacherSource
from lightning_kd.teachers.switching import SwitchingTeacher as SwitchingTeacher
