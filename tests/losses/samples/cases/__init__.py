"""The cases of the losses that compare the samples of a batch with one another."""
