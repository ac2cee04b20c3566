"""Files: read without running code from them, and written as a whole or not at all.

May import ``capture``, ``distributed`` and the vocabulary at the root. Begin with ``reading.py`` and ``atomic.py``.
To read a new kind of file, return tensors and plain data, and add its hostile twin to the tests of safety.
"""
