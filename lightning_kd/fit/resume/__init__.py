"""A resumed run goes on as if nothing had happened: loops, data, random state, and what each process remembers.

May import what ``fit`` may import. Begin with ``state.py``. Private names of Lightning's loops are in ``loops.py``.
To keep something new in a checkpoint, add it to the state of its process and restore it in the same file.
"""
