"""Tables of a run.

May import ``fit`` and what it imports. Begin with ``summary.py``, the table at the end of a run.
To add a report, write a callback here that finds the run by ``fit.find``.
"""

from lightning_kd.report.summary import DistillationSummary as DistillationSummary
