"""Metrics that compare a student with its teacher."""

from lightning_kd.metrics.agreement import Agreement as Agreement
from lightning_kd.metrics.comparison import Comparison as Comparison
