"""Which units of work a comparison has, in which order, and what each waits for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_kd.comparison.arms import STUDENT_ALONE
from lightning_kd.comparison.study import Outcome, Unit
from lightning_kd.comparison.weights import FACTORS, SURVIVORS

Weights = Literal["sized", "tuned", "configured"]
_TUNING_SEED = 0
"""No arm is scored with it: seeds begin at 1."""


@dataclass(frozen=True)
class Plan:
    """The arms and seeds of a comparison.

    A loss is sized first, then its weight is tuned if it is to be, then its arm is scored with each seed. What comes of
    an arm depends on no other arm, nor on the order in which the units are done.

    Args:
        arms: Names of the arms, the student alone first.
        seeds: The seeds.
        weights: How the losses are weighed.
    """

    arms: Sequence[str]
    seeds: Sequence[int]
    weights: Weights = "sized"

    def open_units(self, outcomes: Mapping[Unit, Outcome]) -> list[Unit]:
        """Return the units that can be done now and are not done, in order: all arms with a seed before the next."""
        waiting = [unit for arm in self.arms for unit in self._next(arm, outcomes) if unit not in outcomes]
        return sorted(waiting, key=lambda unit: unit.seed if unit.kind == "score" else 0)

    def total(self, outcomes: Mapping[Unit, Outcome]) -> int:
        """Return how many units there are in all, as far as is known by now."""
        return sum(self._count(arm, outcomes) for arm in self.arms)

    def finished(self, outcomes: Mapping[Unit, Outcome]) -> int:
        """Return how many of them are done."""
        return sum(
            unit.arm in self.arms and (unit.kind != "score" or unit.seed in self.seeds) and self._is_asked_for(unit)
            for unit in outcomes
        )

    def weights_of(self, arm: str, outcomes: Mapping[Unit, Outcome], factor: float | None = None) -> list[float] | None:
        """Return the weights of an arm's losses, ``None`` if they stay as they are configured.

        Args:
            arm: Name of the arm.
            outcomes: What is done.
            factor: What they are multiplied by; by default what the tuning has chosen.
        """
        if self.weights == "configured" or arm == STUDENT_ALONE:
            return [] if arm == STUDENT_ALONE else None
        sized = outcomes[_scale(arm)].metrics
        factor = self.factor_of(arm, outcomes) if factor is None else factor
        return [float(f"{sized[f'weight {number}'] * (factor or 1.0):.3g}") for number in range(len(sized))]

    def factor_of(self, arm: str, outcomes: Mapping[Unit, Outcome]) -> float | None:
        """Return the factor that an arm's weights were tuned to, ``None`` as long as none is found."""
        if self.weights != "tuned":
            return 1.0
        ranked = self._ranked(self._tried(arm, 1, self._survivors(arm, outcomes)), outcomes)
        return ranked[0].factor if ranked else None

    def why_not(self, arm: str, outcomes: Mapping[Unit, Outcome]) -> Outcome | None:
        """Return what has kept an arm from being scored at all, ``None`` if nothing has."""
        if self.weights == "configured" or arm == STUDENT_ALONE:
            return None
        sized = outcomes.get(_scale(arm))
        if sized is not None and sized.status != "ok":
            return sized
        for rung in (0, 1) if self.weights == "tuned" else ():
            units = self._tried(arm, rung, FACTORS if rung == 0 else self._survivors(arm, outcomes))
            done = [outcomes[unit] for unit in units if unit in outcomes]
            if len(done) == len(units) and not any(outcome.status == "ok" for outcome in done):
                return done[0] if done else None
        return None

    def _next(self, arm: str, outcomes: Mapping[Unit, Outcome]) -> list[Unit]:
        if self.why_not(arm, outcomes) is not None:
            return []
        if self.weights != "configured" and arm != STUDENT_ALONE:
            if _scale(arm) not in outcomes:
                return [_scale(arm)]
            for rung in (0, 1) if self.weights == "tuned" else ():
                units = self._tried(arm, rung, FACTORS if rung == 0 else self._survivors(arm, outcomes))
                if any(unit not in outcomes for unit in units):
                    return units
        return [Unit("score", arm, seed) for seed in self.seeds]

    def _count(self, arm: str, outcomes: Mapping[Unit, Outcome]) -> int:
        if self.why_not(arm, outcomes) is not None:
            return sum(unit.arm == arm and self._is_asked_for(unit) for unit in outcomes)
        if self.weights == "configured" or arm == STUDENT_ALONE:
            return len(self.seeds)
        survivors = len(self._survivors(arm, outcomes)) or SURVIVORS
        return len(self.seeds) + 1 + (len(FACTORS) + survivors if self.weights == "tuned" else 0)

    def _is_asked_for(self, unit: Unit) -> bool:
        asked = {"scale": self.weights != "configured", "tune": self.weights == "tuned", "score": True}
        return asked[unit.kind]

    def _survivors(self, arm: str, outcomes: Mapping[Unit, Outcome]) -> list[float]:
        return [unit.factor for unit in self._ranked(self._tried(arm, 0, FACTORS), outcomes)[:SURVIVORS]]

    def _tried(self, arm: str, rung: int, factors: Sequence[float]) -> list[Unit]:
        return [Unit("tune", arm, _TUNING_SEED, factor, rung) for factor in factors]

    def _ranked(self, units: Sequence[Unit], outcomes: Mapping[Unit, Outcome]) -> list[Unit]:
        """Return the units that went well, the best first; nothing as long as one is not done."""
        if any(unit not in outcomes for unit in units):
            return []
        good = [(unit, outcomes[unit].score) for unit in units if outcomes[unit].status == "ok"]
        sign = 1 if direction(outcomes)[1] else -1
        return [unit for unit, score in sorted(good, key=lambda pair: -sign * (pair[1] or 0.0))]


def direction(outcomes: Mapping[Unit, Outcome]) -> tuple[str, bool]:
    """Return the name of the score, and whether a larger one is better; as the runs have told it."""
    told = next((outcome for outcome in outcomes.values() if outcome.scored is not None), None)
    return ("score", True) if told is None or told.scored is None else (told.scored, told.higher_is_better)


def _scale(arm: str) -> Unit:
    return Unit("scale", arm, _TUNING_SEED)
