"""Tests of what is read of a network and its batches."""
