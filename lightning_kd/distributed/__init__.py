"""Several processes: gathering samples, sharding by FSDP2, whole states of split networks, and unused parameters.

May import ``capture`` only. Begin with ``gather.py``. Without a process group every function here does nothing.
To exchange something new, write a function that every process calls, and test it with two processes.
"""
