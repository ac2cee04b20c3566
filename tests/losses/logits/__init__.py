"""Tests of the losses that compare the outputs of student and teacher."""
