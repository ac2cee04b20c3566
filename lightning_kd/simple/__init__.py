"""Distilling in three lines: two networks and data in, a trained network, its numbers and a report out.

May import all that the doors import, and the doors. Begin with ``distill.py``. ``prepare.py`` makes networks of names
(``pair.py``) and shows images of folders to both (``images.py``), ``data.py`` makes loaders of what users bring,
``defaults.py`` chooses what the user leaves open, and ``result.py`` is what comes out.
"""

from lightning_kd.simple.distill import distill as distill
from lightning_kd.simple.result import DistillationResult as DistillationResult
