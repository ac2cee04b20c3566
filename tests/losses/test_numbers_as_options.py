"""An option that is a number says so, by its name, to whoever gives it something else."""

import inspect

import pytest

from lightning_kd import losses
from tests.support import exported_losses

LOSSES = [getattr(losses, name) for name in exported_losses()]
REQUIRED = {"student": "0", "teacher": "0"}
NUMBERS = {"float", "int", "float | None", "int | None", "Scalar", "float | lightning_kd.schedules.Schedule"}


def options():
    for loss in LOSSES:
        for name, parameter in inspect.signature(loss).parameters.items():
            annotation = parameter.annotation
            told = annotation.__name__ if isinstance(annotation, type) else str(annotation)
            if told in NUMBERS:
                yield pytest.param(loss, name, id=f"{loss.__name__}-{name}")


def test_every_loss_has_such_an_option():
    assert {case.values[0] for case in options()} == set(LOSSES)


@pytest.mark.parametrize(("loss", "name"), list(options()))
@pytest.mark.parametrize("value", ["layer3", [1.0], {}], ids=["text", "list", "dict"])
def test_what_is_no_number_is_told_by_name(loss, name, value):
    needed = {
        other: REQUIRED.get(other, 3)
        for other, parameter in inspect.signature(loss).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
    }
    told = {"stage_length": "length", "stage_lr": "lr"}.get(name, name)  # the loss hands these to its Stage
    with pytest.raises((TypeError, ValueError), match=rf"expected .*\b{told}\b.*got "):
        loss(**{**needed, name: value})
