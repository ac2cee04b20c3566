"""Easy samples first: the callback, scores of difficulty, and the sampler that draws by them.

May import ``fit`` and what it imports. Begin with ``callback.py``.
To add a score, derive from ``Difficulty`` in ``difficulty.py``.
"""

from lightning_kd.curriculum.callback import Curriculum as Curriculum
from lightning_kd.curriculum.difficulty import Difficulty as Difficulty
from lightning_kd.curriculum.difficulty import TeacherConfidence as TeacherConfidence
from lightning_kd.curriculum.difficulty import TeacherEntropy as TeacherEntropy
from lightning_kd.curriculum.difficulty import TeacherLoss as TeacherLoss
