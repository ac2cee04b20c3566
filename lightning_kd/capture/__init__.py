"""What goes into a network, through it and out of it: batches, calls, named layers, and a rehearsal without a trace.

May import nothing of this package but itself. Begin with ``hooks.py``, which records a call and the layers in it.
To read something new of a network, write a file here that takes an ``nn.Module`` and returns plain tensors.
"""
