"""Losses that compare the outputs of student and teacher. To add one, follow ``losses/README.md``."""
