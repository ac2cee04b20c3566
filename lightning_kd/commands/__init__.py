"""The command line, one file a command.

May import everything; nothing imports it. Begin with ``main.py``, whose table names the commands.
To add a command, write ``commands/NAME.py`` with one function, and name it in the table of ``main.py``.
"""
