"""Programs that commands start; no commands themselves.

May import all that commands may. Begin with ``arm.py``, one run of ``lightning-kd compare``.
"""
