"""The CIFAR-100 recipes: every file as written, on fake data of the same shape, with the published numbers in it."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_kd.commands.fit import run
from lightning_kd.data import cifar_models
from tests.data.fake_torchvision import fake_torchvision  # noqa: F401

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "examples" / "cifar100"
METHODS = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem not in ("recipe", "teacher"))
# factor of the labels' loss, epochs, and factors of the losses, as published; a stage comes before the 240 epochs
PUBLISHED = {
    "kd": (0.1, 240, {"KDLoss": 0.9}),
    "hint": (1.0, 240, {"HintLoss": 100}),
    "at": (1.0, 240, {"ATLoss": 1000}),
    "sp": (1.0, 240, {"SPLoss": 3000}),
    "cc": (1.0, 240, {"CCLoss": 0.02}),
    "vid": (1.0, 240, {"VIDLoss": 1}),
    "rkd": (1.0, 240, {"RKDLoss": 1}),
    "pkt": (1.0, 240, {"PKTLoss": 30000}),
    "ab": (1.0, 270, {"ABLoss": 1}),
    "ft": (1.0, 270, {"FTLoss": 200}),
    "fsp": (1.0, 270, {"FSPLoss": 1}),
    "nst": (1.0, 240, {"NSTLoss": 50}),
    "crd": (1.0, 240, {"CRDLoss": 0.8}),
    "crd_kd": (1.0, 240, {"KDLoss": 1, "CRDLoss": 0.8}),
    "dkd": (1.0, 240, {"DKDLoss": [1 / 20, 1]}),
    "nkd": (1.0, 240, {"NKDLoss": 1}),
    "ctkd": (0.1, 240, {"CTKDLoss": 0.9}),
    "reviewkd": (1.0, 240, {"ReviewKDLoss": [1 / 20, 1]}),
    "ofd": (1.0, 240, {"OFDLoss": 0.001}),
    "dist": (1.0, 240, {"DISTLoss": 2}),
}

pytestmark = pytest.mark.usefixtures("fake_torchvision", "repository_root")


@pytest.fixture
def repository_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """Checkpoints of untrained teachers, as teacher.yaml writes those of trained ones."""
    folder = tmp_path_factory.mktemp("teachers")
    for name in ("resnet56", "vgg8"):
        torch.manual_seed(1)
        state = {f"student.{key}": value for key, value in getattr(cifar_models, name)().state_dict().items()}
        torch.save({"state_dict": state}, folder / f"{name}.ckpt")
    return folder


def fit(method, folder, *options):
    """Fit for two steps, with the files on top of each other as their comments say."""
    quick = ["max_epochs=1", "limit_train_batches=2", "limit_val_batches=1", "num_sanity_val_steps=0"]
    quiet = ["accelerator=cpu", "enable_progress_bar=false", f"default_root_dir={folder}", "logger=false"]
    trainer = [f"--trainer.{option}" for option in (*quick, *quiet)]
    files = [f"--config=examples/cifar100/{name}.yaml" for name in ("recipe", method)]
    return run(["fit", *files, *trainer, "--data.batch_size=4", *options])


def losses_of(method):
    return yaml.safe_load((RECIPES / f"{method}.yaml").read_text())["model"]["losses"]


def taught(method, teachers, folder, *options):
    # a stage of one step, so that what follows it takes the other
    stage = ["length=1", "unit=step"] if "stage_length" in losses_of(method)[-1]["init_args"] else []
    stage = [f"--model.losses.init_args.stage_{option}" for option in stage]
    path = f"--model.teacher.init_args.path={teachers}/resnet56.ckpt"
    return fit(method, folder, path, "--trainer.enable_checkpointing=false", *stage, *options)


@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_distils(method, teachers, tmp_path):
    cli = taught(method, teachers, tmp_path)
    assert cli.trainer.global_step == 2
    assert [type(loss).__name__ for loss in cli.model.losses.values()] == list(PUBLISHED[method][2])
    means = {name: mean for name, _, mean, _ in cli.model.run.shares()}
    assert {"task", *cli.model.losses} == means.keys()
    assert all(0 < mean < float("inf") for mean in means.values()), means
    assert all(one.isfinite().all() for one in cli.model.student.state_dict().values())
    assert 0 <= cli.trainer.callback_metrics["val/accuracy"] <= 1


@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_has_the_published_numbers_and_its_command(method):
    task_weight, epochs, weights = PUBLISHED[method]
    text = (RECIPES / f"{method}.yaml").read_text()
    assert f"  lightning-kd fit --config examples/cifar100/recipe.yaml --config examples/cifar100/{method}.yaml" in text
    both = [yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) for name in ("recipe", method)]
    trainer = both[0]["trainer"] | both[1]["trainer"]
    model = both[0]["model"] | both[1]["model"]
    assert (model["task_weight"], trainer["max_epochs"]) == (task_weight, epochs)
    assert trainer["logger"]["init_args"]["name"] == method
    for loss, (name, weight) in zip(model["losses"], weights.items(), strict=True):
        given = loss["init_args"].get("weight", 1.0)
        if isinstance(weight, list):
            ramp = given["init_args"]
            given = [ramp["value"] / ramp["length"], ramp["value"]]
        assert (loss["class_path"], given) == (name, weight)
        assert loss["init_args"].get("stage_length", 0) == epochs - 240


def test_the_recipe_has_the_published_optimizer_schedule_and_networks(teachers, tmp_path):
    cli = taught("kd", teachers, tmp_path)
    (optimizer,) = cli.trainer.optimizers
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    assert [group[name] for name in ("lr", "momentum", "weight_decay", "nesterov")] == [0.05, 0.9, 5e-4, False]
    scheduler = cli.trainer.lr_scheduler_configs[0].scheduler
    assert type(scheduler) is torch.optim.lr_scheduler.MultiStepLR
    assert (dict(scheduler.milestones), scheduler.gamma) == ({150: 1, 180: 1, 210: 1}, 0.1)
    assert [sum(p.numel() for p in net.parameters()) for net in (cli.model.student, cli.model.teacher)] == [
        278_324,
        861_620,
    ]
    shared = yaml.safe_load((RECIPES / "recipe.yaml").read_text())
    assert shared["data"]["init_args"] == {"root": "data", "batch_size": 64}


def test_the_teacher_that_one_command_trains_teaches_in_the_next(tmp_path):
    small = "--model.student=lightning_kd.data.cifar_models.resnet8"
    where = [f"--trainer.callbacks.init_args.dirpath={tmp_path}", "--trainer.callbacks.init_args.filename=resnet8"]
    first = fit("teacher", tmp_path, small, *where)
    assert first.model.teacher is None
    path = f"--model.teacher.init_args.path={tmp_path}/resnet8.ckpt"
    guide = "--model.teacher.init_args.model=lightning_kd.data.cifar_models.resnet8"
    second = fit("kd", tmp_path, path, guide, small, "--trainer.enable_checkpointing=false")
    for name, value in first.model.student.state_dict().items():
        assert torch.equal(value, second.model.teacher.state_dict()[name])


def test_the_teacher_file_names_the_network_it_trains():
    content = yaml.safe_load((RECIPES / "teacher.yaml").read_text())
    kept = content["trainer"]["callbacks"]["init_args"]
    shared = yaml.safe_load((RECIPES / "recipe.yaml").read_text())["model"]["teacher"]["init_args"]
    assert content["model"]["student"] == shared["model"] == "lightning_kd.data.cifar_models.resnet56"
    assert shared["path"] == f"{kept['dirpath']}/{kept['filename']}.ckpt"


def test_another_pair_is_chosen_on_the_command_line(teachers, tmp_path):
    layers = "[stage1, stage2, stage3, stage4]"
    cli = fit(
        "at",
        tmp_path,
        "--trainer.enable_checkpointing=false",
        "--model.student=lightning_kd.data.cifar_models.mobilenet_v2",
        "--model.teacher.init_args.model=lightning_kd.data.cifar_models.vgg8",
        f"--model.teacher.init_args.path={teachers}/vgg8.ckpt",
        "--model.optimizer.init_args.lr=0.01",
        f"--model.losses.init_args.student={layers}",
        f"--model.losses.init_args.teacher={layers}",
    )
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 0.01
    loss = cli.model.losses["at"]
    assert loss.student_layers == loss.teacher_layers == ("stage1", "stage2", "stage3", "stage4")
    assert loss.weight == 1000.0
    assert sum(p.numel() for p in cli.model.student.parameters()) == 812_836
