"""Configuration files that would hang, or be read in another way than they look, are refused with key and line."""

import pytest

from lightning_kd.commands.config_files import what_is_wrong
from lightning_kd.commands.fit import run
from tests.support import processes

WRONG = {
    "itself": ("trainer: &t\n  callbacks: [*t]\n", "line 1", "'trainer' contains itself by the alias *t"),
    "itself below": ("a: 1\nmodel: &m {losses: [{b: *m}]}\n", "line 2", "'model' contains itself by the alias *m"),
    "the whole": ("&all\nmodel: *all\n", "line 1", "the file contains itself by the alias *all"),
    "twice": ("trainer: {max_steps: 1}\nmodel: {}\ntrainer: {}\n", "line 3", "'trainer' stands there for the second"),
    "twice below": (
        "model:\n  losses:\n  - {weight: 1,\n     weight: 2}\n",
        "line 4",
        "'model.losses[0].weight'",
    ),
    "nul": ('model:\n  student: "a\\0b"\n', "line 2", "'model.student' holds the character NUL"),
    "a raw nul": ("model: \x00\n", "no YAML", "unacceptable character #x0000"),
    "no yaml": ("model: [\n", "line 2", "no YAML"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("words", [["fit", "--config", "{}"], ["fit", "--config={}"], ["-c", "{}", "validate"]])
def test_one_line_tells_file_key_and_line(name, words, tmp_path, capsys):
    text, *said = WRONG[name]
    path = tmp_path / "fit.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as end:
        run([word.format(path) for word in words])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert all(words in lines[0] for words in (str(path), *said)), lines[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: &x {b: 1}\nc: *x\nd: [*x, *x]\n",
        "a: &x {b: 1}\nc: {<<: *x, b: 2}\n",
        "a: {b: 1}\nc: {b: 1}\n",
        "? [a, b]\n: 1\n",
        '{"a": {"b": [1, null]}}',
    ],
)
def test_what_yaml_allows_and_means_is_let_through(text):
    assert what_is_wrong(text) is None


def test_names_of_names_are_looked_through_once():
    """The laughter of a billion: each name stands for nine of the one before."""
    lines = ["a0: &a0 [1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    assert what_is_wrong("\n".join(lines)) is None


def test_the_command_ends_where_it_hung(tmp_path):
    path = tmp_path / "fit.yaml"
    path.write_text("a: &a\n  b: *a\n")
    command = [processes.sys.executable, "-m", "lightning_kd", "fit", "--config", str(path)]
    (done,) = processes.run([command], limit=60, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
