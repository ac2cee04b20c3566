"""Losses that compare the samples of a batch with one another, one file a method.

May import the files of ``losses`` beside this folder. Begin with ``rkd.py``. To add one, follow ``losses/README.md``.
"""
