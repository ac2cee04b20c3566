"""Losses that compare the samples of a batch with one another. To add one, follow ``losses/README.md``."""
