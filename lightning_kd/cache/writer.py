"""Reads every row of a data set, and writes what the teacher answers into the shards of a store."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast, get_args

import torch
from filelock import FileLock, Timeout
from lightning_utilities.core.rank_zero import rank_zero_info
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm import tqdm

from lightning_kd.cache.asker import Asker, axes_of_layers, bytes_of, fingerprint_of_weights
from lightning_kd.cache.first_answers import check_same_teacher, distance, first_answers, share_in_batches, share_of
from lightning_kd.cache.items import (
    Format,
    bytes_per_row,
    describe_items,
    digests,
    formats_of_inputs,
    rows_of,
    values_of,
)
from lightning_kd.cache.rounding import check_rounding
from lightning_kd.cache.whole_batch import check_options, names_in, options_read, what_it_takes
from lightning_kd.capture.attention import part_and_block
from lightning_kd.capture.batch import Batch
from lightning_kd.capture.contents import contents, same
from lightning_kd.capture.decoder_mask import Side, masks_of
from lightning_kd.capture.heads import Head
from lightning_kd.capture.networks import device_of
from lightning_kd.data.indexed import Indexed, has_rows, with_row
from lightning_kd.data.replayed import Replayed
from lightning_kd.files.atomic import atomic_write
from lightning_kd.files.store.manifest import (
    COLUMNS,
    FIRST_ANSWERS,
    NAME,
    OPTIONS,
    PLAN,
    ROWS,
    TAKES,
    Manifest,
    Shard,
    read_manifest,
    read_plain,
    shard_name,
    write_manifest,
    write_plain,
)
from lightning_kd.teachers.cached import LOGITS

SHARD_BYTES = 256 * 2**20
"""Size of a shard, unless the user gives its number of rows."""
_SMALL = 65_536
"""Logits of at most so many numbers are stored though no loss reads them: the evaluation compares them."""


class Every(Dataset[Any]):
    """All rows of a store: each sample, or each view of each sample."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        replayed = dataset.dataset if isinstance(dataset, Indexed) else dataset
        self.views = replayed.views if isinstance(replayed, Replayed) else 1

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __len__(self) -> int:
        return self.samples * self.views

    def __getitem__(self, row: int) -> Any:
        if self.views == 1:
            return self.dataset[row]
        sample, view = divmod(row, self.views)
        if isinstance(self.dataset, Indexed):
            return with_row(cast(Replayed, self.dataset.dataset).view(sample, view), sample)
        return self.dataset.view(sample, view)


class Writer:
    """Writes a store.

    Args:
        asker: Who asks the teacher.
        dataset: The data set.
        folder: The folder of the store.
        form: How the answers are stored.
        batch_size: How many rows the teacher is asked about at once.
        shard_rows: How many rows a file holds.
        collate_fn: Makes a batch of samples.
        num_workers: How many processes read the data.
        transfer: Brings a batch to the teacher, as the fit would bring it to the student.
        part: Number of this process, and of all processes.
        layers: Which layers each loss reads, by the loss's name.
        needs_logits: Whether a loss reads the logits.
        view: What makes the teacher's inputs, as plain data.
        head: Which of several outputs the logits are.

    Raises:
        TypeError: If the data set has no rows by number.
    """

    def __init__(
        self,
        asker: Asker,
        dataset: Dataset[Any],
        folder: Path,
        form: Format,
        *,
        batch_size: int = 64,
        shard_rows: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        transfer: Callable[[Any], Any],
        part: tuple[int, int] = (0, 1),
        layers: dict[str, dict[str, Any]] | None = None,
        needs_logits: bool = True,
        view: object = None,
        head: Head = None,
    ) -> None:
        if isinstance(dataset, IterableDataset) or not has_rows(dataset):
            raise TypeError(
                f"A teacher's answers are stored by row, but {type(dataset).__name__} has no rows by number; use a "
                "data set with __getitem__ and __len__."
            )
        if batch_size < 1 or (shard_rows is not None and shard_rows < 1) or not 0 <= part[0] < part[1]:
            raise ValueError(
                "Expected batch_size >= 1, shard_rows >= 1 and 0 <= rank < world_size, got "
                f"{batch_size}, {shard_rows}, {part[0]} and {part[1]}."
            )
        attention = next((name for name in asker.layers if part_and_block(name) is not None), None)
        if attention is not None:
            raise ValueError(
                f"A loss reads {attention[1:-1]}, but attention is not stored: it grows with the square of the tokens. "
                "Give the fit the teacher itself, or leave this loss out."
            )
        if asker.frozen.changes_over_time:
            raise ValueError(
                f"{type(asker.frozen).__name__} gives other answers at other times of a fit, so they cannot be stored; "
                "store those of each of its networks."
            )
        if form.top_k is not None and form.draws is not None:
            raise ValueError("top_k and draws are two ways to keep a few tokens; give one of them.")
        self.asker, self.folder, self.form, self.part = asker, folder, form, part
        self.every = Every(dataset)
        self.dataset = dataset
        self.batch_size, self.shard_rows = batch_size, shard_rows
        self.collate_fn, self.num_workers = collate_fn, num_workers
        self.transfer = transfer
        self.layers, self.needs_logits, self.view, self.head = layers or {}, needs_logits, view, head

    def write(self) -> Path:
        """Write the store, or go on with it, and return its folder."""
        if not len(self.every):
            raise ValueError("The data set has no rows, so there is nothing to store.")
        try:
            manifest, size, first = self._plan()
            if (self.folder / NAME).is_file():
                finished = read_manifest(self.folder)
                self._check_same(finished.plan(), manifest, first)
                share = share_of(self.form.dtype, finished.made_with, manifest.made_with)
                told = distance(self.folder, first, share)
                rank_zero_info(f"{str(self.folder)!r} holds this store already: {manifest.rows:,} rows. {told}")
                return self.folder
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self._begin(manifest, first)
                waiting = [n for n in range(self.part[0], manifest.count, self.part[1]) if self._done(n) is None]
                self._check_room(manifest, waiting, size)
                self._write_shards(manifest, waiting)
                self._finish(manifest)
        finally:
            self.asker.stop()
        return self.folder

    def _plan(self) -> tuple[Manifest, float, dict[str, Tensor]]:
        """Return what the store will say of itself, the bytes of a row, and the first rows."""
        rows = list(range(min(self.batch_size, len(self.every))))
        batch, read = self._read(rows)
        self._check_same_twice(rows, read)
        lesson = self.asker.ask(batch, read)
        values = values_of(self.asker, lesson)
        if LOGITS in values and not self.needs_logits and values[LOGITS][0].numel() > _SMALL:
            del values[LOGITS]
        if not values:
            raise ValueError(
                f"What the teacher returns, a {type(lesson.output).__name__}, has no logits, and the losses read no "
                "layers, so there is nothing to store. Of several outputs those are stored that the losses name, such "
                "as KDLoss(head='main'), and the one of teacher_logits='main'."
            )
        items = describe_items(values, read, self.form, self.asker.frozen.module)
        masks = masks_of(read.kwargs, read.target)
        check_rounding(values, items, masks, self.form, reads_logits=self.needs_logits)
        stored = rows_of(values, read, items, self.form, rows)
        self._check_same_alone(rows, read, stored, items)
        size = bytes_per_row(stored, len(rows))
        by_size = max(1, min(len(self.every), int(SHARD_BYTES // size)))
        shard_rows = self.shard_rows or self._known_shard_rows() or by_size
        module = self.asker.frozen.module
        made_with = {
            "torch": torch.__version__,
            "device": device_of(module).type,
            "dtype": str(next((p.dtype for p in module.parameters()), torch.float32)).removeprefix("torch."),
            "batch_size": self.batch_size,
        }
        manifest = Manifest(
            rows=len(self.every),
            views=self.every.views,
            shard_rows=shard_rows,
            items=items,
            inputs=formats_of_inputs(read),
            axes=axes_of_layers(self.asker, batch, read),
            layers=self.layers,
            view=self.view,
            head=self.head,
            teacher={
                "class": type(module).__name__,
                "parameters": sum(p.numel() for p in module.parameters()),
                "sha256": fingerprint_of_weights(module),
                FIRST_ANSWERS: first_answers(values, read, items, made_with),
                TAKES: what_it_takes(self.asker.frozen, by_function=self.asker.by_function),
            },
            data={
                "samples": self.every.samples,
                "first_row": int(digests(read)[0]),
                "last_row": self._last(),
                OPTIONS: self._options(read),
                COLUMNS: names_in(batch),
            },
            made_with=made_with,
        )
        return manifest, size, stored

    def _options(self, read: Batch) -> dict[str, Any]:
        return options_read(self.asker.frozen, read, by_function=self.asker.by_function)

    def _loader(self, batches: list[list[int]]) -> DataLoader[Any]:
        workers, collate_fn = self.num_workers, self.collate_fn
        return DataLoader(self.every, batch_sampler=batches, num_workers=workers, collate_fn=collate_fn)

    def _read(self, rows: list[int]) -> tuple[Any, Batch]:
        """Return some rows as a batch, and the batch taken apart."""
        batch = self.transfer(next(iter(self._loader([rows]))))
        return batch, self.asker.read(batch)

    def _check_same_twice(self, rows: list[int], read: Batch) -> None:
        """Read the first rows again; a sample that is another one by then can have no stored answer."""
        _, again = self._read(rows)
        first, second = contents(read.args, read.kwargs), contents(again.args, again.kwargs)
        for name, of in first.items():
            if len(of) != len(rows):
                raise ValueError(
                    f"A batch of {len(rows)} rows has {len(of)} samples in its input {name!r}, so its rows are not "
                    "known; let the collate function keep every sample."
                )
            if name not in second or not bool(same(second[name].cpu(), of.cpu()).all()):
                raise ValueError(
                    f"Read twice, row {rows[0]} of the data set gives two different inputs {name!r}: it is augmented "
                    "at random, in the data set, the collate function or on_after_batch_transfer. An answer that is "
                    "stored would be of another picture. Wrap the data set in lightning_kd.data.Replayed(dataset, "
                    "views=K), which makes its own augmentation come again, or take the augmentation away."
                )

    def _check_same_alone(
        self, rows: list[int], first: Batch, stored: dict[str, Tensor], items: dict[str, dict[str, Any]]
    ) -> None:
        """Ask about half of the first rows again; an answer that depends on chance or on other rows is not stored."""
        mask = masks_of(first.kwargs, first.target)["encoder"]
        shortest = 0 if mask is None else int(mask.sum(1).argmin())
        half = rows[: max(1, len(rows) // 2)]
        # of texts the shortest alone too, which has the least padding there
        for part in [half] if mask is None else [half, [rows[shortest]]]:
            batch, read = self._read(part)
            again = rows_of(values_of(self.asker, self.asker.ask(batch, read)), read, items, self.form, part)
            for name, value in again.items():
                item = items.get(name.partition("#")[0])
                if item is not None and value.is_floating_point() and value.numel():
                    start = part[0] - rows[0]
                    if item["kind"] == "tokens":
                        start = int(stored[f"{item['side']}.lengths"][:start].sum())
                    self._check_alike(name, stored[name][start : start + len(value)], value, len(rows), part)

    def _check_alike(self, name: str, before: Tensor, now: Tensor, count: int, part: list[int]) -> None:
        share = share_in_batches(self.form.dtype)
        off = (before.double() - now.double()).nan_to_num(0.0).abs().max()
        if bool(off > share * before.double().nan_to_num(0.0, 0.0, 0.0).abs().max()):
            raise ValueError(
                f"{name}: asked twice about row {part[0]}, the teacher gives two answers, which differ by "
                f"{float(off):.3g}. It draws random numbers in eval mode, or its answer depends on the other samples "
                f"of the batch (of {count}, then of {len(part)}), as that of BatchNorm with track_running_stats=False "
                "does, or on the padding. Such an answer is not that of the sample, so it is not stored."
            )

    def _last(self) -> int:
        """Return the fingerprint of the last row."""
        _, read = self._read([len(self.every) - 1])
        return int(digests(read)[0])

    def _known_shard_rows(self) -> int | None:
        with suppress(OSError, ValueError, KeyError):
            return int(read_plain(self.folder / PLAN)["shard_rows"])
        with suppress(OSError, ValueError):
            return read_manifest(self.folder).shard_rows
        return None

    def _check_same(self, there: dict[str, Any], manifest: Manifest, first: dict[str, Tensor]) -> None:
        here = first if (self.folder / shard_name(0)).is_file() else None
        check_same_teacher(self.folder, there, manifest.plan(), self.form.dtype, here)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse to write what another process is writing."""
        lock = FileLock(self.folder / f".rank-{self.part[0]}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"Another process is writing the store {str(self.folder)!r}. Wait for it, or give each process a rank "
                "of its own."
            ) from None
        try:
            yield
        finally:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)

    def _begin(self, manifest: Manifest, first: dict[str, Tensor]) -> None:
        with FileLock(self.folder / ".plan.lock"):
            if (self.folder / PLAN).is_file():
                self._check_same(read_plain(self.folder / PLAN), manifest, first)
            else:
                write_plain(self.folder / PLAN, manifest.plan())

    def _done(self, number: int) -> Shard | None:
        """Return what is known of a shard that is on the disk whole."""
        try:
            shard = Shard(**read_plain(_note(self.folder, number)))
        except (OSError, ValueError, TypeError):
            return None
        path = self.folder / shard.file
        return shard if path.is_file() and path.stat().st_size == shard.size else None

    def _check_room(self, manifest: Manifest, waiting: Sequence[int], size: float) -> None:
        rows = sum(end - start for start, end in map(manifest.shard_of, waiting))
        needed = int(rows * size) + manifest.rows * (8 + 12 * len(manifest.inputs))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                f"The store would take {_show(needed)} more, but {str(self.folder)!r} has room for {_show(free)}; give "
                "a folder on a larger disk, fewer layers, top_k=..., or a format of 16 bits."
            )
        rank_zero_info(
            f"Writing {rows:,} rows of {_show(size)} each, {_show(needed)} in all, into {str(self.folder)!r}."
        )

    def _write_shards(self, manifest: Manifest, waiting: Sequence[int]) -> None:
        spans = [manifest.shard_of(number) for number in waiting]
        step = self.batch_size
        batches = [list(range(at, min(at + step, end))) for start, end in spans for at in range(start, end, step)]
        bar = tqdm(total=sum(map(len, batches)), unit="row", desc="teacher", disable=self.part[0] > 0 or not batches)
        loader = iter(self._loader(batches)) if batches else iter(())
        with bar:
            for number, (start, end) in zip(waiting, spans, strict=True):
                parts: list[dict[str, Tensor]] = []
                for at in range(start, end, step):
                    rows = list(range(at, min(at + step, end)))
                    parts.append(self._rows(next(loader), manifest, rows))
                    bar.update(len(rows))
                self._save(number, end - start, parts)

    def _rows(self, batch: Any, manifest: Manifest, rows: list[int]) -> dict[str, Tensor]:
        batch = self.transfer(batch)
        read = self.asker.read(batch)
        check_options(manifest.data[OPTIONS], self._options(read), read, rows)
        values = values_of(self.asker, self.asker.ask(batch, read))
        stored = rows_of(values, read, manifest.items, self.form, rows)
        for name in manifest.inputs:
            if f"input:{name}" not in stored or len(stored[f"input:{name}"]) != len(rows):
                raise ValueError(
                    f"The batch of rows {rows[0]} to {rows[-1]} lacks an input {name!r} of as many samples."
                )
        return {**stored, "digest": digests(read)}

    def _save(self, number: int, rows: int, parts: list[dict[str, Tensor]]) -> None:
        tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        for side in get_args(Side):
            if f"{side}.lengths" in tensors:
                ends = tensors[f"{side}.lengths"].cumsum(0)
                tensors[f"{side}.offsets"] = torch.cat([torch.zeros(1, dtype=torch.long), ends])
        write_plain(_note(self.folder, number), vars(self._write_file(shard_name(number), rows, tensors)))

    def _write_file(self, name: str, rows: int, tensors: dict[str, Tensor]) -> Shard:
        data = save(tensors)
        with atomic_write(self.folder / name) as file:
            file.write(data)
        return Shard(name, rows, len(data), hashlib.sha256(data).hexdigest())

    def _finish(self, manifest: Manifest) -> None:
        """Write the manifest, if every shard is there: the last process does so."""
        with FileLock(self.folder / ".plan.lock"):
            found = [self._done(number) for number in range(manifest.count)]
            shards = [shard for shard in found if shard is not None]
            if len(shards) < manifest.count or (self.folder / NAME).is_file():
                return
            wanted = [
                "digest",
                *(f"input:{name}" for name in manifest.inputs),
                *(f"{side}.lengths" for side in get_args(Side)),
            ]
            columns: dict[str, list[Tensor]] = {}
            digest = hashlib.sha256()
            for shard in shards:
                tensors = load_file(self.folder / shard.file)
                digest.update(bytes_of(tensors["digest"]))
                for name in wanted:
                    if name in tensors:
                        columns.setdefault(name, []).append(tensors[name])
            whole = {name: torch.cat(column) for name, column in columns.items()}
            manifest.contents = self._write_file(ROWS, manifest.rows, whole)
            manifest.shards = shards
            manifest.data["sha256"] = digest.hexdigest()
            write_manifest(self.folder, manifest)
            (self.folder / PLAN).unlink(missing_ok=True)
            for number in range(manifest.count):
                _note(self.folder, number).unlink(missing_ok=True)
        (self.folder / ".plan.lock").unlink(missing_ok=True)


def _note(folder: Path, number: int) -> Path:
    return folder / f"{shard_name(number)}.json"


def _show(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
