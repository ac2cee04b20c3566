"""One row of facts for every exported loss, one file a family; the conformance suite does the rest.

To add a loss: write a ``Case`` with its options, its inputs, two or three numbers derived by hand, the inputs that it
must refuse, and the mistakes that its numbers must reveal, and put it into the ``CASES`` of its family's file. Public
functions that are no losses go into that file's ``HELPERS``; the file of their family tests them.
"""

import pkgutil
from importlib import import_module

from tests.losses.case import Case

_FAMILIES = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
CASES: tuple[Case, ...] = tuple(case for family in _FAMILIES for case in family.CASES)
HELPERS: frozenset[str] = frozenset(name for family in _FAMILIES for name in getattr(family, "HELPERS", ()))
