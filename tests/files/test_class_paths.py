"""The kind of what a configuration names is checked by this package, whatever the parser's version does."""

import datetime
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_kd import DistillationModule
from lightning_kd.files.class_paths import check_arguments, check_value
from lightning_kd.losses import DistillationLoss, KDLoss
from lightning_kd.schedules import Schedule
from tests.support.names import named

HERE = __name__


def annotated(width: int) -> nn.Linear:
    return nn.Linear(width, 2)


def not_annotated(width):
    return nn.Linear(width, 2)


def annotated_as_text(width: int) -> "nn.Module":
    return nn.Linear(width, 2)


def returns_text(width: int) -> str:
    return "a"


def makes_sgd(parameters: Iterable[Tensor], lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=lr)


def decay(epoch):
    return 0.5**epoch


part = functools.partial(torch.optim.SGD, lr=0.1)


class Holder(nn.Module):
    """Takes parts of every kind, and one that it does not annotate."""

    def __init__(self, inner: nn.Module, anything, maker: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()


class HolderAgain(Holder):
    """Passes on what it takes."""

    def __init__(self, more: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def spec(path, **init_args):
    return {"class_path": path, "init_args": init_args}


NET = spec("torch.nn.Linear", in_features=1, out_features=1)
SYSTEM = spec("os.system", command="false")
RIGHT = [
    (NET, nn.Module),
    (spec(f"{HERE}.annotated", width=2), nn.Module),
    (spec(f"{HERE}.annotated_as_text", width=2), nn.Module),
    (NET, nn.Module | None),
    ([NET, NET], list[nn.Module]),
    ({"a": NET}, dict[str, nn.Module]),
    (spec("lightning_kd.losses.KDLoss", temperature=2.0), DistillationLoss),
    (spec("lightning_kd.losses.KDLoss"), Sequence[DistillationLoss] | None),
    (spec("lightning_kd.schedules.CosineSchedule", start=1, end=2, length=3), float | Schedule),
    (spec("torch.optim.SGD", lr=0.1), OptimizerCallable),
    (spec(f"{HERE}.makes_sgd", lr=0.1), OptimizerCallable),
    (f"{HERE}.makes_sgd", OptimizerCallable),
    (makes_sgd, OptimizerCallable),
    (f"{HERE}.part", OptimizerCallable),
    (spec("torch.optim.lr_scheduler.StepLR", step_size=1), LRSchedulerCallable),
    (spec("torch.optim.lr_scheduler.LambdaLR", lr_lambda=f"{HERE}.decay"), LRSchedulerCallable),
    (torch.relu, Callable[[Tensor], Tensor]),
    (decay, Callable[[int], float]),
    (spec("datetime.timedelta", seconds=1), datetime.timedelta | None),
    (spec("torch.nn.Linear", in_features=1), Any),
    (spec("datetime.timedelta", seconds=1), Any),
    (spec(f"{HERE}.Holder", inner=NET, anything=NET, maker=spec(f"{HERE}.annotated")), nn.Module),
    (spec(f"{HERE}.HolderAgain", inner=NET, anything=3), nn.Module),
    (spec("KDLoss"), DistillationLoss),
    ("a word", Callable[[], nn.Module] | str),
    ("model-1.safetensors", str | list[str] | None),
    (3, float),
]
WRONG = [
    (SYSTEM, nn.Module),
    (SYSTEM, OptimizerCallable),
    (SYSTEM, LRSchedulerCallable),
    (SYSTEM, Any),
    (SYSTEM, float | Schedule),
    (SYSTEM, Callable),
    (SYSTEM, Literal["a"]),
    ("os.system", OptimizerCallable),
    ("os.system", Callable),
    (os.system, OptimizerCallable),
    (os.system, Callable[..., Any]),
    (eval, Callable[[str], float]),
    (spec("subprocess.Popen", args="false"), Any),
    (spec("subprocess.Popen", args="false"), object),
    (os.getcwd, Callable),
    (spec("lightning.pytorch.cli.os.system", command="false"), Any),
    (spec("functools.partial", func="os.system"), Any),
    (functools.partial(os.system, "false"), Callable),
    (spec("builtins.eval", source="1"), OptimizerCallable),
    (spec("torch.hub.load", repo_or_dir="a/b", model="c"), nn.Module),
    (spec("torch.load", f="a.pt"), Any),
    (spec("torch.nn.Linear", in_features=1), OptimizerCallable),
    (spec("torch.nn.Nothing"), Any),
    (spec(f"{HERE}.not_annotated", width=2), nn.Module),
    (spec(f"{HERE}.not_annotated", width=2), Any),
    (spec(f"{HERE}.returns_text", width=2), nn.Module),
    (spec(f"{HERE}.decay", epoch=2), OptimizerCallable),
    ([NET, SYSTEM], list[nn.Module]),
    ({"a": SYSTEM}, dict[str, nn.Module]),
    (spec("lightning_kd.losses.KDLoss", temperature=SYSTEM), DistillationLoss),
    (spec("torch.optim.SGD", lr=SYSTEM), OptimizerCallable),
    (spec(f"{HERE}.Holder", inner=SYSTEM, anything=1), nn.Module),
    (spec(f"{HERE}.Holder", inner=NET, anything=SYSTEM), nn.Module),
    (spec(f"{HERE}.Holder", inner=NET, anything=[{"deep": SYSTEM}]), nn.Module),
    (spec(f"{HERE}.Holder", inner=NET, anything=1, maker=SYSTEM), nn.Module),
    (spec(f"{HERE}.HolderAgain", inner=SYSTEM, anything=1), nn.Module),
    ({"class_path": f"{HERE}.HolderAgain", "dict_kwargs": {"inner": SYSTEM}}, nn.Module),
    (spec("torch.optim.lr_scheduler.LambdaLR", lr_lambda="os.system"), LRSchedulerCallable),
    (spec("lightning.pytorch.callbacks.LambdaCallback", on_fit_start=SYSTEM), list[Callback] | Callback | None),
    (spec("lightning.pytorch.callbacks.LambdaCallback", on_fit_start="os.system"), list[Callback] | Callback | None),
]


@pytest.mark.parametrize(("value", "hint"), RIGHT, ids=named)
def test_what_is_expected_is_accepted(value, hint):
    check_value(value, hint, "model.part")


@pytest.mark.parametrize(("value", "hint"), WRONG, ids=str)
def test_what_is_not_expected_is_refused_with_path_and_place(value, hint):
    with pytest.raises(ValueError, match=r'^Parser key "model\.part.*": .* is not what is expected here'):
        check_value(value, hint, "model.part")


def test_the_message_names_the_kind_and_the_place_within():
    with pytest.raises(ValueError, match=r'"model\.optimizer".*derives from torch\.optim\.\w*\.?Optimizer, or a func'):
        check_arguments(DistillationModule, {"optimizer": SYSTEM}, "model")
    losses = [spec("lightning_kd.losses.KDLoss"), spec("lightning_kd.losses.KDLoss", temperature=SYSTEM)]
    with pytest.raises(ValueError, match=r'"model\.losses\.1\.init_args\.temperature": \'os\.system\''):
        check_arguments(DistillationModule, {"losses": losses}, "model")


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (DistillationModule, "student"),
        (DistillationModule, "optimizer"),
        (DistillationModule, "task_weight"),
        (Trainer, "callbacks"),
        (Trainer, "strategy"),
        (Trainer, "plugins"),
        (KDLoss, "temperature"),
        (LightningDataModule, "no such argument"),
    ],
)
def test_the_hints_of_a_constructor_are_found(made, name):
    with pytest.raises(ValueError, match=r"os\.system"):
        check_arguments(made, {name: SYSTEM}, "here")


def test_nothing_is_imported_to_look_a_path_up():
    with pytest.raises(ValueError, match="antigravity"):
        check_value(spec("antigravity.fly"), Any, "model.part")
