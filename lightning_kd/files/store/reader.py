"""Reads rows of a store, and finds the rows of samples by their contents."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_kd.capture.contents import TINY, same, tolerance
from lightning_kd.files.store.manifest import Manifest, Shard, read_manifest
from lightning_kd.files.store.remote import Remote, is_remote
from lightning_kd.files.store.verified import check_once, check_size, check_whole

_OPEN = 256
"""How many shards are mapped into memory at once."""
_NEAR = 4096
"""How many rows of nearly the same number are looked at for one sample."""
_CLEARLY, _ROUNDING = 4.0, 2e-7
"""By how much the nearest row must be nearer than the next, and what float32 rounds anyway; relative to the norm."""
_LENGTHS = ".lengths"
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


Numbers = dict[str, Any]
"""Arrays (rows, 3) of contents by the input's name; see ``lightning_kd.capture.contents``."""


class Store:
    """A store that is open for reading. Shards are mapped into memory, so only the rows that are asked for are read.

    On opening, the sizes of all files and the whole file of contents are checked. The checksum of a shard is computed
    when it is first read.

    Args:
        folder: The folder of the store, or its URL.

    Raises:
        FileNotFoundError: If there is no finished store, or a file of it is missing.
        ValueError: If a file is cut, longer, damaged or of another version.
    """

    def __init__(self, folder: str) -> None:
        self.remote = Remote(folder) if is_remote(folder) else None
        self.folder = Path(folder) if self.remote is None else self.remote.folder
        self.manifest: Manifest = read_manifest(self.folder)
        for shard in self.manifest.shards if self.remote is None else ():
            check_size(self.folder / shard.file, shard)
        self._begin()

    def _begin(self) -> None:
        self._shards: OrderedDict[int, _Mapped] = OrderedDict()
        rows = self.manifest.contents
        assert rows is not None, "a manifest that was read"
        mapped = self._open(rows)
        self._arrays: Numbers = {name: mapped.tensors[f"input:{name}"].numpy() for name in self.manifest.inputs}
        self.digests = mapped.tensors["digest"].numpy()
        """Eight bytes of a checksum of each row's inputs: rows of one input have the same."""
        of_sides = {n: of for n, of in mapped.tensors.items() if n.endswith(_LENGTHS)}
        self.lengths = {name.removesuffix(_LENGTHS): of for name, of in of_sides.items()}
        """Number of tokens of each row by the side of the network, where rows have positions of their own."""
        self._keep = mapped
        self._orders: dict[str, _Order] = {}

    def __getstate__(self) -> dict[str, Any]:
        # a process that is started anew opens the files itself
        return {"folder": self.folder, "manifest": self.manifest, "remote": self.remote}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __len__(self) -> int:
        return self.manifest.rows

    def check_all(self) -> None:
        """Read every file to its end, and raise a ``ValueError`` if one is damaged."""
        assert self.manifest.contents is not None, "a manifest that was read"
        for shard in (*self.manifest.shards, self.manifest.contents):
            if self.remote is not None:
                self.remote.fetch(shard)
            check_whole(self.folder / shard.file, shard)

    def find(self, found: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> Tensor:
        """Return the row of each sample, -1 of those that the store does not hold.

        Args:
            found: The contents of the samples' inputs, by the inputs' names.
            dtypes: The formats of these inputs.

        Raises:
            ValueError: If a sample may be one of several rows, of other inputs.
        """
        key = max(found, key=lambda name: self._order(name).distinct) if len(found) > 1 else next(iter(found))
        order, numbers = self._order(key), found[key].numpy()
        middle = numbers[:, 1].astype(np.float64)
        off = 2.0 * (numbers[:, 0] * tolerance(dtypes[key], _dtype(self.manifest.inputs[key])) + TINY)
        first = np.searchsorted(order.numbers, middle - off)
        count = np.searchsorted(order.numbers, middle + off, "right") - first
        most = int(count.max(initial=0))
        if most > _NEAR:
            raise ValueError(self._doubt(int(count.argmax()), f"any of {most:,} rows"))
        if not most:
            return torch.full((len(first),), -1)
        steps = np.arange(most)[:, None]
        candidates = order.rows[np.minimum(first + steps, len(order.rows) - 1)]
        return self.choose(torch.from_numpy(candidates), found, dtypes, torch.from_numpy(steps < count))

    def choose(
        self,
        candidates: Tensor,
        found: Mapping[str, Tensor],
        dtypes: Mapping[str, torch.dtype],
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Return for each sample the row of its own input among some, -1 if it is none of them.

        Args:
            candidates: Rows of the store (K, B), of which each sample may be one.
            found: The contents of the samples' inputs.
            dtypes: The formats of these inputs.
            allowed: Which of the candidates count; by default all.

        Raises:
            ValueError: If another row, of another input, is nearly as near as the nearest.
        """
        rows = candidates.numpy()
        fits: Any = np.ones(rows.shape, dtype=bool) if allowed is None else allowed.numpy()
        far: Any = 0.0
        for name, of in found.items():
            numbers, stored = of.numpy(), self._arrays[name].take(rows, 0)
            fits = fits & same(numbers, stored, dtypes[name], _dtype(self.manifest.inputs[name]))
            if len(rows) > 1:
                far = np.maximum(far, (abs(numbers - stored) / (stored[..., :1] + TINY)).max(-1))
        if len(rows) == 1:
            return torch.from_numpy(np.where(fits[0], rows[0], -1))
        far = np.where(fits, far, np.inf)
        best = far.argmin(0)[None]
        nearest, closest = (np.take_along_axis(one, best, 0)[0] for one in (rows, far))
        others = fits & (far <= _CLEARLY * closest + _ROUNDING) & (self.digests[rows] != self.digests[nearest])
        if others.any():
            sample = int(others.any(0).argmax())
            twin = int(rows[:, sample][others[:, sample]][0])
            raise ValueError(self._doubt(sample, f"row {int(nearest[sample])} or row {twin}"))
        return torch.from_numpy(np.where(fits.any(0), nearest, -1))

    def _doubt(self, sample: int, rows: str) -> str:
        return (
            f"CachedTeacher: sample {sample} of the batch may be {rows} of {str(self.folder)!r}: their inputs differ "
            "too little, beside their size, to be told apart. Let batches carry rows: wrap the data set in "
            "lightning_kd.data.Indexed. Or scale the inputs, or give them in float32."
        )

    def read(self, name: str, rows: Tensor) -> Tensor:
        """Return some rows of an item; of one with positions, the positions of all rows one after another.

        Args:
            name: The item, such as ``logits`` or ``layer:layer3``.
            rows: The rows, on the CPU.

        Raises:
            ValueError: If a shard is damaged, or has changed since it was opened.
        """
        wanted, item = rows.numpy(), self.manifest.items[name.partition("#")[0]]
        side = item["side"] if item["kind"] == "tokens" else None
        numbers = wanted // self.manifest.shard_rows
        shards = np.unique(numbers).tolist() or [0]  # of no rows there is an empty answer
        if len(shards) == 1:
            return self._rows(shards[0], name, wanted, side)
        if side is not None:
            single = [self._rows(int(n), name, wanted[i : i + 1], side) for i, n in enumerate(numbers)]
            return torch.cat(single)
        places = [np.flatnonzero(numbers == number) for number in shards]
        parts = [self._rows(n, name, wanted[of], None) for n, of in zip(shards, places, strict=True)]
        return torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(places)))]

    def read_ahead(self, rows: Tensor) -> None:
        """Read rows of all items once, so that the operating system has them in memory for every process.

        Args:
            rows: The rows, on the CPU; at least one.

        Raises:
            ValueError: If a shard is damaged, or has changed since it was opened.
        """
        for name in self._shard(int(rows[0]) // self.manifest.shard_rows).tensors:
            if name.partition("#")[0] in self.manifest.items:
                self.read(name, rows)

    def _rows(self, shard: int, name: str, wanted: Any, side: str | None) -> Tensor:
        return self._shard(shard).rows(name, wanted - shard * self.manifest.shard_rows, side)

    def _shard(self, number: int) -> "_Mapped":
        mapped = self._shards.get(number)
        if mapped is None:
            shard = self.manifest.shards[number]
            mapped = self._shards[number] = self._open(shard)
            if len(self._shards) > _OPEN:
                self._shards.popitem(last=False)
        else:
            mapped.check_unchanged()
            self._shards.move_to_end(number)
        return mapped

    def _open(self, shard: Shard) -> "_Mapped":
        if self.remote is not None:
            self.remote.fetch(shard)
        return _Mapped(self.folder / shard.file, shard)

    def _order(self, name: str) -> "_Order":
        if name not in self._orders:
            _, once = np.unique(self.digests, return_index=True)  # an input that stands in several rows is one
            column = self._arrays[name][once, 1]
            order = np.argsort(column, kind="stable")
            numbers = column[order].astype(np.float64)
            self._orders[name] = _Order(once[order], numbers, int(np.count_nonzero(np.diff(numbers))))
        return self._orders[name]


class _Order(NamedTuple):
    """Rows by one of the numbers of an input."""

    rows: Any
    numbers: Any
    distinct: int
    """How many inputs that number tells apart."""


class _Mapped:
    """A file of tensors that is mapped into memory."""

    def __init__(self, path: Path, shard: Shard) -> None:
        self.path = path
        self.found = check_once(path, shard)
        try:
            opened: Any = safe_open(path, "pt")
            names = opened.keys()
            self.tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"The file {str(path)!r} of the store cannot be read: {error}; write the store anew."
            ) from error
        self._raw = {name: of.view(_INTEGERS[of.element_size()]).numpy() for name, of in self.tensors.items()}

    def check_unchanged(self) -> None:
        """Raise a ``ValueError`` in words where reading a file that was cut would end the process."""
        try:
            now = self.path.stat()
        except OSError as error:
            raise ValueError(f"The file {str(self.path)!r} of the store has gone during the run: {error}.") from error
        if (now.st_size, now.st_mtime_ns) != (self.found.st_size, self.found.st_mtime_ns):
            raise ValueError(
                f"The file {str(self.path)!r} of the store has changed during the run, from {self.found.st_size:,} to "
                f"{now.st_size:,} bytes; a store must stay as it is while a fit reads it."
            )

    def rows(self, name: str, rows: Any, side: str | None) -> Tensor:
        """Return rows of a tensor, copied; the positions of all rows one after another if each has its own."""
        raw, dtype = self._raw[name], self.tensors[name].dtype
        if side is not None:
            offsets = self._raw[f"{side}.offsets"]
            spans = [np.arange(offsets[row], offsets[row + 1]) for row in rows]
            rows = np.concatenate(spans) if spans else rows
        return torch.from_numpy(raw.take(rows, 0)).view(dtype)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype), "as the writer names it"
    return dtype
