"""An exported file says nothing of the machine that it was made on: no folder, no file, no line of the source."""

import importlib.util
import io
import re
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import pytest
import torch

from lightning_kd import export_student
from tests import support
from tests.export.test_export import assert_same_outputs

SUFFIXES = ["pt", "safetensors", "pt2", "onnx"]
SOURCE = """
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Output:
    logits: torch.Tensor


class SomeonesNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x):
        someones_line = self.body(x)
        return someones_line


class ObjectNet(SomeonesNet):
    def forward(self, x):
        return Output(super().forward(x))


class BranchNet(SomeonesNet):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda someones_value: someones_value * 2, super().forward, (x,))
"""
KINDS = ["SomeonesNet", "ObjectNet", "BranchNet"]
FOLDERS = [Path(__file__).parents[2], Path.cwd(), Path.home(), Path(torch.__file__).parents[1], Path(sys.prefix)]
FOLDERS += [Path(tempfile.gettempdir()), Path("/tmp")]
# a path from the root, a file of Python, and names of the tests; a clone has the name of this package by default
WORDS = rb"(?<=[\"' ])/[\w.-]+/|\w\.py\b|site-packages|someones_|lightning_kd|tests|support"
PATTERN = re.compile(b"|".join([WORDS, *(re.escape(str(path).encode()) for path in FOLDERS if len(path.parts) > 1)]))
X = torch.linspace(-1, 1, 24).view(6, 4)
# torch.cond compiles its branches, which torch 2.10 warns of inside of an export
branches = pytest.mark.filterwarnings("ignore:You are calling torch.compile inside torch.export region")


@pytest.fixture
def networks(tmp_path):
    """A module of Python in a folder of its own, imported under a name with the folder in it.

    It stays imported: torch's caches keep its classes, and jsonargparse imports the module of every network it finds.
    """
    path = tmp_path / "someones_folder" / "someones_networks.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("someones_folder.someones_networks", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("someones_folder", types.ModuleType("someones_folder"))
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def contents(data):
    """The bytes of a file, and the names and bytes of what is packed in it."""
    yield data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            for name in packed.namelist():
                yield name.encode()
                yield from contents(packed.read(name))


def found_in(path):
    return sorted({match for data in contents(path.read_bytes()) for match in PATTERN.findall(data)})


@branches
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_names_no_path(suffix, kind, networks, tmp_path):
    net, path = support.seeded(getattr(networks, kind), 1), tmp_path / f"a.{suffix}"
    export_student(net, path, example=X)
    assert found_in(path) == []
    for x in (X, -X[:3]):
        assert_same_outputs(path, getattr(networks, kind)(), net, x)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_leaves_a_fit_names_no_path(suffix, tmp_path):
    made = support.module()
    support.fit(made, max_epochs=1)
    made.export(tmp_path / f"a.{suffix}")
    assert found_in(tmp_path / f"a.{suffix}") == []


@branches
@pytest.mark.parametrize("kind", ["SomeonesNet", "BranchNet"])
def test_the_search_finds_what_torch_writes_by_itself(kind, networks, tmp_path):
    program = torch.export.export(getattr(networks, kind)().eval(), (X,))
    torch.export.save(program, tmp_path / "a.pt2")
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "a.onnx")
    for suffix in ("pt2", "onnx"):
        found = found_in(tmp_path / f"a.{suffix}")
        assert b"someones_" in found
        assert any(word.endswith(b".py") for word in found)


def test_a_program_still_knows_the_parts_of_the_student(networks, tmp_path):
    net, path = support.seeded(networks.SomeonesNet, 1).eval(), tmp_path / "a.pt2"
    export_student(net, path, example=X)
    parts = torch.export.unflatten(torch.export.load(path))
    assert torch.equal(parts(X), net(X))
    assert torch.equal(parts.body(X), net.body(X))
    stacks = [node.meta.get("nn_module_stack", {}).values() for node in torch.export.load(path).graph.nodes]
    kinds = {kind for stack in stacks for _, kind in stack}
    assert kinds == {
        "SomeonesNet",
        *(f"torch.nn.modules.{name}" for name in ("container.Sequential", "linear.Linear", "activation.ReLU")),
    }
