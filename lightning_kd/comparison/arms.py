"""What is compared: each strategy as an arm with its losses, beside the student alone; all as configurations of a fit.

A configuration is plain data as ``lightning-kd fit --print_config`` shows it. An arm changes its losses, the weight of
the task, the seed, and what would make one arm's draws or files depend on another's.
"""

import copy
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from lightning.pytorch.callbacks import Checkpoint

from lightning_kd.comparison.same_draws import SameDraws
from lightning_kd.comparison.same_rows import SameRows
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.hybrid import HybridLoss
from lightning_kd.losses.strategies import DistillationStrategyType
from lightning_kd.teachers.source import TeacherSource

STUDENT_ALONE = "student_alone"
"""The arm without a teacher, which every other arm is compared with."""
Configuration = dict[str, Any]
_OUR_LOSSES = "lightning_kd.losses"


def arms_named(strategies: str | Iterable[str]) -> list[str]:
    """Return the arms that are asked for, the student alone first.

    Args:
        strategies: ``all``, or names of strategies with commas between.

    Raises:
        ValueError: If there is no strategy of a name; names the nearest, and all.

    Example:
        >>> arms_named("response_based, SIMILARITY_PRESERVING")
        ['student_alone', 'response_based', 'similarity_preserving']
        >>> len(arms_named("all"))
        14
    """
    known = [strategy.name.lower() for strategy in DistillationStrategyType]
    given = strategies.split(",") if isinstance(strategies, str) else strategies
    names = [name.strip().lower() for name in given if name.strip()]
    names = known if names == ["all"] else names
    for name in names:
        if name not in (*known, STUDENT_ALONE):
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(
                f"--strategies: there is no strategy {name!r}.{hint} There are {', '.join(known)}, and all."
            )
    if not names:
        raise ValueError(f"--strategies: name at least one of {', '.join(known)}, or all.")
    return list(dict.fromkeys((STUDENT_ALONE, *names)))


def losses_of(arm: str, given: Sequence[Mapping[str, Any]] | None) -> list[Configuration]:
    """Return the losses of an arm, each as a class with its options.

    A loss of the strategy that the user's configuration has keeps its options, such as layers and temperature; else
    the strategy's own loss stands with its defaults. ``hybrid`` takes all losses of the configuration if there are
    several.

    Args:
        arm: Name of the arm.
        given: The losses of the user's configuration.

    Example:
        >>> losses_of("response_based", [{"class_path": "lightning_kd.losses.KDLoss", "init_args": {"temperature": 2}}])
        [{'class_path': 'lightning_kd.losses.KDLoss', 'init_args': {'temperature': 2}}]
        >>> losses_of("probabilistic_transfer", None)
        [{'class_path': 'lightning_kd.losses.PKTLoss', 'init_args': {}}]
    """
    if arm == STUDENT_ALONE:
        return []
    strategy = DistillationStrategyType[arm.upper()]
    specs = [_with_options(loss) for loss in given or []]
    own = [spec for spec in specs if _class(spec) is strategy.component]
    if own:
        return own[:1]
    if strategy is DistillationStrategyType.HYBRID:
        parts = [DistillationStrategyType.RESPONSE_BASED, DistillationStrategyType.FEATURE_BASED]
        return specs if len(specs) > 1 else [_made(part) for part in parts]
    return [_made(strategy)]


def configuration_of(
    base: Configuration,
    arm: str,
    seed: int,
    weights: Sequence[float] | None,
    *,
    threads: int | None = None,
    held_out: float | None = None,
) -> Configuration:
    """Return the configuration of an arm with a seed; two of them differ by the losses alone.

    Args:
        base: The user's configuration.
        arm: Name of the arm.
        seed: Seed of the run.
        weights: Weight of each loss, beside a task of weight 1; ``None`` leaves all weights as they are configured.
        threads: Threads that torch computes with.
        held_out: Fraction of the training rows that is held out of the training, and evaluated on in the place of the
            validation data.
    """
    made = copy.deepcopy(base)
    model, trainer = made["model"], made["trainer"]
    losses = losses_of(arm, model.get("losses"))
    if weights is not None:
        losses = [_weighed(loss, weight) for loss, weight in zip(losses, weights, strict=True)]
    made["seed_everything"] = seed
    model["losses"] = losses or None
    if weights is not None or arm == STUDENT_ALONE:
        model["task_weight"] = 1.0
    callbacks = _listed(trainer.get("callbacks"))
    if arm == STUDENT_ALONE:
        model["teacher"] = None
        model.pop("teacher_weights", None)
        callbacks = _without(callbacks, TeacherSource)
    draws = {"class_path": _path(SameDraws), "init_args": {"seed": seed, "threads": threads}}
    trainer["callbacks"] = [*callbacks, draws]
    rows = {"data": made["data"], "seed": seed, "with_index": any(map(_needs_index, losses)), "held_out": held_out}
    made["data"] = {"class_path": _path(SameRows), "init_args": rows}
    return made


def for_evaluation(base: Configuration) -> Configuration:
    """Return the configuration of student and teacher, to compare the two when the student is trained."""
    made = copy.deepcopy(base)
    model = made["model"]
    if not model.get("losses") and model.get("teacher") is not None:
        model["losses"] = [_made(DistillationStrategyType.RESPONSE_BASED)]  # a teacher without a loss is refused
    made["trainer"]["callbacks"] = []
    return made


def quiet(configuration: Configuration, folder: str) -> Configuration:
    """Return a configuration whose fit writes its curves into a folder, and nothing anywhere else.

    Args:
        configuration: The configuration.
        folder: Where the curves are written.
    """
    made = copy.deepcopy(configuration)
    trainer = made["trainer"]
    curves = {"save_dir": folder, "name": "", "version": ""}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": curves}
    trainer.update(
        logger=logger,
        callbacks=_without(_listed(trainer.get("callbacks")), Checkpoint),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    made["summary"] = {"enabled": False}
    return made


def _made(strategy: DistillationStrategyType) -> Configuration:
    options = strategy.defaults({})
    return {"class_path": f"{_OUR_LOSSES}.{strategy.component.__name__}", "init_args": dict(options)}


def _weighed(loss: Configuration, weight: float) -> Configuration:
    return {**loss, "init_args": {**loss["init_args"], "weight": weight}}


def _with_options(loss: Mapping[str, Any] | str) -> Configuration:
    spec: Configuration = {"class_path": loss} if isinstance(loss, str) else copy.deepcopy(dict(loss))
    return {**spec, "init_args": dict(spec.get("init_args") or {})}


def _needs_index(loss: Mapping[str, Any]) -> bool:
    inner = loss["init_args"].get("losses") if _class(loss) is HybridLoss else None
    return any(_needs_index(_with_options(one)) for one in inner or []) or bool(getattr(_class(loss), "needs_index", 0))


def _class(spec: Mapping[str, Any]) -> Any:
    found = resolve_name(spec["class_path"])
    return found if isinstance(found, type) and issubclass(found, DistillationLoss) else None


def _listed(callbacks: Any) -> list[Any]:
    return [] if callbacks is None else list(callbacks) if isinstance(callbacks, list) else [callbacks]


def _without(callbacks: list[Any], kind: type) -> list[Any]:
    """Return the callbacks that are not of a kind."""

    def is_other(callback: Any) -> bool:
        path = callback if isinstance(callback, str) else callback["class_path"]
        found: type | Callable[..., Any] = resolve_name(path)
        return not (isinstance(found, type) and issubclass(found, kind))

    return [callback for callback in callbacks if is_other(callback)]


def _path(cls: type) -> str:
    return f"lightning_kd.comparison.{cls.__name__}"
