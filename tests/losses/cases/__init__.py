"""Facts of every exported loss, one file for each file of the package; the conformance suite does the rest.

To add a loss: write a ``Case`` with its options, its inputs, two or three numbers derived by hand, the inputs that it
must refuse, and the mistakes that its numbers must reveal. Put it into the ``CASES`` of ``<kind>/cases/<method>.py``,
where ``lightning_kd/losses/<kind>/<method>.py`` is the file of the loss. Public functions that are no losses go into
that file's ``HELPERS``; the file's tests test them.
"""

import pkgutil
from importlib import import_module
from types import ModuleType

from tests.losses.case import Case
from tests.losses.features import cases as features
from tests.losses.logits import cases as logits
from tests.losses.samples import cases as samples
from tests.losses.tokens import cases as tokens


def _files(name: str, path: list[str]) -> list[ModuleType]:
    return [import_module(f"{name}.{module.name}") for module in pkgutil.iter_modules(path)]


_FILES = [file for kind in (logits, features, samples, tokens) for file in _files(kind.__name__, list(kind.__path__))]
_FILES += _files(__name__, list(__path__))
CASES: tuple[Case, ...] = tuple(case for file in _FILES for case in file.CASES)
HELPERS: frozenset[str] = frozenset(name for file in _FILES for name in getattr(file, "HELPERS", ()))
