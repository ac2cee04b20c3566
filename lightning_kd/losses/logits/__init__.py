"""Losses that compare the outputs of student and teacher, one file a method.

May import the files of ``losses`` beside this folder. Begin with ``kd.py``. To add one, follow ``losses/README.md``.
"""
