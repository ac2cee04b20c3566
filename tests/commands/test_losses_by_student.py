"""Losses of several students in YAML and on the command line: one list for all, or a list for each."""

import re
from pathlib import Path

import pytest
import yaml

from lightning_kd.commands.fit import run
from lightning_kd.data import DigitsConvNet
from lightning_kd.losses import HintLoss, KDLoss

from .conftest import FIT

# the teachers here are untrained, of which the doctor warns
pytestmark = pytest.mark.filterwarnings("ignore:.*batch normalisation.*has seen a batch")

ONE = "  student: {class_path: DigitsConvNet, init_args: {width: 2}}\n"
TWO = """\
  students:
    small: {class_path: DigitsConvNet, init_args: {width: 4}}
    tiny: {class_path: DigitsConvNet, init_args: {width: 2}}
"""
LIST = "\n    - {class_path: KDLoss, init_args: {temperature: 5.0, weight: 0.3}}\n    - HintLoss"
OWN = " {small: [{kd: {temperature: 2, weight: 0.5}}], tiny: [{kd: {weight: 3}}, HintLoss]}"


def brief(losses):
    """Class and options of each loss, of those options that matter here."""
    kept = ("temperature", "weight")
    return [
        (one["class_path"].rpartition(".")[2], {key: one["init_args"][key] for key in kept if key in one["init_args"]})
        for one in losses
    ]


def kd(temperature=4.0, weight=1.0):
    return "KDLoss", {"temperature": temperature, "weight": weight}


def hint(weight=1.0):
    return "HintLoss", {"weight": weight}


@pytest.fixture
def losses_of(fit_with):
    """The losses that a command would use, those of each student if each has its own."""

    def read(*words, losses=OWN):
        code, out, err = fit_with(*words, "--print_config", change=[(ONE, TWO), (LIST, losses)])
        assert code == 0, err
        found = yaml.safe_load(out)["model"]["losses"]
        return {name: brief(own) for name, own in found.items()} if isinstance(found, dict) else brief(found)

    return read


@pytest.fixture
def refused(fit_with):
    """What is said of words, or of losses, that cannot be meant: one line, and one that names the help."""

    def read(*words, losses=OWN, students=TWO):
        code, _, err = fit_with(*words, change=[(ONE, students), (LIST, losses)])
        assert code == 2
        (line,) = [one for one in err.splitlines() if "error:" in one]
        assert "Traceback" not in err
        return line

    return read


FORMS = {
    "names of strategies": " {small: [RESPONSE_BASED], tiny: [response_based, {FEATURE_BASED: {weight: 2}}]}",
    "names that are logged": " {small: [kd], tiny: [kd, {hint: {weight: 2}}]}",
    "classes": " {small: [{class_path: KDLoss}], tiny: [lightning_kd.losses.KDLoss, {class_path: HintLoss, "
    "init_args: {weight: 2}}]}",
    "mappings": " {small: {kd: }, tiny: {kd: {temperature: 4}, HintLoss: {weight: 2}}}",
    "one name": " {small: kd, tiny: [kd, {hint: {weight: 2}}]}",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_means_the_same_losses_of_each(form, losses_of):
    assert losses_of(losses=form) == {"small": [kd()], "tiny": [kd(), hint(2.0)]}


def test_a_class_beside_a_student_is_that_students_alone(losses_of):
    form = " {small: {class_path: KDLoss}, tiny: {class_path: HintLoss}}"
    assert losses_of(losses=form) == {"small": [kd()], "tiny": [hint()]}


@pytest.mark.parametrize("form", [" [kd, HintLoss]", " {kd: , hint: {weight: 1}}", " [RESPONSE_BASED, feature_based]"])
def test_a_list_is_for_all(form, losses_of):
    assert losses_of(losses=form) == [kd(), hint()]


@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_each_student_learns_from_its_own_losses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = FIT.replace(ONE, TWO).replace(LIST, OWN).replace("fast_dev_run: true", "max_steps: 2, limit_val_batches: 0")
    (tmp_path / "fit.yaml").write_text(text.replace("logger: false", "logger: false, enable_checkpointing: false"))
    cli = run(["fit", "--config", f"{tmp_path}/fit.yaml"])
    made = {name: list(member.losses.values()) for name, member in cli.model.members.items()}
    assert {name: [type(loss) for loss in own] for name, own in made.items()} == {
        "small": [KDLoss],
        "tiny": [KDLoss, HintLoss],
    }
    assert (made["small"][0].temperature, made["small"][0].weight, made["tiny"][0].weight) == (2.0, 0.5, 3.0)
    assert {"train/small/kd", "train/tiny/kd", "train/tiny/hint"} <= set(cli.trainer.callback_metrics)
    assert "train/small/hint" not in cli.trainer.callback_metrics


def test_a_later_file_gives_other_losses_and_what_is_printed_gives_the_same_again(losses_of, tmp_path, call, fit_with):
    (tmp_path / "more.yaml").write_text("model: {losses: {small: [{kd: {weight: 7}}], tiny: [HintLoss, KDLoss]}}")
    words = ("--config", f"{tmp_path}/more.yaml")
    # a class in the place of the same one keeps its options, one in the place of another starts from its own defaults
    expected = {"small": [kd(2.0, 7.0)], "tiny": [hint(), kd()]}
    assert losses_of(*words) == expected
    _, out, _ = fit_with(*words, "--print_config", change=[(ONE, TWO), (LIST, OWN)])
    (tmp_path / "printed.yaml").write_text(out)
    assert call("fit", "--config", f"{tmp_path}/printed.yaml", "--print_config")[1] == out


def test_a_file_of_losses_need_not_name_the_students(losses_of, tmp_path):
    (tmp_path / "more.yaml").write_text("model: {losses: {small: {hint: {weight: 7}}, tiny: hint}}")
    assert losses_of("--config", f"{tmp_path}/more.yaml") == {"small": [hint(7.0)], "tiny": [hint()]}


def test_a_list_of_each_over_one_for_all_and_back(losses_of):
    assert losses_of(f"--model.losses={OWN.strip()}", losses=" [HintLoss]") == {
        "small": [kd(2.0, 0.5)],
        "tiny": [kd(weight=3.0), hint()],
    }
    assert losses_of("--model.losses=[HintLoss]") == [hint()]


@pytest.mark.parametrize(
    ("words", "small", "tiny"),
    [
        (["--model.losses.tiny.kd.temperature=9"], [kd(2.0, 0.5)], [kd(9.0, 3.0), hint()]),
        (["--model.losses.tiny.1.init_args.weight", "9"], [kd(2.0, 0.5)], [kd(weight=3.0), hint(9.0)]),
        (["--model.losses.tiny=[RESPONSE_BASED]"], [kd(2.0, 0.5)], [kd()]),
        (["--model.losses.small", "hint"], [hint()], [kd(weight=3.0), hint()]),
        (["--model.losses.small+={kd: {weight: 2}}"], [kd(2.0, 0.5), kd(weight=2.0)], [kd(weight=3.0), hint()]),
        (["--model.losses={small: {kd: {weight: 2}}, tiny: {hint: }}"], [kd(2.0, 2.0)], [hint()]),
    ],
)
def test_the_command_line_changes_the_losses_of_one(words, small, tiny, losses_of):
    assert losses_of(*words) == {"small": small, "tiny": tiny}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.losses.kd.temperature=2"], "put the student first: --model.losses.small.kd.temperature."),
        (["--model.losses.tinny.kd.temperature=2"], "there is no student 'tinny'. Did you mean 'tiny'?"),
        (["--model.losses.small.hint.weight=2"], "--model.losses.small.hint: no loss of this name; there are kd (0)."),
        (["--model.losses+=hint"], "say whose they are: --model.losses.small+=..."),
        (["--model.losses.small=3"], "expected a list of losses for the student small"),
    ],
)
def test_what_no_student_has_is_refused(words, said, refused):
    assert said in refused(*words)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (" {small: [kd]}", "losses are given for ['small'], but the students are ['small', 'tiny']"),
        (" {small: [kd], tin: [kd]}", "losses are given for ['small', 'tin'], but the students are ['small', 'tiny']"),
        (" {small: [kd], tiny: [kdd]}", "\"model.losses\": there is no class 'kdd'. Did you mean 'kd'"),
        (" {small: [kd], tiny: [{kd: {temprature: 2}}]}", "'temprature' is not accepted. Did you mean 'temperature'?"),
        (" {small: [kd], tiny: []}", "Student 'tiny': The list of losses is empty"),
        (" {small: [kd], tiny: null}", "expected a list of losses for the student tiny, such as [KDLoss], got None."),
        (" 3", '"model.losses": Expected collections.abc.Sequence'),
        (" [kdd]", "\"model.losses\": there is no class 'kdd'. Did you mean 'kd' or 'kdsvd'?"),
    ],
)
def test_losses_that_cannot_be_are_refused_in_a_line(losses, said, refused):
    line = refused(losses=losses)
    assert said in line
    assert ("Expected collections.abc" in line) == (losses == " 3")  # which says nothing beside what is wrong inside


def test_losses_of_one_for_all_are_not_changed_for_one(refused):
    said = refused("--model.losses.small.kd.temperature=2", losses=" [kd]")
    assert "all students have the same losses; to give each its own, write" in said


def test_losses_by_name_are_refused_for_one_student(refused):
    assert "losses by name are those of several students" in refused(students=ONE)


def test_a_name_that_yaml_takes_for_something_else_is_refused_with_the_remedy(refused):
    line = refused(losses=" [kd]", students=TWO.replace("tiny", "no"))
    assert "A student is called False" in line
    assert "quotes make text of a name such as 'no'" in line
    named = TWO.replace("tiny", "'1'")
    assert "A student is called '1'; give a name of letters, digits and '_' that begins with a letter" in refused(
        losses=" {small: [kd], '1': [kd]}", students=named
    )


class Deep(DigitsConvNet):
    """Another network, with another default."""

    def __init__(self, width: int = 2, depth: int = 2) -> None:
        super().__init__(width, depth)


def test_another_class_for_a_student_starts_from_its_own_defaults(fit_with):
    words = [f"--model.students.small={__name__}.Deep", "--model.students.tiny.depth=3", "--print_config"]
    code, out, err = fit_with(*words, change=[(ONE, TWO)])
    assert code == 0, err
    students = yaml.safe_load(out)["model"]["students"]
    assert students["small"] == {"class_path": f"{__name__}.Deep", "init_args": {"width": 2, "depth": 2}}
    assert students["tiny"]["init_args"] == {"width": 2, "depth": 3, "num_classes": 10}


def test_the_configuration_of_the_guide_is_one_that_a_fit_takes(call, tmp_path):
    page = (Path(__file__).parents[2] / "examples" / "guides" / "many_devices.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (word,) = re.findall(r"`(--model\.losses\.tiny\S+)`", page)
    (tmp_path / "fit.yaml").write_text("seed_everything: 0\n" + block + FIT[FIT.index("data:") :])
    code, out, err = call("fit", "--config", f"{tmp_path}/fit.yaml", word, "--print_config")
    assert code == 0, err
    losses = yaml.safe_load(out)["model"]["losses"]
    assert {name: brief(own) for name, own in losses.items()} == {
        "small": [kd()],
        "tiny": [kd(temperature=2.0), ("SPLoss", {"weight": 3.0})],
    }
    assert call("fit", "--config", f"{tmp_path}/fit.yaml", word)[0] == 0
