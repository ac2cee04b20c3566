"""The random generators that the training data draws from by itself: of loaders, samplers and data sets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_kd.capture.generators import generators_in, set_state, state_of
from lightning_kd.fit.patches import Patches

KEY = "data_generators"
"""Under which the state of a process holds them."""


class DataGenerators:
    """Knows the random generators of the training data, with their states as the data of the epoch was begun.

    Such are ``DataLoader(generator=...)``, ``RandomSampler(generator=...)``, and those that a sampler, a data set or a
    ``collate_fn`` of the user's own holds. One that several of them share is known once.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._own: list[Any] = []
        self._start: list[Any] = []
        self._known = False
        """Whether the Trainer has begun the data, so that its generators are known."""
        self._complete = False
        """Whether all loaders of the epoch are among those that are known."""
        self._persist = False
        """Whether the workers of a loader live on from epoch to epoch."""

    def join(self, trainer: Trainer, patches: Patches, saved: Any) -> None:
        """Look at each train loader before the Trainer begins it.

        Args:
            trainer: The Trainer, during ``setup`` of a fit.
            patches: Where the replacement of a method of the strategy is remembered.
            saved: Returns what a checkpoint holds of this process that the fit goes on from, ``None`` without one.
        """
        self._begin()
        process = trainer.strategy.process_dataloader

        def process_dataloader(dataloader: object) -> object:
            processed = process(dataloader)
            if trainer.training:
                # of a later epoch Lightning begins the data twice, the second time after begin_again or go_on
                self._take(processed, saved() if trainer.current_epoch == 0 else None)
            return processed

        patches.replace(trainer.strategy, "process_dataloader", process_dataloader)

    def _take(self, loader: Any, saved: Mapping[str, Any] | None) -> None:
        """Note the generators of a loader; in a fit that goes on, they begin as the interrupted one's did."""
        if self._complete or not self._known:  # the loaders of a fit, or those that take their place later
            self._own, self._start = [], []
            self._known, self._complete = True, False
        old = {id(one) for one in self._own}
        parts = [getattr(loader, name, None) for name in ("generator", "sampler", "batch_sampler")]
        of_rows = [getattr(loader, name, None) for name in ("dataset", "collate_fn")]
        new = [one for one in generators_in([*parts, *of_rows, loader]) if id(one) not in old]
        self._persist |= bool(getattr(loader, "persistent_workers", False))
        first, self._own = len(self._own), [*self._own, *new]
        kept = (saved or {}).get(KEY)
        if kept is not None and kept["kinds"][first : len(self._own)] == list(map(_kind, new)):
            _put(new, kept["start"][first : len(self._own)])
        self._start += map(_plain_state, new)

    def epoch_start(self, epoch: int) -> None:
        """Note the states with which the data of an epoch is about to begin; that of the first has begun by now."""
        if epoch > 0:
            self._start = list(map(_plain_state, self._own))
        self._complete = True

    def state(self, *, tuning: bool) -> dict[str, Any] | None:
        """Return what goes into a checkpoint, as plain data; ``None`` before the data is begun.

        Args:
            tuning: Whether a tuner saves where the data is to begin again.
        """
        if not self._known:
            return None
        now = list(map(_plain_state, self._own))
        return {"kinds": list(map(_kind, self._own)), "start": now if tuning else self._start, "now": now}

    def can_go_on(self, saved: Mapping[str, Any], epoch: int) -> bool:
        """Whether the data can go on as a checkpoint left it; says so if it cannot.

        Args:
            saved: What the checkpoint holds of this process.
            epoch: The epoch in which the fit goes on.
        """
        kept = saved.get(KEY)
        if self._persist and epoch > 0:
            rank_zero_warn(
                "Persistent workers keep their random states from epoch to epoch, and no checkpoint holds these. If "
                "the training data draws random numbers, such as an augmentation, the fit that goes on gives other "
                "samples than the interrupted one would have. Set persistent_workers=False in both."
            )
        if kept is None:
            if self._own and KEY not in saved:
                self._tell("was written by a version that did not keep them")
            return False
        if kept["kinds"] != list(map(_kind, self._own)):
            self._tell(f"holds those of {kept['kinds'] or 'none'}, and the data has {list(map(_kind, self._own))} now")
            return False
        return True

    def begin_again(self, saved: Mapping[str, Any]) -> None:
        """Put the generators where they were as the interrupted run began the data of the epoch."""
        self._start = list(saved[KEY]["start"])
        _put(self._own, self._start)

    def go_on(self, saved: Mapping[str, Any]) -> None:
        """Put the generators where they were as the checkpoint was written."""
        self._start = list(saved[KEY]["start"])
        _put(self._own, saved[KEY]["now"])

    @staticmethod
    def _tell(why: str) -> None:
        rank_zero_warn(
            "The training data draws from random generators of its own (generator=...), whose states the checkpoint "
            f"does not tell: it {why}. So the fit that goes on may read its rows in another order than the interrupted "
            "one would have. Make the data loaders and samplers as they were made for that run, with the same version."
        )


def _kind(generator: Any) -> str:
    if isinstance(generator, torch.Generator):
        return f"torch.Generator on {generator.device.type}"
    inner = f" of {type(generator.bit_generator).__name__}" if isinstance(generator, np.random.Generator) else ""
    return f"{type(generator).__module__.partition('.')[0]}.{type(generator).__name__}{inner}"


def _put(generators: Sequence[Any], states: Sequence[Any]) -> None:
    for generator, state in zip(generators, states, strict=True):
        set_state(generator, _from_plain(state))


def _plain_state(generator: Any) -> Any:
    return _plain(state_of(generator))


def _plain(state: Any) -> Any:
    """Return a state as plain data, which a checkpoint can hold: NumPy keeps arrays in it."""
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return {"array": state.tolist(), "format": state.dtype.name} if isinstance(state, np.ndarray) else state


def _from_plain(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.cpu()
    if not isinstance(state, dict):
        return state
    if state.keys() == {"array", "format"}:
        return np.array(state["array"], dtype=state["format"])
    return {name: _from_plain(value) for name, value in state.items()}
