"""Metrics that compare a student with its teacher.

May import nothing of this package but itself. Begin with ``comparison.py``, which an evaluation uses.
To add a metric, write a torchmetrics ``Metric`` here and name it in ``comparison.py``.
"""

from lightning_kd.metrics.agreement import Agreement as Agreement
from lightning_kd.metrics.comparison import Comparison as Comparison
