"""Several students that learn side by side of one teacher.

May import what ``fit`` may import. Begin with ``several.py``, the module that holds them. ``hooks.py`` hands the
moments of a fit on to each, and ``engine/one_answer.py`` asks the teacher once for all.
"""
