"""A distillation inside ``Trainer.fit``: what happens at each moment of a run. ``README.md`` here lists the promises.

May import the engine and what it imports. Begin with ``run.py``, which hands each moment on to the other files.
To do something new at a moment, write a class here and let ``run.py`` call it.
"""
