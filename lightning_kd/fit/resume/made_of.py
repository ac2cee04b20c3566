"""What a checkpoint was made of, and how that differs from what a fit goes on with."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_kd.capture.fingerprint import as_one_number, fingerprint
from lightning_kd.capture.networks import original
from lightning_kd.configurable import Configurable
from lightning_kd.engine.objective import Objective
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.teachers.base import Teacher
from lightning_kd.teachers.frozen import FrozenTeacher

_LAYERS = ("student", "teacher", "layout")
_ABSENT = object()


def made_of(objective: Objective, teacher: Teacher | None, number: int | None, task_loss: object) -> dict[str, Any]:
    """Write down, as plain data, what changes the numbers of a run beside weights and data.

    Args:
        objective: The losses, after set-up.
        teacher: Who answers.
        number: What the weights of a frozen teacher come to, ``None`` if that is not known.
        task_loss: The task's own loss, ``None`` without one or where the user's module has it.
    """
    parts = {**objective.named, **dict(objective.leaves)}
    network = None if teacher is None else teacher.module
    return {
        "losses": {name: {"class": type(loss).__name__, "options": _options(loss)} for name, loss in parts.items()},
        "task": {"task_weight": _plain(objective.task_weight), **_task(task_loss)},
        "teacher": {
            "class": None if teacher is None else type(original(network) if network is not None else teacher).__name__,
            "dtype": str(dtype) if (dtype := getattr(teacher, "dtype", None)) is not None else None,
            "weights": number,
            "options": _attributes(teacher) | _attributes(None if network is None else original(network)),
        },
    }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return in words what differs between two accounts of :func:`made_of`.

    Args:
        saved: That of a checkpoint; what an older one does not tell is taken to be the same.
        now: That of the fit.

    Returns:
        All differences, and the names of the losses that are another one or read other layers.
    """
    found: list[str] = []
    others: list[str] = []
    before, after = saved.get("losses", {}), now["losses"]
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in after:
            found.append(f"part {name!r} ({before[name]['class']}) is not there any more")
        elif name not in before:
            found.append(f"part {name!r} ({after[name]['class']}) is new")
        else:
            changes = list(_changes(before[name], after[name]))
            found += [f"part {name!r}: {change}" for change, _ in changes]
            others += [name] if any(another for _, another in changes) else []
    for key, value in saved.get("task", {}).items():
        value = "model" if (key, value) == ("task_loss", "str") else value  # as an older checkpoint calls it
        if key in now["task"] and now["task"][key] != value:
            found.append(f"{key} was {_shown(value)}, is {_shown(now['task'][key])}")
    if "outputs" in saved:
        old, new = saved["outputs"], now["outputs"]
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        found += [f"{name} was {_shown(old.get(name))}, is {_shown(new.get(name))}" for name in names]
    found += _teachers(saved.get("teacher", {}), now["teacher"])
    return found, others


def of_older(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint tells that was written before there was an account: the layers of each loss."""
    layers = {name: one for name, one in saved.get("layers", {}).items() if name in now["losses"]}
    unknown = {name: one for name, one in now["losses"].items() if name not in layers}
    named = {name: {"class": now["losses"][name]["class"], "options": dict(one)} for name, one in layers.items()}
    return {"losses": {**unknown, **named}}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Yield in words what differs in a loss, and whether it is another one then."""
    if before["class"] != after["class"]:
        yield f"was a {before['class']}, is a {after['class']}", True
        return
    for option, value in before["options"].items():
        now = after["options"].get(option, _ABSENT)
        if option in ("student", "teacher"):
            value, now = _as_list(value), _as_list(now)
        if now is not _ABSENT and now != value:
            yield f"{option} was {_shown(value)}, is {_shown(now)}", option in _LAYERS


def _teachers(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    if not before:
        return []
    if before["class"] != after["class"]:
        return [f"the teacher was a {before['class']}, is a {after['class']}"]
    if before["dtype"] != after["dtype"]:
        return [f"teacher_dtype was {before['dtype']}, is {after['dtype']}"]
    numbers = before.get("weights"), after["weights"]  # an older checkpoint has a number of another kind
    others = None not in numbers and numbers[0] != numbers[1]
    found = [f"the teacher is a {after['class']} with other weights"] if others else []
    old, new = before.get("options", {}), after["options"]
    found += [
        f"the teacher's {name} was {_shown(value)}, is {_shown(new[name])}"
        for name, value in old.items()
        if name in new and new[name] != value
    ]
    return found


def _options(part: Configurable) -> dict[str, Any]:
    """Return the options of a part, also those that are no plain data, of which the class must do."""
    names = inspect.signature(type(part)).parameters
    return {name: _plain(getattr(part, name)) for name in names if hasattr(part, name)}


def _attributes(owner: object) -> dict[str, Any]:
    """Return the attributes of a teacher or its network that it was made with, such as an ensemble's average."""
    # of a frozen teacher the network tells, and its weights have a number
    names = () if owner is None or type(owner) is FrozenTeacher else inspect.signature(type(owner)).parameters
    found = {name: getattr(owner, name) for name in names if name in vars(owner)}
    return {name: value for name, value in found.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 100 and all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _as_list(layers: Any) -> Any:
    """Return one layer as several: whether it was named alone makes no difference."""
    return [layers] if isinstance(layers, str) else layers


def _task(task_loss: object) -> dict[str, Any]:
    if not isinstance(task_loss, nn.Module):
        name = task_loss if isinstance(task_loss, str) else type(task_loss).__name__
        return {} if task_loss is None else {"task_loss": name}
    names = getattr(task_loss, "__constants__", ())
    options = {name: _plain(getattr(task_loss, name)) for name in names if hasattr(task_loss, name)}
    trained = {name for name, parameter in task_loss.named_parameters() if parameter.requires_grad}
    # such as weights of the classes
    tensors = {name: number for name, number in fingerprint(task_loss).items() if name not in trained}
    known = {"task_loss's tensors": as_one_number(tensors)} if tensors else {}
    named = {f"task_loss.{name}": value for name, value in options.items()}
    return {"task_loss": type(task_loss).__name__, **named, **known}


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, DistillationLoss):  # which is a part of its own
        return type(value).__name__
    if isinstance(value, Configurable):
        return {type(value).__name__: _options(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence | nn.ModuleList):
        return [_plain(one) for one in value]
    return type(value).__name__


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, options),) = value.items()
        if isinstance(options, Mapping):
            return f"{name}({', '.join(f'{key}={_shown(one)}' for key, one in options.items())})"
    return repr(value)
