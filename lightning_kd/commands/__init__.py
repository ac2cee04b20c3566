"""The command line, one file a command.

May import everything; nothing imports it. Begin with ``main.py``, whose table names the commands.
To add a command, write ``commands/NAME.py`` with a function that takes a list of words, and one line in that table.
"""
