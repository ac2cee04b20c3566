"""A class that is named anew starts from its own defaults, and nothing of the class before it is handed on unsaid."""

import inspect
import sys

import pytest
import torch
import yaml

OPTIMIZER = "  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1, momentum: 0.9}}\n"


@pytest.fixture
def printed(fit_with):
    """The configuration that a command would use, and what was said of it."""

    def read(*words, change=()):
        code, out, err = fit_with(*words, "--print_config", change=change)
        assert code == 0, err
        return yaml.safe_load(out), err

    return read


def defaults(made, **given):
    """The options of a class as its own signature has them, in the types of YAML, with some given."""
    parameters = inspect.signature(made).parameters.items()
    own = {name: parameter.default for name, parameter in parameters if name != "params"}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in {**own, **given}.items()}


def test_an_optimizer_in_yaml_has_nothing_of_the_module_s_default(printed):
    config, err = printed(change=[(", momentum: 0.9", "")])
    assert config["model"]["optimizer"]["init_args"] == defaults(torch.optim.SGD, lr=0.1)  # not AdamW's 0.01 of decay
    assert err == ""


def test_the_module_s_default_stays_where_no_class_is_named(printed):
    config, _ = printed("--model.optimizer.lr=3", change=[(OPTIMIZER, "")])
    assert config["model"]["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert config["model"]["optimizer"]["init_args"] == defaults(torch.optim.AdamW, lr=3.0)


@pytest.mark.parametrize("named", ["AdamW", "torch.optim.AdamW"])
@pytest.mark.parametrize("lr", [["--model.optimizer.lr=0.01"], ["--model.optimizer.init_args.lr", "0.01"]])
def test_another_optimizer_over_yaml_starts_from_its_own_defaults(named, lr, printed, monkeypatch):
    said = []
    monkeypatch.setattr("lightning_kd.commands.parsing.renamed.rank_zero_info", said.append)
    config, _ = printed("--model.optimizer", named, *lr)
    assert config["model"]["optimizer"]["init_args"] == defaults(torch.optim.AdamW, lr=0.01)
    (line,) = said
    assert line == "model.optimizer: AdamW starts from its own defaults, without SGD.lr, SGD.momentum."


def test_options_of_the_same_class_add_up(printed, tmp_path):
    (tmp_path / "more.yaml").write_text("model: {optimizer: {class_path: SGD, init_args: {nesterov: true}}}")
    config, _ = printed(f"-c={tmp_path}/more.yaml", "--model.optimizer.weight_decay=0.5")
    expected = defaults(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5)
    assert config["model"]["optimizer"]["init_args"] == expected


def test_options_without_their_class_are_of_the_class_before(printed, tmp_path):
    (tmp_path / "more.yaml").write_text("model: {optimizer: {init_args: {lr: 0.5}}}")
    config, _ = printed(f"--config={tmp_path}/more.yaml")
    assert config["model"]["optimizer"]["init_args"] == defaults(torch.optim.SGD, lr=0.5, momentum=0.9)


def test_a_later_file_with_another_optimizer_starts_anew(printed, tmp_path):
    (tmp_path / "more.yaml").write_text("model: {optimizer: {class_path: Adagrad, init_args: {eps: 0.5}}}")
    config, _ = printed("-c", f"{tmp_path}/more.yaml")
    assert config["model"]["optimizer"]["init_args"] == defaults(torch.optim.Adagrad, eps=0.5)


def test_an_optimizer_in_a_file_of_its_own_starts_anew(printed, tmp_path):
    (tmp_path / "adam.yaml").write_text("{class_path: Adam, init_args: {eps: 0.5}}")
    config, _ = printed(f"--model.optimizer={tmp_path}/adam.yaml")
    assert config["model"]["optimizer"]["init_args"] == defaults(torch.optim.Adam, eps=0.5)


def test_a_loss_in_the_place_of_another_starts_anew_and_the_same_class_keeps_its_options(printed):
    config, _ = printed("--model.losses=[attention_based, HintLoss]")
    at, hint = config["model"]["losses"]
    assert at["init_args"]["weight"] == hint["init_args"]["weight"] == 1.0  # not KDLoss's 0.3
    config, _ = printed("--model.losses=[{DKDLoss: {alpha: 2}}, ATLoss]", "--model.losses.weight=7")
    dkd, at = (loss["init_args"] for loss in config["model"]["losses"])
    assert (dkd["alpha"], dkd["temperature"], dkd["weight"], at["weight"]) == (2.0, 4.0, 1.0, 7.0)
    config, _ = printed("--model.losses=[{KDLoss: {weight: 2}}, ATLoss]")
    kd = config["model"]["losses"][0]["init_args"]
    assert (kd["temperature"], kd["weight"]) == (5.0, 2.0)


def test_betas_of_one_optimizer_are_not_those_of_another(printed):
    adam = "  optimizer: {class_path: Adam, init_args: {betas: [0.5, 0.6], amsgrad: true}}\n"
    config, _ = printed("--model.optimizer=AdamW", change=[(OPTIMIZER, adam)])
    assert config["model"]["optimizer"]["init_args"] == defaults(torch.optim.AdamW)


BY_STEP = """\
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

class ByStep(StepLR):
    def __init__(self, optimizer: Optimizer, step_size: int):
        super().__init__(optimizer, step_size)
"""


def test_an_option_that_the_new_class_needs_must_be_given_for_it(fit_with, tmp_path, monkeypatch):
    (tmp_path / "schedule_of_a_user.py").write_text(BY_STEP)
    monkeypatch.syspath_prepend(str(tmp_path))
    schedule = "  lr_scheduler: {class_path: StepLR, init_args: {step_size: 3}}\n"
    words, change = ["--model.lr_scheduler", "schedule_of_a_user.ByStep"], [(OPTIMIZER, OPTIMIZER + schedule)]
    try:
        code, _, err = fit_with(*words, change=change)
        assert code == 2
        assert "model.lr_scheduler: ByStep needs 'step_size'; that of the class before it does not pass on." in err
        code, out, _ = fit_with(*words, "--model.lr_scheduler.step_size=4", "--print_config", change=change)
        assert code == 0
        assert yaml.safe_load(out)["model"]["lr_scheduler"]["init_args"] == {"step_size": 4}
    finally:
        sys.modules.pop("schedule_of_a_user", None)


def test_losses_that_a_file_appends_are_counted(printed, tmp_path):
    (tmp_path / "more.yaml").write_text("model: {losses+: [ATLoss]}")
    config, _ = printed("-c", f"{tmp_path}/more.yaml", "--model.losses=[DKDLoss, HintLoss, SPLoss]")
    weights = [loss["init_args"]["weight"] for loss in config["model"]["losses"]]
    assert weights == [1.0, 1.0, 1.0]


def test_a_schedule_of_the_rate_and_a_data_module_start_anew(printed):
    schedule = "  lr_scheduler: {class_path: ExponentialLR, init_args: {gamma: 0.5}}\n"
    words = ["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=3"]
    config, _ = printed(*words, change=[(OPTIMIZER, OPTIMIZER + schedule)])
    assert config["model"]["lr_scheduler"]["init_args"]["gamma"] == 0.1  # StepLR's own
    assert config["model"]["lr_scheduler"]["init_args"]["step_size"] == 3


def test_what_is_printed_gives_the_same_again(printed, tmp_path, call):
    config, _ = printed("--model.optimizer=AdamW", "--model.losses=[attention_based, HintLoss]")
    (tmp_path / "printed.yaml").write_text(yaml.safe_dump(config))
    code, out, _ = call("fit", "--config", f"{tmp_path}/printed.yaml", "--print_config")
    assert code == 0
    assert yaml.safe_load(out) == config
