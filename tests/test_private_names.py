"""Private names of torch and Lightning are used in few files, where each has its reason beside it."""

import ast
from pathlib import Path

import pytest

import lightning_kd

ROOT = Path(lightning_kd.__file__).parent
ALLOWED = {
    "capture/private.py",
    "commands/fit.py",
    "curriculum/private.py",
    "distributed/gather.py",
    "files/checkpoint_io.py",
    "fit/first_batch.py",
    "fit/neighbours.py",
    "fit/resume/loops.py",
    "losses/base.py",
    "losses/samples/crd.py",
    "module.py",
}


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def private_names(source):
    """Names with an underscore that a file takes from another package or from an object that is not its own."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) not in ("self", "cls"):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("lightning_kd"):
            found |= {name for name in (*node.module.split("."), *(a.name for a in node.names)) if is_private(name)}
    return found


def test_private_names_of_others_are_gathered():
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in ROOT.rglob("*.py")}
    assert len(sources) > 100
    found = {path: private_names(source) for path, source in sources.items() if path not in ALLOWED}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("path", sorted(ALLOWED))
def test_a_file_that_may_use_private_names_does(path):
    assert private_names((ROOT / path).read_text())


def test_the_rule_sees_attributes_and_imports():
    source = "from torch.utils._pytree import tree_leaves\nfrom a import _b\nx._c.d\nself._own\ny.__dict__\n"
    assert private_names(source) == {"_pytree", "_b", "_c"}
