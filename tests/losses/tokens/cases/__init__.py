"""The cases of the losses of tokens."""
