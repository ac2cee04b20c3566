"""Several students through the command line: trained, looked at, exported one by one, refused in a line."""

import re

import pytest
import torch
import yaml

from lightning_kd.data import DigitsConvNet
from lightning_kd.teachers import from_checkpoint

from .conftest import FIT

# the teachers here are untrained, of which the doctor warns
pytestmark = pytest.mark.filterwarnings("ignore:.*batch normalisation.*has seen a batch")

ONE = "  student: {class_path: DigitsConvNet, init_args: {width: 2}}\n"
TWO = """\
  students:
    small: {class_path: DigitsConvNet, init_args: {width: 4}}
    tiny: {class_path: DigitsConvNet, init_args: {width: 2}}
"""
WITH_CHECKPOINT = [("fast_dev_run: true", "max_steps: 2, limit_val_batches: 1")]


def test_a_configuration_of_several_is_trained_shown_and_exported(fit_with, call, tmp_path):
    folder = f"--trainer.default_root_dir={tmp_path}"
    code, out, err = fit_with(folder, change=[(ONE, TWO), *WITH_CHECKPOINT])
    assert code == 0, err
    assert "Student 'small'" in out
    assert "Student 'tiny'" in out
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    x = torch.rand(3, 1, 8, 8)
    for name, width in {"small": 4, "tiny": 2}.items():
        whole = from_checkpoint(DigitsConvNet(width), checkpoint, prefix=f"{name}.student.").eval()
        for ending in ("safetensors", "pt2"):
            file = tmp_path / f"{name}.{ending}"
            words = ["--checkpoint", str(checkpoint), "--output", str(file), "--prefix", f"{name}.student."]
            assert call("export", *words)[0] == 0
        assert torch.equal(from_checkpoint(DigitsConvNet(width), tmp_path / f"{name}.safetensors").eval()(x), whole(x))
        assert torch.equal(torch.export.load(tmp_path / f"{name}.pt2").module()(x), whole(x))
        config = ["--config", str(tmp_path / "fit.yaml")]
        words = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / f"again.{name}.pt2")]
        assert call("export", *words, "--prefix", f"{name}.student.", *config)[0] == 0
    code, _, err = call("export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "x.pt2"))
    assert code == 2
    assert "students ['small', 'tiny']" in err
    assert "--prefix small.student." in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((ONE, ONE + TWO), "give student=... or students="),
        ((ONE, ""), "expected --model.student"),
        ((ONE, TWO.replace("small", "trainer")), "cannot be called 'trainer'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(change, words, fit_with):
    code, _, err = fit_with(change=[change])
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_a_store_is_written_for_one(fit_with, call, tmp_path):
    assert fit_with("--print_config", change=[(ONE, TWO)])[0] == 0
    code, _, err = call("cache", "--config", str(tmp_path / "fit.yaml"), "--output", str(tmp_path / "store"))
    assert code == 2
    assert "has several students" in err


TASK = ("  optimizer:", "  task_loss: torch.nn.CrossEntropyLoss\n  optimizer:")
LONG = ("fast_dev_run: true", "max_epochs: 3")
LIST = "\n    - {class_path: KDLoss, init_args: {temperature: 5.0, weight: 0.3}}\n    - HintLoss"
OWN = " {small: [{kd: {temperature: 2}}], tiny: [{kd: {temperature: 7}}, HintLoss]}"
SMALL = "student 1,702 parameters, teacher 1,009 (0.6x)"
TINY = "student 496 parameters, teacher 1,009 (2.0x)"


@pytest.fixture
def looked(call, tmp_path):
    """Call a command that looks at the configuration with several students, changed by pairs of old and new text."""

    def run(command, *words, change=((ONE, TWO), TASK, LONG, (LIST, OWN))):
        text = FIT
        for old, new in change:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "fit.yaml").write_text(text)
        more = ["--batches=2", "--fit_steps=2"] if command == "check" else ["--depth=1"]
        return call(command, "--config", f"{tmp_path}/fit.yaml", *more, *words)

    return run


def parts_of(out):
    """The part of the output of each student, by the name above it."""
    names = re.findall(r"^Student '(\w+)'$", out, re.MULTILINE)
    parts = re.split(r"^Student '\w+'\n\n", out, flags=re.MULTILINE)
    assert parts[0] == ""
    return dict(zip(names, parts[1:], strict=True))


def test_check_looks_at_each(looked):
    code, out, err = looked("check", "--strict=true")
    assert code == 1, err  # which strict asks for: the teacher was never trained
    parts = parts_of(out)
    assert list(parts) == ["small", "tiny"]
    assert SMALL in parts["small"]
    assert TINY in parts["tiny"]
    assert re.findall(r"entropy at T=(\d)", out) == ["2", "7"]
    assert [re.findall(r"^  (task|kd|hint) ", part, re.MULTILINE) for part in parts.values()] == [
        ["task", "kd"],
        ["task", "kd", "hint"],
    ]
    assert "hint: The student has 1,702 parameters, no fewer" in parts["small"]
    assert "no fewer" not in parts["tiny"]


def test_layers_shows_each_with_pairs_that_a_fit_takes(looked, fit_with):
    code, out, err = looked("layers", "--rows=16")
    assert code == 0, err
    parts = parts_of(out)
    assert list(parts) == ["small", "tiny"]
    # a convolution of 3 x 3 from 1 to 4 (or 2) channels and its batch normalisation: 9 * 4 + 2 * 4, 9 * 2 + 2 * 2
    assert re.search(r"^  stage1 +Sequential +\(16, 4, 8, 8\) +44 ", parts["small"], re.MULTILINE)
    assert re.search(r"^  stage1 +Sequential +\(16, 2, 8, 8\) +22 ", parts["tiny"], re.MULTILINE)
    # from 1 to 3 channels
    assert all(re.search(r"^  stage1 +Sequential +\(16, 3, 8, 8\) +33 ", one, re.MULTILINE) for one in parts.values())
    losses = {}
    for part in parts.values():
        losses |= yaml.safe_load(part[part.index("# Suggested pairs") :])["model"]["losses"]
    assert list(losses) == ["small", "tiny"]
    assert [len(own) for own in losses.values()] == [4, 4]
    word = f"--model.losses={yaml.safe_dump(losses, default_flow_style=True, width=10_000)}"
    assert fit_with(word, change=[(ONE, TWO)])[0] == 0


@pytest.mark.parametrize("command", ["check", "layers"])
def test_one_is_looked_at_as_among_all(command, looked):
    both = parts_of(looked(command)[1])
    code, out, err = looked(command, "--student", "tiny")
    assert code == 0, err
    assert {name: part.strip() for name, part in parts_of(out).items()} == {"tiny": both["tiny"].strip()}


@pytest.mark.parametrize("command", ["check", "layers"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tinny", "there is no student 'tinny'. Did you mean 'tiny'? There are small, tiny."),
        ("1", "there is no student '1'. There are small, tiny."),
        ("1e3", "there is no student '1e3'. There are small, tiny."),
        ("null", "there is no student 'null'. There are small, tiny."),
        ("true", "there is no student 'true'. There are small, tiny."),
        ("[tiny]", "there is no student '[tiny]'. Did you mean 'tiny'? There are small, tiny."),
    ],
)
def test_a_name_that_no_student_has_is_refused_in_a_line(command, name, said, looked):
    code, out, err = looked(command, "--student", name)
    assert (code, out, err) == (2, "", f"lightning-kd {command}: error: {said}\n")


@pytest.mark.parametrize("name", ["nan", "inf"])
def test_a_name_that_looks_like_a_number_is_a_name(name, looked):
    change = [(ONE, TWO.replace("tiny", name)), TASK, LONG]
    code, out, err = looked("layers", "--student", name, change=change)
    assert code == 0, err
    ((heading, part),) = parts_of(out).items()
    assert heading == name
    (own,) = yaml.safe_load(part[part.index("# Suggested pairs") :])["model"]["losses"]
    assert own == name


@pytest.mark.parametrize("command", ["check", "layers"])
def test_the_only_student_has_no_name(command, looked):
    code, _, err = looked(command, "--student=tiny", change=[TASK, LONG])
    assert code == 2
    assert "--student tiny: the configuration has one student, without a name; leave this out." in err


def test_check_says_whose_losses_are_refused(looked):
    wrong = "tiny: [{HintLoss: {student: stage9, teacher: stage1}}]"
    code, _, err = looked("check", change=[(ONE, TWO), TASK, LONG, (LIST, f" {{small: [kd], {wrong}}}")])
    assert code == 2
    assert "Student 'tiny': " in err
    assert "stage9" in err
    assert "Traceback" not in err
    # the pairs that are asked for need no right losses
    assert looked("layers", change=[(ONE, TWO), TASK, LONG, (LIST, f" {{small: [kd], {wrong}}}")])[0] == 0
