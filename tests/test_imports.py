"""Imports point downwards, folder by folder; a new file is under this law on its first day."""

import ast
from pathlib import Path

import pytest

import lightning_kd

ROOT = Path(lightning_kd.__file__).parent
FLOORS = [
    {"configurable", "capture", "metrics", "data"},
    {"schedules", "projectors", "distributed"},
    {"losses", "files"},
    {"functional"},
    {"teachers"},
    {"engine", "hf"},
    {"fit", "export", "named"},
    {"module", "callback", "report", "doctor", "curriculum"},
    {"cache", "comparison", "simple"},
    {"commands"},
]
ALLOWED = {room: set().union(*FLOORS[:floor], {room}) for floor, rooms in enumerate(FLOORS) for room in rooms}


def rooms_imported(source):
    """Folders, or modules at the root, that a source file imports anywhere, for type checkers too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("lightning_kd.")}


FILES = {path: path.relative_to(ROOT).parts[0].removesuffix(".py") for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("path", [p for p, room in FILES.items() if room not in ("__init__", "__main__")], ids=str)
def test_a_file_imports_its_own_folder_and_lower_floors(path):
    assert rooms_imported(path.read_text()) <= ALLOWED[FILES[path]]


def test_the_root_has_at_most_ten_modules_and_every_room_a_floor():
    assert len(list(ROOT.glob("*.py"))) <= 10
    assert set(FILES.values()) == {"__init__", "__main__", *ALLOWED}


def test_the_law_sees_a_forbidden_import():
    source = "if TYPE_CHECKING:\n    import lightning_kd.module\ndef f():\n    from lightning_kd.fit.run import A\n"
    assert rooms_imported(source + "from lightning_kd import losses\n") == {"module", "fit", "losses"}
