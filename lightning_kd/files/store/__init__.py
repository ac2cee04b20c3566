"""A store of a teacher's answers on the disk: shards of rows, and a manifest that says what they are.

May import ``files`` and what it may import. Begin with ``manifest.py``, then ``reader.py``.
"""
