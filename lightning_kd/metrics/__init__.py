"""Metrics that compare a student with its teacher.

May import nothing of this package but itself. Begin with ``comparison.py``, which an evaluation uses, and
``fidelity.py``, which compares whole outputs. To add a metric, write a torchmetrics ``Metric`` in a file of its own,
of ``AgainstTeacher`` if it reads both networks' class scores, and name it here.
"""

from lightning_kd.metrics.against_teacher import AgainstTeacher as AgainstTeacher
from lightning_kd.metrics.agreement import Agreement as Agreement
from lightning_kd.metrics.agreement_on_mistakes import AgreementOnMistakes as AgreementOnMistakes
from lightning_kd.metrics.calibration import CalibrationError as CalibrationError
from lightning_kd.metrics.cka import LinearCKA as LinearCKA
from lightning_kd.metrics.comparison import Comparison as Comparison
from lightning_kd.metrics.confidence import ConfidenceCorrelation as ConfidenceCorrelation
from lightning_kd.metrics.fidelity import compare_outputs as compare_outputs
from lightning_kd.metrics.fidelity_kl import FidelityKL as FidelityKL
from lightning_kd.metrics.negative_flips import NegativeFlips as NegativeFlips
from lightning_kd.metrics.tokens import BitsPerByte as BitsPerByte
from lightning_kd.metrics.tokens import Perplexity as Perplexity
