"""Imports point one way: formulas and losses know nothing of the engine, the engine nothing of the doors."""

import ast
from pathlib import Path

import pytest

import lightning_kd

ROOT = Path(lightning_kd.__file__).parent
DOORS = {"lightning_kd.module", "lightning_kd.callback", "lightning_kd.cli"}


def imported(path):
    """Names of the modules that a file imports at run time, those under TYPE_CHECKING left out."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "losses").glob("*.py")), ids=lambda p: p.name)
def test_a_loss_imports_torch_its_siblings_and_projectors_only(path):
    ours = {name for name in imported(path) if name.startswith("lightning")}
    allowed = ("lightning_kd.losses", "lightning_kd.projectors", "lightning_kd.configurable", "lightning_kd.schedules")
    assert {name for name in ours if not name.startswith(allowed)} == set()


ENGINE = [
    "distiller",
    "run",
    "capture",
    "part_log",
    "projectors",
    "batches",
    "probe",
    "stages",
    "checkpoint",
    "checkpoint_io",
    "per_process",
    "idle",
    "training_step",
    "sharding",
    "sharded_state",
]


@pytest.mark.parametrize(
    "name",
    [
        *ENGINE,
        "training_step",
        "restart",
        "random_state",
        "schedules",
        "teachers/source",
        "default_layers",
    ],
)
def test_the_engine_imports_no_door(name):
    assert imported(ROOT / f"{name}.py") & DOORS == set()


def test_the_rule_sees_a_forbidden_import(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("from lightning.pytorch import Trainer\nimport lightning_kd.module\n")
    assert imported(file) >= {"lightning.pytorch", "lightning_kd.module"}
