"""Losses that compare named layers of student and teacher, one file a method.

May import the files of ``losses`` beside this folder. Begin with ``hint.py``. To add one, follow ``losses/README.md``.
"""
