"""The student alone, as a file of its own: weights, ``torch.export`` and ONNX.

May import ``engine``, ``files`` and what they import. Begin with ``student.py``.
To add a format, name it in ``Format``, write it in ``student.py``, and the tests of export run it.
"""

from lightning_kd.export.student import Format as Format
from lightning_kd.export.student import export_student as export_student
