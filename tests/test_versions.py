"""The versions that the project names are the versions that continuous integration runs."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUN = (ROOT / ".ci" / "run").read_text()
README = (ROOT / "README.md").read_text()


def pinned(name):
    lines = (ROOT / ".ci" / name).read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {package.lower(): Version(version) for package, version in pins}


def bounds():
    extras = PROJECT["optional-dependencies"]
    for text in (*PROJECT["dependencies"], *extras["test"], *extras["examples"], *extras["onnx"]):
        requirement = Requirement(text)
        (bound,) = requirement.specifier
        yield pytest.param(requirement.name.lower(), bound, id=text)


@pytest.mark.parametrize(("name", "bound"), list(bounds()))
def test_every_lower_bound_is_run(name, bound):
    assert bound.operator == ">="
    assert pinned("oldest.txt")[name] == Version(bound.version)


def test_nothing_else_is_pinned():
    assert set(pinned("oldest.txt")) == {param.values[0] for param in bounds()}


@pytest.mark.parametrize("name", ["oldest.txt", "newest.txt"])
def test_continuous_integration_runs_both_ends(name):
    assert f".ci/{name}" in RUN


def test_the_readme_names_the_versions_that_are_run():
    (line,) = [line for line in README.splitlines() if line.startswith("Tested with Python")]
    for end in ("oldest.txt", "newest.txt"):
        assert str(pinned(end)["torch"]) in line
    for package in ("lightning", "jsonargparse"):
        assert f"{package} {pinned('oldest.txt')[package]}" in line
    named = re.findall(r"3\.\d+", line.partition(";")[0])
    classified = [text.split()[-1] for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert named == classified
    assert PROJECT["requires-python"] == f">={named[0]}"
