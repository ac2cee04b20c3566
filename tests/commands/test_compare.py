"""``lightning-kd compare``: its words, its refusals, and its passwords; no run is started here."""

import pytest
from lightning.pytorch import LightningDataModule

from lightning_kd.commands import compare as command
from tests.commands.conftest import FIT

WITH_TASK = FIT.replace("  optimizer:", "  task_loss: torch.nn.CrossEntropyLoss\n  task_weight: 0.1\n  optimizer:")


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fit.yaml").write_text(WITH_TASK)
    return str(tmp_path / "fit.yaml")


def test_the_help_fits_on_a_screen(call):
    code, out, err = call("compare", "--help")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) <= 60
    for option in ("--strategies", "--seeds", "--output", "--storage", "--retry_failed", "--config FIT.yaml"):
        assert option in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected --config FIT.yaml"),
        (["--config", "{config}"], "Give --output DIR"),
        (["--config", "{config}", "--output", "o", "--strategies", "respons_based"], "Did you mean 'response_based'?"),
        (["--config", "{config}", "--output", "o", "--seeds", "0"], "--seeds: expected 1 or more, got 0"),
        (["--config", "{config}", "--output", "o", "--seeds", "two"], "Expected"),
        (["--config", "{config}", "--output", "o", "--weights", "tund"], "tuned"),
        (["--config", "{config}", "--output", "o", "--outptu", "x"], "--output"),
        (["--config", "{config}", "--output", "o", "--trainer.max_epoch", "2"], "--trainer.max_epochs"),
        (["--config", "nothing.yaml", "--output", "o"], "nothing.yaml"),
        (["--config", "{config}", "--output", "o", "--model.task_loss", "null"], "give one, such as"),
        (["--config", "{config}", "--output", "o", "--storage", "x://ann:s3cret@h/d"], "of kind 'x'"),
    ],
)
def test_a_mistake_is_told_on_a_screen_with_exit_code_2(words, said, call, config, tmp_path):
    code, out, err = call("compare", *(word.format(config=config) for word in words))
    assert code == 2, err
    assert said in err
    assert len(err.splitlines()) <= 6
    assert "Traceback" not in err
    assert "s3cret" not in out + err
    assert not (tmp_path / "config.yaml").exists()


def test_a_password_in_a_misspelt_option_is_not_shown(call, config):
    code, out, err = call("compare", "--config", config, "--output", "o", "--storge", "postgresql://ann:s3cret@h/d")
    assert code == 2
    assert "s3cret" not in out + err
    code, out, err = call("compare", "--config", config, "--output", "o", "--storge=postgresql://ann:s3cret@h/d")
    assert code == 2
    assert "s3cret" not in out + err


def test_the_words_of_the_fit_are_read_as_fit_reads_them(config):
    base, on_cpu = command._read(["-c", config, "--model.losses.kd.temperature=2", "--trainer.max_epochs=7"], "val")
    assert on_cpu
    assert base["model"]["losses"][0]["init_args"]["temperature"] == 2
    assert (base["model"]["task_weight"], base["trainer"]["max_epochs"]) == (0.1, 7)
    assert base["data"]["class_path"] == "lightning_kd.data.DigitsDataModule"


def test_data_without_anything_held_out_is_refused(config):
    with pytest.raises(ValueError, match="has no val_dataloader, so there is nothing held out"):
        command._read(["-c", config, "--data", "tests.commands.test_compare.TrainingAlone"], "val")


class TrainingAlone(LightningDataModule):
    pass


SEVERAL = """\
  students:
    small: {class_path: DigitsConvNet, init_args: {width: 4}}
    tiny: {class_path: DigitsConvNet, init_args: {width: 2}}
"""
OF_EACH = "{small: [kd], tiny: [{kd: {temperature: 7}}, HintLoss]}"


@pytest.fixture
def several(config, tmp_path):
    one = "  student: {class_path: DigitsConvNet, init_args: {width: 2}}\n"
    assert one in WITH_TASK
    (tmp_path / "fit.yaml").write_text(WITH_TASK.replace(one, SEVERAL))
    return config


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "The configuration has the students small, tiny; say which one: --student small."),
        (["--student=tinny"], "there is no student 'tinny'. Did you mean 'tiny'? There are small, tiny."),
        (["--student", "1"], "there is no student '1'. There are small, tiny."),
    ],
)
def test_of_several_students_one_must_be_named(words, said, call, several, tmp_path):
    code, _, err = call("compare", "--config", several, "--output", "o", *words)
    assert (code, err) == (2, f"lightning-kd compare: error: {said}\n")
    assert not (tmp_path / "o").exists()


def test_the_only_student_has_no_name(call, config):
    code, _, err = call("compare", "--config", config, "--output", "o", "--student", "tiny")
    assert code == 2
    assert "the configuration has one student, without a name; leave this out." in err


@pytest.mark.parametrize("losses", [OF_EACH, "[{kd: {temperature: 7}}, HintLoss]"])
def test_the_one_of_several_is_compared_as_if_it_were_alone(losses, several, tmp_path):
    found, _ = command._read(["-c", several, f"--model.losses={losses}"], "val", "tiny")
    (tmp_path / "one.yaml").write_text(WITH_TASK)
    alone, _ = command._read(["-c", f"{tmp_path}/one.yaml"], "val")
    kd, hint = found["model"].pop("losses")
    assert alone["model"].pop("losses")[1] == hint
    assert (kd["class_path"], kd["init_args"]["temperature"]) == ("lightning_kd.losses.KDLoss", 7)
    assert found == alone
