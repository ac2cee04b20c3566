"""What the commands share: how words and YAML are read, and what is said where they cannot be read.

May import everything but the commands. Begin with ``parser.py``; ``yaml_text.py`` reads a file, ``losses.py`` knows the
names of the losses, ``messages.py`` makes one line of an error, ``help.py`` makes one page of the help.
"""
