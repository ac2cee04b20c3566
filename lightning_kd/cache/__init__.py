"""Writes a teacher's answers into a store, which ``lightning_kd.teachers.CachedTeacher`` reads.

May import ``engine``, ``teachers`` and what these may import. Begin with ``write.py``; ``files/store`` says how a store
lies on the disk.
"""

from lightning_kd.cache.prefetched import Prefetched as Prefetched
from lightning_kd.cache.verify import verify as verify
from lightning_kd.cache.write import write as write
