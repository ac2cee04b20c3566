"""The READMEs say what is true: examples run as written, links lead somewhere, tables are those of the code."""

import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest

from lightning_kd import losses
from lightning_kd.losses.strategies import DistillationStrategyType
from tests import support
from tests.support import processes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LOSSES = (ROOT / "lightning_kd" / "losses" / "README.md").read_text()
FOLDERS = ("examples", "lightning_kd", "tests")
PAGES = [ROOT / "README.md", *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("README.md")))]
PAGES += sorted((ROOT / "examples" / "guides").glob("*.md"))
SHORT = "max_epochs=1, accelerator='cpu', enable_progress_bar=False"


def block(comment, text=README):
    """The code under an HTML comment."""
    return re.search(rf"<!-- {comment} -->\n```\w+\n(.*?)```", text, re.DOTALL).group(1)


def section(heading, text=README):
    """The text under a heading."""
    return re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE).group(1)


def rows(text):
    """The cells of each row of the table in a text, without its heading."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def ran(command, folder):
    """Run a command as in a clone, but write to another folder."""
    (folder / "examples").symlink_to(ROOT / "examples")
    environment = processes.inherited(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    (done,) = processes.run([command], cwd=folder, environment=environment, limit=300)
    return done.stdout + done.stderr


def test_it_is_one_page():
    lines = README.splitlines()
    assert len(lines) <= 175
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_only_tables_are_wider_than_a_line_of_code(page):
    assert [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_the_first_command_is_the_main_one():
    command = 'python -m pip install -e ".[examples]" && lightning-kd fit --config examples/digits/hybrid.yaml\n'
    assert re.search(r"```bash\n(.*?)```", README, re.DOTALL).group(1) == command


def test_continuous_integration_finds_the_test_command():
    assert block("test command") == 'python -m pip install -e ".[test]" && python -m pytest -n 2\n'


def test_the_example_of_ten_lines_runs_and_leaves_a_student(tmp_path):
    code = block("example")
    assert len([line for line in code.splitlines() if line]) == 10
    short = re.sub(r"max_epochs=\d+", SHORT, code)
    assert short != code
    ran([sys.executable, "-c", short], tmp_path)
    assert (tmp_path / "student.safetensors").is_file()


def test_the_example_of_five_lines_runs_and_prints_what_the_readme_shows(tmp_path):
    (tmp_path / "my.yaml").write_text(block("yaml"))
    assert len(block("yaml").splitlines()) == 5
    program, *arguments = shlex.split(block("yaml command"))
    assert program == "lightning-kd"
    assert "my.yaml" in arguments
    short = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    printed = ran([sys.executable, "-m", "lightning_kd", *arguments, *short], tmp_path)
    shown = re.search(r"```text\n(.*?)```", README, re.DOTALL).group(1)
    for line in [line for line in shown.splitlines() if re.match(r" |parameters|loss part", line)]:
        assert line in printed
    assert {line.split()[0] for line in shown.splitlines() if line} <= set(printed.split())
    assert re.search(r"`(Part 'hint' reads .*?)`", README).group(1) in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)|^\[\w+\]: (\S+)$", text, flags=re.MULTILINE)
    for target in [inline or named for inline, named in targets]:
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, target
    for name in re.findall(r"\]\[(\w+)\]", text):
        assert re.search(rf"^\[{name}\]: ", text, flags=re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_and_loss_that_is_named_exists(page):
    text = page.read_text()
    for path in set(re.findall(r"(?<![\w/.])(?:examples|tests)/[\w/]+(?:\.\w+)?", text)):
        assert (ROOT / path).exists(), path
    for path in set(re.findall(r"`((?:\w+/)*\w+\.py|\w+/)`", text)):
        places = (ROOT, ROOT / "lightning_kd", page.parent)
        assert any((place / path).exists() for place in places), path
    for name in set(re.findall(r"`(\w+Loss)\b", text)) - {"CrossEntropyLoss", "DistillationLoss"}:
        assert name in {*support.exported_losses(), *support.OF_TRANSFORMERS}, name


def test_the_thirteen_strategies_are_those_of_the_code():
    members = [(f"`{member.name}`", f"`{type(member.create()).__name__}`") for member in DistillationStrategyType]
    assert [(name, loss) for name, loss, _ in rows(section("The thirteen strategies"))] == members


def test_the_table_of_losses_has_every_strategy_and_every_loss_with_its_file():
    table = rows(section("The strategies", LOSSES))
    assert [row[0] for row in table] == [f"{int(member)} `{member.name}`" for member in DistillationStrategyType]
    where = {name: [row[-1] for row in table if f"`{name}`" in row[1]] for name in support.exported_losses()}
    folder = Path(losses.__file__).parent
    own = {name: f"`{Path(inspect.getfile(getattr(losses, name))).relative_to(folder)}`" for name in where}
    assert {name: files for name, files in where.items() if len(files) != 1 or own[name] not in files[0]} == {}


def test_the_table_of_all_strategies_on_digits_has_them_all():
    text = (ROOT / "examples" / "digits" / "README.md").read_text()
    names = [row[0].strip("`") for row in rows(section("All thirteen strategies, untuned", text))]
    assert names == ["no teacher", *(member.name for member in DistillationStrategyType)]


@pytest.mark.slow
def test_the_picture_is_what_its_script_draws(tmp_path):
    picture = re.search(r"!\[.+?\]\((.+?)\)", README).group(1)
    script = ROOT / "examples" / "digits" / "picture.py"
    ran([sys.executable, str(script), "--output", str(tmp_path / "drawn.svg")], tmp_path)
    assert (tmp_path / "drawn.svg").read_text() == (ROOT / picture).read_text()
