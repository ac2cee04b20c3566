"""One training step: look at the student's call, ask the teacher, compare, add.

May import losses, teachers, files and what they import; nothing of Lightning's Trainer. Begin with ``step.py``.
To check something new at set-up, add a function to ``checks.py`` and call it in ``setup.py``.
"""
