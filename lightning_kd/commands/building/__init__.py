"""A fit as its configuration describes it, built and not run, for commands that look at its parts.

May import ``commands/fit.py`` and everything below the commands. Begin with ``fit.py``.
"""
