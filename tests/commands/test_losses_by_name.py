"""Losses by the names of strategies, in every form; and one option of one loss, over what a file says."""

import pytest
import yaml

from lightning_kd import DistillationModule, DistillationStrategyType
from lightning_kd.commands.fit import run
from lightning_kd.losses.naming import names_of

from .conftest import FIT

# the teachers here are untrained, of which the doctor warns
pytestmark = pytest.mark.filterwarnings("ignore:.*batch normalisation.*has seen a batch")


@pytest.fixture
def losses_of(fit_with):
    """The losses that a command would use, as its configuration prints them."""

    def read(*words, change=()):
        code, out, err = fit_with(*words, "--print_config", change=change)
        assert code == 0, err
        return yaml.safe_load(out)["model"]["losses"]

    return read


LIST = "\n    - {class_path: KDLoss, init_args: {temperature: 5.0, weight: 0.3}}\n    - HintLoss"
FORMS = {
    "names of strategies": " [RESPONSE_BASED, feature_based]",
    "names of classes": " [KDLoss, lightning_kd.losses.HintLoss]",
    "names that are logged": " [kd, hint]",
    "a strategy as a class": " [{class_path: RESPONSE_BASED, init_args: {temperature: 4.0}}, {class_path: hint}]",
    "options below the name": " [{RESPONSE_BASED: {temperature: 4.0}}, {HintLoss: }]",
    "a mapping": " {kd: {temperature: 4.0}, FEATURE_BASED: }",
    "a mapping of classes": " {KDLoss: {init_args: {temperature: 4.0}}, HintLoss: {}}",
    "a mapping to classes": " {kd: {class_path: KDLoss, init_args: {temperature: 4.0}}, hint: {class_path: HintLoss}}",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_means_the_same_losses(form, losses_of):
    kd, hint = losses_of(change=[(LIST, form)])
    assert (kd["class_path"], hint["class_path"]) == ("lightning_kd.losses.KDLoss", "lightning_kd.losses.HintLoss")
    heads = {"head": None, "teacher_head": None}
    assert kd["init_args"] == {
        "temperature": 4.0,
        "standardize": False,
        "hard": False,
        "binary": False,
        **heads,
        "weight": 1.0,
    }


def test_losses_inside_a_loss_are_named_in_the_same_forms(losses_of):
    form = " {hybrid: {losses: {RESPONSE_BASED: {temperature: 2.0}, hybrid: {losses: [attention_based]}}}}"
    (outer,) = losses_of(change=[(LIST, form)])
    kd, inner = outer["init_args"]["losses"]
    assert (kd["class_path"], kd["init_args"]["temperature"]) == ("lightning_kd.losses.KDLoss", 2.0)
    assert inner["init_args"]["losses"][0]["class_path"] == "lightning_kd.losses.ATLoss"


@pytest.mark.parametrize(
    "words",
    [
        ["--model.losses=[relation_based, RKDLoss]"],
        ["--model.losses", "[{RELATION_BASED: {weight: 1}}, rkd]"],
        ["--model.losses=rkd", "--model.losses+=RELATION_BASED"],
    ],
)
def test_strategies_are_named_on_the_command_line(words, losses_of):
    assert [loss["class_path"] for loss in losses_of(*words)] == ["lightning_kd.losses.RKDLoss"] * 2


@pytest.mark.parametrize("strategy", DistillationStrategyType)
def test_every_strategy_names_the_class_that_it_makes(strategy, losses_of):
    (loss,) = losses_of(change=[(LIST, f" [{strategy.name}]")])
    assert loss["class_path"].rpartition(".")[2] == type(strategy.create()).__name__ == strategy.component.__name__


@pytest.mark.parametrize(
    "words",
    [
        ["--model.losses.kd.temperature=2"],
        ["--model.losses.kd.init_args.temperature", "2"],
        ["--model.losses.0.temperature", "2"],
        ["--model.losses.0.init_args.temperature=2"],
        ["--model.losses.KDLoss.temperature=2"],
        ["--model.losses.RESPONSE_BASED.temperature", "2"],
        ["--model.losses.response_based.init_args.temperature=2"],
    ],
)
def test_one_option_of_one_loss_changes_and_no_other(words, losses_of):
    before, after = losses_of(), losses_of(*words)
    assert after[0]["init_args"]["temperature"] == 2.0
    after[0]["init_args"]["temperature"] = 5.0
    assert after == before


def test_the_option_acts_wherever_it_stands_and_over_what_other_words_say(losses_of):
    kd, hint, at = losses_of("--model.losses.at.p=1", "--model.losses+=ATLoss", "--model.losses.weight=3")
    assert (at["init_args"]["p"], at["init_args"]["weight"]) == (1.0, 3.0)
    assert (kd["init_args"]["weight"], hint["init_args"]["weight"]) == (0.3, 1.0)


def test_a_second_loss_of_a_class_has_the_name_that_it_is_logged_under(losses_of):
    change = [("- HintLoss", "- HintLoss\n    - {HintLoss: {weight: 2.0}}")]
    *_, first, second = losses_of("--model.losses.hint_2.weight=7", change=change)
    assert (first["init_args"]["weight"], second["init_args"]["weight"]) == (1.0, 7.0)


def test_a_schedule_is_given_part_by_part(losses_of):
    place = "--model.losses.kd.temperature"
    kd, _ = losses_of(f"{place}=CosineSchedule", f"{place}.start=8", f"{place}.end=2", f"{place}.init_args.length=3")
    schedule = kd["init_args"]["temperature"]
    assert schedule["class_path"] == "lightning_kd.schedules.CosineSchedule"
    assert [schedule["init_args"][name] for name in ("start", "end", "length")] == [8.0, 2.0, 3]
    assert kd["init_args"]["weight"] == 0.3


def test_an_option_of_a_loss_inside_a_loss(losses_of):
    change = [("- HintLoss", "- hybrid: {losses: [KDLoss, {ATLoss: {p: 3}}]}")]
    _, hybrid = losses_of("--model.losses.hybrid.losses.kd.temperature=9", change=change)
    kd, at = (loss["init_args"] for loss in hybrid["init_args"]["losses"])
    assert (kd["temperature"], at["p"]) == (9.0, 3.0)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("2.weight=1", "no loss of this name; there are kd (0), hint (1)."),
        ("at.weight=1", "no loss of this name; there are kd (0), hint (1)."),
        ("kd=DKDLoss", "expected one option of this loss"),
        ("kd.class_path=DKDLoss", "expected one option of this loss"),
        ("kd.weight.start=1", "weight is 0.3 and has no option 'start'"),
        ("kd.temperature=cold", 'KDLoss: "temperature": '),
    ],
)
def test_an_option_that_leads_nowhere_is_refused(option, said, fit_with):
    code, out, err = fit_with(f"--model.losses.{option}")
    assert (code, out) == (2, "")
    assert said in err.splitlines()[0]


def test_a_class_that_two_losses_have_does_not_say_which(fit_with):
    change = [("- HintLoss", "- HintLoss\n    - HintLoss")]
    code, _, err = fit_with("--model.losses.HintLoss.weight=2", change=change)
    assert code == 2
    assert "more than one loss of this name; there are kd (0), hint (1), hint_2 (2)." in err


def test_the_option_reaches_the_fit_and_the_saved_configuration(tmp_path):
    (tmp_path / "fit.yaml").write_text(FIT.replace("fast_dev_run: true", "max_epochs: 1, limit_train_batches: 1"))
    folder = f"--trainer.default_root_dir={tmp_path}"
    quick = ["--trainer.limit_val_batches=1", "--trainer.enable_checkpointing=false", folder]
    cli = run(["fit", f"--config={tmp_path}/fit.yaml", "--model.losses.kd.temperature=2", *quick])
    assert isinstance(cli.model, DistillationModule)
    assert names_of(list(cli.model.losses.values())) == ["kd", "hint"]
    assert (cli.model.losses["kd"].temperature, cli.model.losses["kd"].weight) == (2.0, 0.3)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["model"]["losses"][0]["init_args"]["temperature"] == 2.0
