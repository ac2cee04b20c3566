"""Tables and pages of a run.

May import ``fit`` and what it imports. Begin with ``summary.py``, the table at the end of a run, and ``record_run.py``,
which records a run as plain data (``record.py``), of which ``html.py`` makes a page. To add a report, write a callback
here that finds the run by ``fit.find``; for a page, hand sections to ``page.render``.
"""

from lightning_kd.report.record_run import RecordRun as RecordRun
from lightning_kd.report.summary import DistillationSummary as DistillationSummary
