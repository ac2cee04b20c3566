"""Losses that compare named layers of student and teacher. To add one, follow ``losses/README.md``."""
