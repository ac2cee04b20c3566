"""Schedules: values by hand, ranges, plain data, and the command line."""

import copy
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lightning_kd.configurable import describe, restore
from lightning_kd.losses import DistillationLoss, HintLoss, KDLoss
from lightning_kd.losses.stage import Stage
from lightning_kd.schedules import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    Moment,
    Schedule,
    StepSchedule,
    WarmUpSchedule,
    extremes,
    value_at,
)

ROOT = Path(__file__).parents[2]


@dataclass
class Case:
    """A schedule, its values at moments derived by hand, and arguments that it refuses."""

    schedule: Schedule
    values: dict[int, float]
    text: str
    span: tuple[float, float]
    bad: list[tuple[dict[str, Any], str]] = field(default_factory=list)


RAMP_BAD: list[tuple[dict[str, Any], str]] = [
    ({"length": 0}, "expected a whole number length >= 1, got 0"),
    ({"length": 2.5}, "expected a whole number length >= 1, got 2.5"),
    ({"length": True}, "expected a whole number length >= 1, got True"),
    ({"delay": -1}, "expected a whole number delay >= 0, got -1"),
    ({"unit": "batch"}, "expected unit 'epoch' or 'step', got 'batch'"),
]
CASES = [
    Case(ConstantSchedule(3.0), {0: 3.0, 99: 3.0}, "ConstantSchedule(value=3.0)", (3.0, 3.0)),
    # 8 less 1.5 for each of 4 after the second
    Case(
        LinearSchedule(8.0, 2.0, length=4, delay=2),
        {0: 8.0, 2: 8.0, 3: 6.5, 4: 5.0, 5: 3.5, 6: 2.0, 100: 2.0},
        "LinearSchedule(start=8.0, end=2.0, length=4, unit='epoch', delay=2)",
        (2.0, 8.0),
        RAMP_BAD,
    ),
    # share (1 - cos(pi t / 6)) / 2: cos 30 = 0.8660254, cos 60 = 1/2, cos 90 = 0; from 1 to 5 is 4 of it
    Case(
        CosineSchedule(1.0, 5.0, length=6, unit="step"),
        {0: 1.0, 1: 1.2679491924311228, 2: 2.0, 3: 3.0, 4: 4.0, 5: 4.732050807568877, 6: 5.0, 7: 5.0},
        "CosineSchedule(start=1.0, end=5.0, length=6, unit='step', delay=0)",
        (1.0, 5.0),
        RAMP_BAD,
    ),
    Case(
        StepSchedule([4.0, 1.0, 2.0], [2, 5], unit="step"),
        {0: 4.0, 1: 4.0, 2: 1.0, 4: 1.0, 5: 2.0, 50: 2.0},
        "StepSchedule(values=[4.0, 1.0, 2.0], milestones=[2, 5], unit='step')",
        (1.0, 4.0),
        [
            ({"values": [1.0]}, "expected one value more than milestones, got 1 values and 2 milestones"),
            ({"milestones": [5, 2]}, r"expected ascending milestones, got \[5, 2\]"),
            ({"milestones": [3, 3]}, r"expected ascending milestones, got \[3, 3\]"),
            ({"milestones": [0, 3]}, "expected a whole number milestone >= 1, got 0"),
            ({"milestones": [1.5, 3]}, "expected a whole number milestone >= 1, got 1.5"),
            ({"unit": "batch"}, "expected unit 'epoch' or 'step', got 'batch'"),
        ],
    ),
    # 6 (t + 1) / 4
    Case(
        WarmUpSchedule(6.0, length=4),
        {0: 1.5, 1: 3.0, 2: 4.5, 3: 6.0, 4: 6.0, 40: 6.0},
        "WarmUpSchedule(value=6.0, length=4, unit='epoch')",
        (1.5, 6.0),
        [case for case in RAMP_BAD if "delay" not in case[0]],
    ),
]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: type(case.schedule).__name__)


def subclasses(cls: type[Schedule]) -> set[type[Schedule]]:
    """Return the concrete schedules of the package."""
    found = {sub for direct in cls.__subclasses__() for sub in {direct, *subclasses(direct)}}
    return {sub for sub in found if sub.__module__.startswith("lightning_kd") and not sub.__abstractmethods__}


def test_every_schedule_has_a_case() -> None:
    assert subclasses(Schedule) == {type(case.schedule) for case in CASES}


@EACH
def test_values_are_those_derived_by_hand(case: Case) -> None:
    unit = getattr(case.schedule, "unit", "epoch")
    for count, expected in case.values.items():
        # the other count is far off, and must not matter
        moment = Moment(epoch=count, step=77) if unit == "epoch" else Moment(epoch=77, step=count)
        assert case.schedule.at(moment) == pytest.approx(expected, rel=1e-14)
        assert value_at(case.schedule, moment) == case.schedule.at(moment)


@EACH
@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_the_other_unit_counts_the_other_thing(case: Case, unit: str) -> None:
    options = case.schedule.options()
    if "unit" not in options:
        assert isinstance(case.schedule, ConstantSchedule)
        return
    schedule = type(case.schedule)(**options | {"unit": unit})
    for count, expected in case.values.items():
        moment = Moment(**{unit: count, "step" if unit == "epoch" else "epoch": 13})
        assert schedule.at(moment) == pytest.approx(expected, rel=1e-14)


@EACH
def test_the_extremes_hold_at_every_moment_and_are_reached(case: Case) -> None:
    low, high = min(extremes(case.schedule)), max(extremes(case.schedule))
    values = [case.schedule.at(Moment(step=count, epoch=count)) for count in range(60)]
    assert (low, high) == case.span == (min(values), max(values))


def test_a_number_is_its_own_schedule() -> None:
    assert value_at(2.5, Moment(step=9, epoch=3)) == 2.5
    assert extremes(2.5) == (2.5,)


@EACH
def test_a_schedule_is_a_pure_function_of_the_moment(case: Case) -> None:
    late, early = Moment(step=5, epoch=5), Moment()
    first = case.schedule.at(early)
    case.schedule.at(late)
    assert case.schedule.at(early) == first


@EACH
def test_arguments_out_of_range_are_refused(case: Case) -> None:
    for wrong, words in case.bad:
        with pytest.raises(ValueError, match=f"^{type(case.schedule).__name__}: {words}"):
            type(case.schedule)(**case.schedule.options() | wrong)


@EACH
def test_repr_is_the_call_that_makes_it(case: Case) -> None:
    assert repr(case.schedule) == case.text
    assert repr(eval(case.text)) == case.text


@EACH
def test_a_schedule_is_plain_data_and_comes_back(case: Case) -> None:
    description = json.loads(json.dumps(describe(case.schedule)))
    assert description["class_path"] == f"lightning_kd.schedules.{type(case.schedule).__name__}"
    again = restore(description, Schedule)
    for twin in (again, copy.deepcopy(case.schedule), pickle.loads(pickle.dumps(case.schedule))):
        assert type(twin) is type(case.schedule)
        assert repr(twin) == case.text


@EACH
def test_a_loss_with_schedules_is_plain_data_and_comes_back(case: Case) -> None:
    loss = KDLoss(temperature=case.schedule, weight=case.schedule)
    again = restore(json.loads(json.dumps(describe(loss))), DistillationLoss)
    assert repr(again) == repr(loss)
    assert f"temperature={case.text}" in repr(loss)
    assert f"weight={case.text}" in repr(loss)


@EACH
def test_weight_and_temperature_follow_the_moment(case: Case) -> None:
    loss = KDLoss(temperature=case.schedule, weight=case.schedule)
    assert loss.changes_over_time
    for count in case.values:
        loss.moment = Moment(step=count, epoch=count)
        assert loss.weight_now == loss.now(loss.temperature) == case.schedule.at(loss.moment)
    assert not KDLoss(temperature=2.0, weight=0.5).changes_over_time


def with_value(value: float) -> list[Schedule]:
    """Return one schedule of each kind that has, at some moment, the given value and else 1."""
    return [
        ConstantSchedule(value),
        LinearSchedule(1.0, value, length=3),
        LinearSchedule(value, 1.0, length=3),
        CosineSchedule(1.0, value, length=3),
        CosineSchedule(value, 1.0, length=3),
        StepSchedule([1.0, value, 1.0], [1, 2]),
        WarmUpSchedule(value, length=3),
    ]


def test_every_kind_is_among_the_bad_ones() -> None:
    assert {type(schedule) for schedule in with_value(1.0)} == subclasses(Schedule)


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("which", range(7))
def test_a_weight_that_becomes_negative_or_infinite_is_refused_at_construction(which: int, value: float) -> None:
    schedule = with_value(value)[which]
    for make in (lambda: KDLoss(weight=schedule), lambda: HintLoss("a", "b", weight=schedule)):
        with pytest.raises(ValueError, match=r"Loss: expected a finite weight >= 0, got ") as error:
            make()
        assert repr(schedule) in str(error.value)


@pytest.mark.parametrize("value", [0.0, -0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("which", range(7))
def test_a_temperature_that_becomes_zero_is_refused_at_construction(which: int, value: float) -> None:
    schedule = with_value(value)[which]
    with pytest.raises(ValueError, match="KDLoss: expected temperature > 0, got ") as error:
        KDLoss(temperature=schedule)
    assert repr(schedule) in str(error.value)


@pytest.mark.parametrize("schedule", with_value(0.0), ids=repr)
def test_a_weight_may_become_zero(schedule: Schedule) -> None:
    assert KDLoss(weight=schedule).weight is schedule


def test_a_users_own_schedule_works() -> None:
    class Halving(Schedule):
        """Half of it every epoch."""

        def __init__(self, value: float) -> None:
            self.value = value

        def at(self, moment: Moment) -> float:
            return self.value / 2**moment.epoch

        def extremes(self) -> tuple[float, ...]:
            return (0.0, self.value)

    loss = KDLoss(weight=Halving(4.0))
    loss.moment = Moment(epoch=3)
    assert loss.weight_now == 0.5
    with pytest.raises(ValueError, match=r"expected temperature > 0, got Halving\(value=4.0\)"):
        KDLoss(temperature=Halving(4.0))


def test_moments_count_steps_and_epochs() -> None:
    assert (Moment(step=3, epoch=1).count("step"), Moment(step=3, epoch=1).count("epoch")) == (3, 1)
    with pytest.raises(AttributeError):
        Moment().step = 3  # type: ignore[misc]


# The first stage of a method


@pytest.mark.parametrize(
    ("stage", "inside"),
    [
        (Stage(2), [True, True, False, False]),
        (Stage(2, unit="step"), [True, False, False, False]),
        (Stage(0), [False] * 4),
        (Stage(), [False] * 4),
    ],
    ids=repr,
)
def test_a_stage_includes_the_moments_before_its_end(stage: Stage, inside: list[bool]) -> None:
    # two steps an epoch
    assert [stage.includes(Moment(step=2 * epoch, epoch=epoch)) for epoch in range(4)] == inside


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": -1}, "Stage: expected a whole number length >= 0, got -1"),
        ({"length": 1.5}, "Stage: expected a whole number length >= 0, got 1.5"),
        ({"unit": "batch"}, "Stage: expected unit 'epoch' or 'step', got 'batch'"),
        ({"lr": 0.0}, "Stage: expected lr > 0, got 0.0"),
        ({"lr": float("nan")}, "Stage: expected lr > 0, got nan"),
        ({"lr": float("inf")}, "Stage: expected lr > 0, got inf"),
    ],
)
def test_a_stage_out_of_range_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Stage(**options)


# The command line


def through_yaml(text: str, folder: Path, *options: str) -> Any:
    """Fit two batches of the digits with the losses of a YAML text, and return the command line."""
    from lightning_kd.commands.fit import run

    (folder / "losses.yaml").write_text(text)
    quick = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=2"]
    quiet = ["--trainer.logger=false", f"--trainer.default_root_dir={folder}"]
    configs = [f"--config={ROOT}/examples/digits/response.yaml", f"--config={folder}/losses.yaml"]
    return run(["fit", *configs, *quick, *quiet, *options])


@EACH
def test_a_schedule_is_written_in_yaml(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    init_args = json.dumps(case.schedule.options())
    cli = through_yaml(
        "model:\n"
        "  losses:\n"
        "    - class_path: KDLoss\n"
        "      init_args:\n"
        f"        weight: {{class_path: {type(case.schedule).__name__}, init_args: {init_args}}}\n"
        f"        temperature: {{class_path: {type(case.schedule).__name__}, init_args: {init_args}}}\n",
        tmp_path,
    )
    (loss,) = cli.model.run.objective.components
    assert repr(loss.weight) == repr(loss.temperature) == case.text


def test_a_plain_number_is_written_in_yaml_and_either_is_loaded_from_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_kd import DistillationModule

    monkeypatch.chdir(ROOT)
    cli = through_yaml(
        "model:\n"
        "  losses:\n"
        "    - class_path: KDLoss\n"
        "      init_args:\n"
        "        weight: 0.75\n"
        "        temperature: {class_path: LinearSchedule, init_args: {start: 8, end: 1.5, length: 3, unit: step}}\n",
        tmp_path,
        "--trainer.enable_checkpointing=true",
    )
    path = cli.trainer.checkpoint_callback.best_model_path
    for module in (cli.model, DistillationModule.load_from_checkpoint(path, weights_only=True)):
        (loss,) = module.run.objective.components
        assert loss.weight == 0.75
        assert loss.temperature.options() == {"start": 8.0, "end": 1.5, "length": 3, "unit": "step", "delay": 0}


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (
            "{class_path: LinearSchedule, init_args: {start: 1.0, end: -1.0, length: 3}}",
            "expected a finite weight >= 0",
        ),
        ("{class_path: LinearSchedule, init_args: {start: 1.0, end: 0.0, lenght: 3}}", "lenght"),
        ("{class_path: LinearSchedul, init_args: {start: 1.0, end: 0.0, length: 3}}", "LinearSchedul"),
    ],
)
def test_a_schedule_that_is_wrong_in_yaml_is_named(
    schedule: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    text = f"model:\n  losses:\n    - class_path: KDLoss\n      init_args:\n        weight: {schedule}\n"
    with pytest.raises((SystemExit, ValueError)) as error:
        through_yaml(text, tmp_path)
    assert words in capsys.readouterr().err + str(error.value)
