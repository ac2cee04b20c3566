"""What a look at the training data has taken is given to the Trainer: nothing of a stream is lost or read twice."""

import copy
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_kd.capture.generators import generators_in, set_state, state_of
from lightning_kd.capture.networks import isolated_random_state
from lightning_kd.fit.patches import Patches

_State = tuple[Any, Any, Any]
"""The random states of torch, Python and NumPy."""


class Kept:
    """Stands for ``dataloader()`` of Lightning's data source: gives the Trainer what the look has got, once.

    The Trainer gets what it would have got. So the hook is called again if a checkpoint is loaded in between, if its
    module or data module has changed (a tuner sets the batch size), or if it draws other random numbers by then.

    Args:
        trainer: The Trainer, during ``setup`` of a fit.
        source: Lightning's data source.
        request: Lightning's way to ask a source.
        patches: Where this is remembered as a replacement.
    """

    def __init__(self, trainer: Trainer, source: Any, request: Callable[[Any], Any], patches: Patches) -> None:
        self.trainer = trainer
        self.source = source
        self.patches = patches
        self.ask = source.dataloader
        self.moment = _Moment()
        self.owner = _facts(source.instance)
        with isolated_random_state():
            self.loader = request(source)
            self.moment.end()
        self.given_back: list[tuple[Any, Any]] = []
        """Loaders, and what the Trainer gets in their place."""

    def __call__(self) -> Any:
        """Answer the Trainer."""
        self.patches.put_back(self.source, "dataloader")
        by_hook = isinstance(self.source.instance, LightningModule | LightningDataModule)
        loader = self.loader
        if by_hook and not (self._is_as_it_was() and self.moment.can_stand_for_now()):
            loader = self.ask()
        elif by_hook:
            self.moment.pass_by()
        for given, instead in self.given_back:
            loader = _replaced(loader, given, instead)
        return loader

    def _is_as_it_was(self) -> bool:
        return not self.trainer.ckpt_path and self.owner == _facts(self.source.instance)


class Peeked:
    """The beginning of a stream, and the stream after it.

    Its class bears the name of the stream's own, for messages that tell what the data is.

    Args:
        trainer: The Trainer.
        loader: An iterable of batches.
    """

    def __new__(cls, trainer: Trainer, loader: Any) -> "Peeked":
        """Make an object of a class of the stream's name."""
        return super().__new__(type(type(loader).__name__, (cls,), {}))

    def __init__(self, trainer: Trainer, loader: Any) -> None:
        self.loader = loader
        self._trainer = trainer
        self.taken: list[Any] = []
        self._moment = _Moment()
        self._own = _OwnDraws(loader)
        self._rest: Iterator[Any] | None = None
        self.begun = False
        self._seed = 0
        self._after_seed: _State | None = None

    def take_until(self, condition: Callable[[Any], bool]) -> Any:
        """Take batches, up to the first that satisfies a condition, and return that, ``None`` if there is none."""
        with self._seeds_apart(), _seeding_workers(self._trainer, self.loader):
            self._rest = rest = iter(self.loader)
        batch = None
        for batch in rest:
            self.taken.append(batch)
            if condition(batch):
                break
        else:
            batch = None
        self._moment.end()
        self._own.end()
        return batch

    def __iter__(self) -> Iterator[Any]:
        rest = self._rest
        if rest is None or self.begun:
            return iter(self.loader)
        if rest is not self.loader and not self._can_go_on():
            self._rest = None
            return iter(self.loader)
        if isinstance(self.loader, DataLoader) and (self._own_seeds or self._only_seed()):
            _draw_seed(self.loader.generator)
        elif rest is not self.loader:
            self._moment.pass_by()
        self._own.pass_by()
        return _Rest(self, rest)

    def _can_go_on(self) -> bool:
        """Whether the stream, begun now, would begin as it did."""
        if self._trainer.ckpt_path:
            return False
        if getattr(self.loader, "num_workers", 0) and _draw_seed(self._seeds()) != self._seed:
            return False
        return self._own.can_stand_for_now() and (self._only_seed() or self._moment.can_stand_for_now())

    def _only_seed(self) -> bool:
        """Whether a DataLoader has drawn nothing but the seed that it draws for its workers."""
        return not self._own_seeds and _same(self._after_seed, self._moment.after)

    @property
    def _own_seeds(self) -> bool:
        return getattr(self.loader, "generator", None) is not None

    def _seeds(self) -> torch.Generator:
        """Return a copy of the generator that draws the seed of a loader's workers."""
        generator = getattr(self.loader, "generator", None)
        return (generator if isinstance(generator, torch.Generator) else torch.default_generator).clone_state()

    @contextmanager
    def _seeds_apart(self) -> Iterator[None]:
        """Let a DataLoader draw the seed of its workers from a copy of its generator."""
        if not isinstance(self.loader, DataLoader):
            yield
            return
        seeds = self._seeds()
        self._seed = _draw_seed(seeds)
        if not self._own_seeds:
            self._after_seed = (seeds.get_state(), *self._moment.before[1:])
            yield
            return
        attributes = vars(self.loader)
        generator, attributes["generator"] = attributes["generator"], self._seeds()
        try:
            yield
        finally:
            attributes["generator"] = generator

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # while a copy is made
            raise AttributeError(name)
        return getattr(self.loader, name)


class _Rest:
    """The iterator of a stream, with the batches before it that were taken."""

    def __init__(self, peeked: Peeked, rest: Iterator[Any]) -> None:
        self._peeked = peeked
        self._batches = list(peeked.taken)
        self._rest = rest

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._peeked.begun = True
        self._peeked.taken.clear()
        return self._batches.pop(0) if self._batches else next(self._rest)

    def __getattr__(self, name: str) -> Any:
        if name == "_rest":
            raise AttributeError(name)
        return getattr(self._rest, name)


def give_back(source: Any, peeked: Peeked, patches: Patches) -> None:
    """Let the Trainer begin a stream with what was taken from it.

    A DataLoader stays the object that it is.
    """
    loader = peeked.loader
    if isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__:
        # torch 2.10 to 2.14 make every iterator by this method, and keep that of persistent workers by this name
        if loader.persistent_workers:
            vars(loader)["_iterator"] = None
        patches.once(loader, "_get_iterator", lambda: iter(peeked))
    else:
        kept: Kept = vars(source)["dataloader"]
        kept.given_back.append((loader, peeked))


@contextmanager
def _seeding_workers(trainer: Trainer, loader: Any) -> Iterator[None]:
    """Start workers as Lightning 2.6 does after ``seed_everything(workers=True)``, which is not before the fit."""
    seeded = int(os.environ.get("PL_SEED_WORKERS", 0)) and isinstance(loader, DataLoader)
    if not seeded or loader.worker_init_fn is not None:
        yield
        return
    loader.worker_init_fn = partial(pl_worker_init_function, rank=trainer.global_rank)
    try:
        yield
    finally:
        loader.worker_init_fn = None


def _draw_seed(generator: torch.Generator | None) -> int:
    """Draw as every iterator of a DataLoader does when it is made."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


class _Moment:
    """The random state before and after something, which can be done in place of doing it later."""

    def __init__(self) -> None:
        self.before = self.after = _random_state()

    def end(self) -> None:
        """Note the state after it."""
        self.after = _random_state()

    def can_stand_for_now(self) -> bool:
        """Whether doing it now would draw the same numbers, or none."""
        return _same(self.before, self.after) or _same(self.before, _random_state())

    def pass_by(self) -> None:
        """Leave the random state as doing it now would."""
        if not _same(self.before, self.after):
            torch.set_rng_state(self.after[0])
            random.setstate(self.after[1])
            np.random.set_state(self.after[2])


class _OwnDraws:
    """What the beginning of a stream has drawn from random generators that it holds, apart from that of its loader.

    They stand where they stood until the Trainer begins the stream: a checkpoint says where they began, and a stream
    that is begun anew draws the same rows again.

    Args:
        loader: An iterable of batches that is about to be begun.
    """

    def __init__(self, loader: Any) -> None:
        names = ("dataset", "collate_fn", "sampler", "batch_sampler")
        parts = [getattr(loader, name, None) for name in names] if isinstance(loader, DataLoader) else [loader]
        of_loader = getattr(loader, "generator", None)  # from which a copy draws the seed of the workers
        self._generators = [one for one in generators_in(parts) if one is not of_loader]
        self._before = self._after = self._states()

    def _states(self) -> list[Any]:
        return [copy.deepcopy(state_of(one)) for one in self._generators]

    def end(self) -> None:
        """Note what was drawn, and put the generators back."""
        self._after = self._states()
        self._put(self._before)

    def can_stand_for_now(self) -> bool:
        """Whether the generators stand where they stood before the beginning."""
        return _equal(self._before, self._states())

    def pass_by(self) -> None:
        """Leave the generators as beginning the stream now would."""
        self._put(self._after)

    def _put(self, states: list[Any]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            set_state(generator, state)


def _equal(a: Any, b: Any) -> bool:
    """Whether two states of generators, and what they are made of, are the same."""
    if isinstance(a, torch.Tensor | np.ndarray):
        return bool((a == b).all())
    if isinstance(a, dict):
        return all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _random_state() -> _State:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _same(a: _State | None, b: _State) -> bool:
    return a is not None and _equal(a, b)


def _facts(owner: Any) -> dict[str, Any]:
    """Return what a data loader may depend on that its owner's user can change: plain values, and which objects."""
    if not isinstance(owner, LightningModule | LightningDataModule):
        return {}
    facts = {name: value for name, value in vars(owner).items() if not name.startswith("_")}
    facts = {name: value for name, value in facts.items() if not callable(getattr(type(owner), name, None))}
    facts |= {f"hparams.{name}": value for name, value in owner.hparams.items()}
    plain = (int, float, str, bool, type(None))
    return {name: value if isinstance(value, plain) else id(value) for name, value in facts.items()}


def _replaced(loaders: Any, given: Any, instead: Any) -> Any:
    """Return the loaders, in lists and dictionaries, with one in place of another."""
    if loaders is given:
        return instead
    if type(loaders) in (list, tuple):
        return type(loaders)(_replaced(one, given, instead) for one in loaders)
    if type(loaders) is dict:
        return {name: _replaced(one, given, instead) for name, one in loaders.items()}
    if hasattr(loaders, "flattened"):
        loaders.flattened = [_replaced(one, given, instead) for one in loaders.flattened]
    return loaders
