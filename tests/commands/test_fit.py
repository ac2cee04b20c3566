"""The command line: the examples as written, composition, checkpoints without arguments, and typing errors."""

import re
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from lightning_kd import DistillationCallback, DistillationModule, DistillationStrategyType
from lightning_kd.commands.fit import run
from lightning_kd.teachers import BornAgain, from_checkpoint

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "digits"
QUICK = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=2"]


@pytest.fixture(autouse=True)
def repository_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def fit(config, folder, *options):
    quiet = ["--trainer.logger=false", f"--trainer.default_root_dir={folder}"]
    return run(["fit", f"--config={EXAMPLES / config}.yaml", *QUICK, *quiet, *options])


@pytest.mark.parametrize("config", ["response", "hint", "hybrid"])
def test_every_example_distils_and_ends_with_the_table(config, tmp_path, capsys):
    cli = fit(config, tmp_path)
    table = capsys.readouterr().out
    assert re.search(r"accuracy +99\.\d %", table)
    assert re.search(r"parameters +288,170 +3,628 +\(79\.4x fewer\)", table)
    parts = {"response": {"kd"}, "hint": {"hint"}, "hybrid": {"kd", "hint"}}[config]
    assert parts | {"task"} == {name for name, *_ in cli.model.run.shares()}


def test_the_teacher_example_trains_without_a_teacher(tmp_path):
    options = ["--trainer.callbacks=null", "--model.student.init_args.width=4"]
    cli = fit("teacher", tmp_path, *options)
    assert cli.model.teacher is None
    assert cli.trainer.callback_metrics["val/accuracy"] > 0


def test_the_example_without_a_teacher_goes_through_its_generations(tmp_path, capsys):
    cli = fit("born_again", tmp_path, "--trainer.max_epochs=3")
    (born_again,) = [c for c in cli.trainer.callbacks if isinstance(c, BornAgain)]
    assert born_again.generation == 2
    assert cli.trainer.callback_metrics["train/kd"] >= 0
    assert re.search(r"accuracy +\d+\.\d % +\d+\.\d %", capsys.readouterr().out)  # teacher and student


def test_losses_made_of_losses_and_of_networks_are_written_as_yaml(tmp_path):
    (tmp_path / "losses.yaml").write_text(
        "model:\n"
        "  losses:\n"
        "    - class_path: HybridLoss\n"
        "      init_args:\n"
        "        balance: magnitude\n"
        "        losses:\n"
        "          - class_path: KDLoss\n"
        "            init_args: {temperature: {class_path: CosineSchedule, init_args: {start: 8, end: 2, length: 3}}}\n"
        "          - class_path: HybridLoss\n"
        "            init_args: {losses: [ATLoss, {class_path: PKTLoss, init_args: {mode: mmd}}], weight: 0.5}\n"
        "    - class_path: MutualLearning\n"
        "      init_args: {peers: [{class_path: DigitsConvNet, init_args: {width: 4}}]}\n"
    )
    cli = fit("hybrid", tmp_path, f"--config={tmp_path}/losses.yaml")
    assert list(cli.model.losses) == ["hybrid", "mutual_learning"]
    shown = {name for name in cli.trainer.callback_metrics if name.startswith("train/")}
    assert {"train/hybrid/kd", "train/hybrid/hybrid", "train/mutual_learning"} <= shown
    assert cli.model.losses["hybrid"].losses[0].temperature.end == 2


SLOW = partial(pytest.param, marks=pytest.mark.slow)
FIRST, *OTHERS = DistillationStrategyType


@pytest.mark.parametrize("strategy", [None, FIRST, *map(SLOW, OTHERS)])
def test_the_table_of_thirteen_fits_each_with_few_labels(strategy):
    script = runpy.run_path(str(EXAMPLES / "strategies.py"))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        value = script["accuracy"](strategy, 5, seed=1, epochs=1)
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    assert 0 < value <= 100


def test_the_shipped_teacher_is_as_good_as_the_readme_says():
    from lightning_kd.data import DigitsConvNet, DigitsDataModule

    digits = DigitsDataModule()
    digits.setup()
    images, target = digits.held_out_set.tensors
    guide = from_checkpoint(DigitsConvNet(32, 2), EXAMPLES / "teacher.safetensors").eval()
    with torch.no_grad():
        assert (guide(images).argmax(1) == target).float().mean() >= 0.985


def test_a_loss_is_appended_on_the_command_line(tmp_path):
    cli = fit("hint", tmp_path, "--model.losses+=KDLoss", "--model.losses.temperature=3", "--model.losses.weight=0.5")
    assert list(cli.model.losses) == ["hint", "kd"]
    assert (cli.model.losses["kd"].temperature, cli.model.losses["kd"].weight) == (3.0, 0.5)


def test_optimizer_and_scheduler_are_chosen_on_the_command_line(tmp_path):
    options = ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.01"]
    scheduler = ["--model.lr_scheduler=torch.optim.lr_scheduler.ConstantLR", "--model.lr_interval=step"]
    cli = fit("response", tmp_path, *options, *scheduler)
    assert type(cli.trainer.optimizers[0]) is torch.optim.AdamW
    assert type(cli.trainer.lr_scheduler_configs[0].scheduler) is torch.optim.lr_scheduler.ConstantLR
    assert cli.trainer.lr_scheduler_configs[0].interval == "step"


def test_print_config_is_a_config(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(["fit", f"--config={EXAMPLES}/hybrid.yaml", "--print_config"])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert "standardize: false" in printed  # defaults are filled in
    (tmp_path / "printed.yaml").write_text(printed)
    options = ["--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    cli = run(["fit", f"--config={tmp_path}/printed.yaml", *QUICK, *options])
    assert list(cli.model.losses) == ["kd", "hint"]


def test_the_saved_config_fits_again(tmp_path):
    fit("hybrid", tmp_path / "first")
    options = [f"--trainer.default_root_dir={tmp_path}"]
    cli = run(["fit", f"--config={tmp_path}/first/config.yaml", *options])
    assert cli.trainer.global_step == 2


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*:UserWarning")
def test_a_checkpoint_loads_without_arguments_and_validates_tests_and_predicts(tmp_path):
    cli = fit("hybrid", tmp_path, "--trainer.enable_checkpointing=true")
    path = cli.trainer.checkpoint_callback.best_model_path
    loaded = DistillationModule.load_from_checkpoint(path, weights_only=True)
    for name, value in cli.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert list(loaded.losses) == ["kd", "hint"]
    for stage in ("validate", "test", "predict"):
        options = [f"--ckpt_path={path}", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
        config = f"--config={EXAMPLES}/hybrid.yaml"
        again = run([stage, config, *options, "--trainer.enable_progress_bar=false", "--weights_only=true"])
        assert torch.equal(again.model.student.head.weight, loaded.student.head.weight)


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("temperature", "temprature", "Option 'temprature' is not accepted"),
        ("task_weight", "task_wieght", "does not accept option 'model.task_wieght'"),
        ("KDLoss", "KDLos", "KDLos"),
    ],
)
def test_a_typing_error_in_a_config_is_named(right, wrong, words, tmp_path, capsys):
    (tmp_path / "typo.yaml").write_text((EXAMPLES / "response.yaml").read_text().replace(right, wrong))
    with pytest.raises(SystemExit) as stop:
        run(["fit", f"--config={tmp_path}/typo.yaml"])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_help_reads_well(capsys):
    for words in (["--help"], ["fit", "--help.more"]):
        with pytest.raises(SystemExit) as stop:
            run(words)
        assert not stop.value.code
    text = capsys.readouterr().out.split("--model CONFIG")[-1].split("--ckpt_path")[0]
    assert "The module that learns" in text
    assert ":class:" not in text
    assert ":meth:" not in text


def test_the_python_example_is_the_yaml_example(tmp_path, monkeypatch):
    sys.path.insert(0, str(EXAMPLES))
    try:
        import distil
    finally:
        sys.path.remove(str(EXAMPLES))
    lines = (EXAMPLES / "distil.py").read_text().split("def main")[1].strip().splitlines()
    assert len(lines) <= 30
    monkeypatch.setattr(distil.DistillationModule, "export", lambda self, path: None)
    module = distil.main(epochs=1)
    cli = run(
        [
            "fit",
            f"--config={EXAMPLES}/hybrid.yaml",
            "--trainer.max_epochs=1",
            "--trainer.logger=false",
            f"--trainer.default_root_dir={tmp_path}",
            "--model.lr_scheduler.init_args.T_max=1",
        ]
    )
    for name, value in cli.model.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name


OUTPUTS = """\
model:
  logits: null
  teacher_outputs: logits
  teacher_classes: [0, 1, 2, 3, 4, 5, 6, 7, 9, 8]
  teacher_inputs:
    class_path: lightning_kd.teachers.Chain
    init_args:
      parts:
        - class_path: lightning_kd.teachers.Renormalize
          init_args: {mean: [0.5], std: [0.5], to_mean: [0.5], to_std: [0.5]}
        - class_path: lightning_kd.teachers.Resize
          init_args: {size: 8}
"""


def test_how_outputs_are_read_is_written_as_yaml_and_comes_back_from_the_checkpoint(tmp_path):
    (tmp_path / "outputs.yaml").write_text(OUTPUTS)
    plain = fit("response", tmp_path).trainer.callback_metrics
    cli = fit("response", tmp_path, f"--config={tmp_path}/outputs.yaml")
    values = cli.trainer.callback_metrics
    assert values["val/teacher_accuracy"] < 0.85 < plain["val/teacher_accuracy"]  # two classes of ten are exchanged
    assert [type(part).__name__ for part in cli.model.teacher_view.parts] == ["Renormalize", "Resize"]
    cli.trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.output_options.plain() == {"teacher_outputs": "logits", "teacher_classes": [*range(8), 9, 8]}
    assert loaded.teacher_view.options() == cli.model.teacher_view.options()


def test_an_option_of_outputs_is_set_on_the_command_line(tmp_path):
    keys = "--model.teacher_inputs=lightning_kd.teachers.Resize"
    cli = fit(
        "response", tmp_path, "--model.teacher_classes=[1,0,2,3,4,5,6,7,8,9]", keys, "--model.teacher_inputs.size=8"
    )
    assert cli.model.output_options.teacher_classes[:2] == [1, 0]
    assert cli.model.teacher_view.size == 8


def test_the_callback_takes_the_same_options_from_yaml(tmp_path, monkeypatch):
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringModel

    (tmp_path / "callback.yaml").write_text(
        "trainer:\n"
        "  accelerator: cpu\n"
        "  logger: false\n"
        "  callbacks:\n"
        "    - class_path: lightning_kd.DistillationCallback\n"
        "      init_args:\n"
        "        teacher: {class_path: torch.nn.Linear, init_args: {in_features: 32, out_features: 5}}\n"
        "        losses: [{class_path: lightning_kd.losses.KDLoss, init_args: {head: 1, teacher_head: aux}}]\n"
        "        logits: main\n"
        "        teacher_logits: 2\n"
        "        teacher_outputs: probabilities\n"
        "        teacher_classes: [4, 2]\n"
        "        student_classes: [1, 0]\n"
        "        teacher_inputs: {class_path: lightning_kd.teachers.Keys, init_args: {drop: [mask]}}\n"
    )
    monkeypatch.setattr(sys, "argv", ["fit.py", f"--config={tmp_path}/callback.yaml"])
    cli = LightningCLI(BoringModel, run=False, save_config_callback=None, seed_everything_default=False)
    (callback,) = [one for one in cli.trainer.callbacks if isinstance(one, DistillationCallback)]
    assert callback.output_options.plain() == {
        "logits": "main",
        "teacher_logits": 2,
        "teacher_outputs": "probabilities",
        "teacher_classes": [4, 2],
        "student_classes": [1, 0],
    }
    assert callback.teacher_view.drop == ["mask"]
    assert (callback.losses["kd"].head, callback.losses["kd"].teacher_head) == (1, "aux")
