"""Tests of the losses of tokens."""
