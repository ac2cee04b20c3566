"""Public names are there by any way of asking, and are imported only then."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

import lightning_kd
from tests.support import processes


def names_for_type_checkers():
    """Where each name comes from, as type checkers read it."""
    tree = ast.parse(Path(lightning_kd.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {line.names[0].name: line.module.removeprefix("lightning_kd.") for line in block.body}


def test_type_checkers_and_programs_find_the_same_names():
    assert names_for_type_checkers() == lightning_kd._PLACES
    assert set(lightning_kd.__all__) == set(lightning_kd._PLACES) <= set(dir(lightning_kd))


@pytest.mark.parametrize("name", lightning_kd.__all__)
def test_a_name_is_that_of_its_module(name):
    module = importlib.import_module(f"lightning_kd.{lightning_kd._PLACES[name]}")
    assert getattr(lightning_kd, name) is getattr(module, name)


def test_a_part_is_there_without_an_import_of_its_own_and_other_names_are_not():
    assert lightning_kd.losses.KDLoss.__name__ == "KDLoss"
    with pytest.raises(AttributeError, match="has no attribute 'DistillationModul'"):
        lightning_kd.DistillationModul  # noqa: B018
    with pytest.raises(ImportError):
        from lightning_kd import nothing_of_the_kind  # noqa: F401


def test_the_command_line_says_what_there_is_before_torch_is_imported():
    code = (
        "import sys; from lightning_kd.commands.main import main; sys.argv = ['lightning-kd', '--help']; main(); "
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    (done,) = processes.run([[sys.executable, "-c", code]], environment=processes.inherited(), limit=60)
    assert "usage: lightning-kd COMMAND" in done.stdout
