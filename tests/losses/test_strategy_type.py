"""The thirteen families, and the component that each starts with."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.commands.fit import run
from lightning_kd.data import DigitsConvNet, DigitsDataModule
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.losses.strategies import DistillationStrategyType
from lightning_kd.projectors import LinearProjector
from tests import support

NAMES = [
    "RESPONSE_BASED",
    "FEATURE_BASED",
    "ATTENTION_BASED",
    "RELATION_BASED",
    "CONTRASTIVE_BASED",
    "SIMILARITY_PRESERVING",
    "FLOW_BASED",
    "PROBABILISTIC_TRANSFER",
    "VARIATIONAL_INFORMATION",
    "FACTOR_TRANSFER",
    "NEURON_SELECTIVITY",
    "SELF_DISTILLATION",
    "HYBRID",
]


def test_names_and_numbers_are_fixed() -> None:
    assert [(s.name, s.value) for s in DistillationStrategyType] == [(name, i) for i, name in enumerate(NAMES)]


def test_every_family_is_described() -> None:
    described = re.findall(r"^- ``(\w+)``: \w", inspect.getdoc(DistillationStrategyType) or "", flags=re.MULTILINE)
    assert described == NAMES


def test_response_creates_kd() -> None:
    loss = DistillationStrategyType.RESPONSE_BASED.create(temperature=2.0, weight=0.9)
    assert isinstance(loss, KDLoss)
    assert (loss.temperature, loss.weight) == (2.0, 0.9)
    assert DistillationStrategyType(0).create().options() == KDLoss().options()


def test_feature_creates_hint() -> None:
    loss = DistillationStrategyType.FEATURE_BASED.create(student="a", teacher="b", projector=LinearProjector())
    assert isinstance(loss, HintLoss)
    assert (loss.student_layers, loss.teacher_layers) == (("a",), ("b",))


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        TypeError,
        match="KDLoss has no option 'alpha'; its options: temperature, standardize, hard, binary, head, teacher_head, "
        "weight",
    ):
        DistillationStrategyType.RESPONSE_BASED.create(alpha=0.5)


DOORS = ["module", "callback", "command line"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("strategy", DistillationStrategyType, ids=lambda s: s.name)
def test_every_strategy_trains_with_defaults_on_digits_through_every_door(
    strategy: DistillationStrategyType, door: str, tmp_path: Path
) -> None:
    """Four steps; those of two stages spend the first of them in their first."""
    loss = strategy.create()
    student, teacher = DigitsConvNet(width=4), DigitsConvNet(width=8, depth=2)
    before = support.snapshot(student)
    data = DigitsDataModule(with_index=loss.needs_index)
    options = {"max_steps": 4, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    if door == "module":
        module = DistillationModule(student, teacher, [loss], task_loss=nn.CrossEntropyLoss())
        trainer = support.trainer(**options)
        trainer.fit(module, datamodule=data)
    elif door == "callback":
        trainer = support.trainer(callbacks=[DistillationCallback(teacher, [loss])], **options)
        trainer.fit(support.UserModule(student), datamodule=data)
    else:
        trainer, student, before = through_the_command_line(loss, options, tmp_path)
    changed = [name for name, value in student.state_dict().items() if not torch.equal(value, before[name])]
    assert any("stage1" in name for name in changed)
    assert trainer.callback_metrics["train/loss"].isfinite()


def through_the_command_line(loss, options, folder):  # type: ignore[no-untyped-def]
    network = {"class_path": "DigitsConvNet", "init_args": {"width": 4}}
    wide = {"class_path": "DigitsConvNet", "init_args": {"width": 8, "depth": 2}}
    quiet = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
    config = {
        "seed_everything": 1,
        "trainer": {**options, "accelerator": "cpu", "default_root_dir": str(folder), **dict.fromkeys(quiet, False)},
        "model": {
            "student": network,
            "teacher": wide,
            "losses": [type(loss).__name__],
            "task_loss": "torch.nn.CrossEntropyLoss",
        },
        "data": {"class_path": "DigitsDataModule", "init_args": {"with_index": loss.needs_index}},
        "summary": {"enabled": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    seen = {}

    def keep(module: DistillationModule) -> None:
        seen.update(support.snapshot(module.student))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationModule, "on_fit_start", _then(DistillationModule.on_fit_start, keep))
        cli = run(["fit", "--config", str(folder / "config.yaml")])
    return cli.trainer, cli.model.student, seen


def _then(method, also):  # type: ignore[no-untyped-def]
    def both(module):  # type: ignore[no-untyped-def]
        also(module)
        method(module)

    return both
