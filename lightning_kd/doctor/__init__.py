"""What to look at before a long fit: both networks layer by layer, and whether the teacher has something to teach.

May import ``fit`` and what it imports. Begin with ``layers.py``, or with ``findings.py`` for what is warned of.
"""

from lightning_kd.doctor.callback import Doctor as Doctor
