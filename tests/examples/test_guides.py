"""The guides: every block of code runs, in the order of its page, as a reader would run it."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

from lightning_kd.commands.main import COMMANDS
from tests.test_readme import SHORT

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "examples" / "guides").glob("*.md"))
PAGES = [ROOT / "examples" / "README.md", *GUIDES]
NEEDS = {"text.md": "transformers"}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:The `.*dataloader` does not have many workers",
    "ignore:None of the teacher's",  # which a page brings without weights, for none can be loaded here
)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_every_block_runs(page, tmp_path, monkeypatch):
    pytest.importorskip(NEEDS.get(page.name, "torch"))
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    given = {"__name__": "guide"}
    for number, code in enumerate(blocks(page, "python")):
        short = re.sub(r"max_epochs=\d+", SHORT, code)
        exec(compile(short, f"{page.name}, block {number}", "exec"), given)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short_and_has_only_languages_that_are_tested(page):
    assert len(page.read_text().splitlines()) <= 100
    assert set(re.findall(r"^```(\w+)", page.read_text(), re.MULTILINE)) <= {"python", "bash", "yaml", "text"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_names_files_and_extras_that_exist(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in "".join(blocks(page, "bash")).splitlines():
        asked = re.search(r"lightning_kd\[(.*?)\]", line)
        assert set(asked.group(1).split(",") if asked else []) <= set(extras), line
        assert all((ROOT / path).exists() for path in re.findall(r"examples/[\w/.]+", line)), line
        program, *words = line.split()
        assert program != "lightning-kd" or words[0] in COMMANDS, line


def test_every_guide_is_named_on_the_first_page():
    first = PAGES[0].read_text()
    assert [page.name for page in GUIDES if f"(guides/{page.name})" not in first] == []
