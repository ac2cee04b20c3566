"""Tables of a run."""

from lightning_kd.report.summary import DistillationSummary as DistillationSummary
