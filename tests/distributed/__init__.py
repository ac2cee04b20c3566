"""Tests of what several processes do together."""
