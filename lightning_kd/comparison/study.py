"""The study: which units of work there are, who does them, and what came of them; kept by Optuna's storage.

A unit is one short run, such as an arm with a seed. Its trial in the storage is made when a worker claims it, and says
who that is. Claims are made under one lock of the study, so no unit is claimed twice. A trial whose worker has ended
(see ``leases.py``) is void, and its unit is claimed anew by whoever comes first.
"""

import functools
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, ParamSpec, TypeVar

from lightning_kd.comparison.leases import Leases
from lightning_kd.comparison.storage import without_passwords

P = ParamSpec("P")
T = TypeVar("T")
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between two tries to reach the database."""
Kind = Literal["scale", "tune", "score"]
Status = Literal["ok", "nan", "failed"]


@dataclass(frozen=True)
class Unit:
    """One run of the study.

    Args:
        kind: To learn the size of the arm's loss, to try a weight, or to get the score that is reported.
        arm: Name of the arm.
        seed: Seed of the run.
        factor: What the weight is multiplied by, where one is tried.
        rung: Number of the round in which the weight is tried.
    """

    kind: Kind
    arm: str
    seed: int
    factor: float = 1.0
    rung: int = 0

    @property
    def folder(self) -> str:
        """Name of the run's folder.

        Example:
            >>> Unit("score", "response_based", 2).folder, Unit("tune", "hybrid", 0, factor=0.1, rung=1).folder
            ('response_based-seed2', 'hybrid-weight0.1-round1')
        """
        if self.kind == "score":
            return f"{self.arm}-seed{self.seed}"
        return f"{self.arm}-size" if self.kind == "scale" else f"{self.arm}-weight{self.factor:g}-round{self.rung}"


@dataclass(frozen=True)
class Outcome:
    """What came of a unit.

    Args:
        status: ``ok``; ``nan`` if a loss, a gradient or the score was not finite; ``failed`` after any other error.
        score: The score on the held-out data.
        metrics: Other numbers by name.
        error: What went wrong.
        scored: Name of the number that is the score.
        higher_is_better: Whether a larger score is better.
    """

    status: Status
    score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    scored: str | None = None
    higher_is_better: bool = True


@dataclass(frozen=True)
class Claim:
    """A unit that this worker does.

    Args:
        trial: Number of the trial in the storage.
        unit: The unit.
    """

    trial: int
    unit: Unit


def patient(method: Callable[P, T]) -> Callable[P, T]:
    """Have a method of a study try again when the database does not answer, for half a minute.

    Args:
        method: The method; to call it twice does no harm.

    Raises:
        RuntimeError: When it is called, if the database still does not answer; the message tells no password.
    """

    @functools.wraps(method)
    def tried(*args: P.args, **kwargs: P.kwargs) -> T:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import DBAPIError

        told = ""
        for seconds in (*_WAITS, None):
            try:
                return method(*args, **kwargs)
            except (StorageInternalError, DBAPIError) as error:
                told = without_passwords(str(error.__cause__ or error)).partition("\n")[0]
            if seconds is not None:
                time.sleep(seconds)
        raise RuntimeError(f"The storage does not answer: {told}. The same command goes on where it was.")

    return tried


class Study:
    """The units of a comparison, shared by all workers.

    Args:
        storage: Optuna's storage.
        leases: The locks of the workers.
        name: Name of the study.
        configuration: What every unit depends on, as plain data; a study of another one is refused.

    Raises:
        ValueError: If the study is there with another configuration.
    """

    def __init__(self, storage: Any, leases: Leases, name: str, configuration: Mapping[str, Any]) -> None:
        import optuna

        self._optuna = optuna
        self._storage = storage
        self._leases = leases
        self._claimed: set[int] = set()
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        with self._leases.alone():
            try:
                self._id = storage.get_study_id_from_name(name)
            except KeyError:
                self._id = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], name)
            known = storage.get_study_user_attrs(self._id).get("configuration")
            if known is None:
                storage.set_study_user_attr(self._id, "configuration", json.dumps(configuration))
            else:
                _check_same(json.loads(known), json.loads(json.dumps(configuration)), name)

    @patient
    def retry_failed(self) -> int:
        """Let the units that failed be claimed again; return how many there are."""
        with self._leases.alone():
            retried = set(self._retried())
            failed = [
                trial.number
                for trial in self._trials()
                if trial.number not in retried
                and trial.user_attrs.get("outcome", {}).get("status") in ("nan", "failed")
            ]
            self._storage.set_study_user_attr(self._id, "retried", sorted(retried.union(failed)))
        return len(failed)

    @patient
    def claim(self, units: Sequence[Unit]) -> Claim | None:
        """Claim the first unit that nobody has done or does; ``None`` if there is none."""
        self._leases.hold(self.worker)
        states = self._optuna.trial.TrialState
        with self._leases.alone():
            taken = set()
            for trial in self._valid():
                owner = trial.user_attrs["worker"]
                if trial.state == states.RUNNING and not self._is_done_by(owner, trial.number):
                    self._void(trial.number, "its worker has ended")
                else:
                    taken.add(_unit(trial))
            unit = next((unit for unit in units if unit not in taken), None)
            if unit is None:
                return None
            attributes = {"unit": asdict(unit), "worker": self.worker}
            made = self._optuna.trial.create_trial(state=states.RUNNING, user_attrs=attributes)
            trial_id = self._storage.create_new_trial(self._id, made)
            number = self._storage.get_trial(trial_id).number
            self._claimed.add(number)
            return Claim(number, unit)

    @patient
    def finish(self, claim: Claim, outcome: Outcome) -> None:
        """Write what came of a unit; nothing if it was taken over, since its worker seemed to have ended."""
        states = self._optuna.trial.TrialState
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, claim.trial)
        good = outcome.status == "ok" and outcome.score is not None
        try:
            self._storage.set_trial_user_attr(trial_id, "outcome", asdict(outcome))
            values = [outcome.score] if good else None
            self._storage.set_trial_state_values(trial_id, states.COMPLETE if good else states.FAIL, values)
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return

    @patient
    def give_back(self, claim: Claim) -> None:
        """Let somebody else do a unit that this worker has begun."""
        self._void(claim.trial, "its worker was stopped")

    @patient
    def outcomes(self) -> dict[Unit, Outcome]:
        """Return what came of the units that are done."""
        return {
            _unit(trial): Outcome(**trial.user_attrs["outcome"])
            for trial in self._valid()
            if "outcome" in trial.user_attrs and trial.state.is_finished()
        }

    @patient
    def running(self) -> list[tuple[Unit, str]]:
        """Return the units that a worker does now, with its name."""
        return [(_unit(trial), trial.user_attrs["worker"]) for trial in self._valid() if not trial.state.is_finished()]

    def close(self) -> None:
        """Leave the study."""
        self._leases.close()
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _is_done_by(self, owner: str, number: int) -> bool:
        """Whether a worker lives that does a trial; ours may have lost the answer to a claim."""
        return number in self._claimed if owner == self.worker else self._leases.is_alive(owner)

    def _trials(self) -> list[Any]:
        return list(self._storage.get_all_trials(self._id, deepcopy=False))

    def _retried(self) -> list[int]:
        return list(self._storage.get_study_user_attrs(self._id).get("retried", []))

    def _valid(self) -> list[Any]:
        """Return the trials that count."""
        retried = self._retried()
        return [
            trial
            for trial in self._trials()
            if "unit" in trial.user_attrs and "void" not in trial.user_attrs and trial.number not in retried
        ]

    def _void(self, number: int, why: str) -> None:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        try:
            self._storage.set_trial_user_attr(trial_id, "void", why)
            self._storage.set_trial_state_values(trial_id, self._optuna.trial.TrialState.FAIL)
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return


def _unit(trial: Any) -> Unit:
    return Unit(**trial.user_attrs["unit"])


def _check_same(known: Mapping[str, Any], given: Mapping[str, Any], name: str) -> None:
    changes = list(_changes(known, given, ""))
    if changes:
        place, before, now = changes[0]
        more = f", and {len(changes) - 1} more differ" if len(changes) > 1 else ""
        raise ValueError(
            f"The study {name!r} was begun with another configuration: {place} was {_short(before)} and is "
            f"{_short(now)}{more}. Scores of the two cannot be compared; give another --output."
        )


def _changes(known: Any, given: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(known, Mapping) and isinstance(given, Mapping):
        for key in dict.fromkeys((*known, *given)):
            yield from _changes(known.get(key), given.get(key), f"{place}.{key}" if place else key)
    elif known != given:
        yield place, known, given


def _short(value: Any) -> str:
    text = without_passwords(json.dumps(value))
    return text if len(text) < 60 else f"{text[:57]}..."
