"""Tests of exporting a student."""
