"""A teacher whose answers were stored: no network runs."""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, final

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_kd.capture.axes import Axes
from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import TARGET_KEYS
from lightning_kd.capture.decoder_mask import masks_of
from lightning_kd.capture.private import tree_leaves
from lightning_kd.files.store.bits import unpacked
from lightning_kd.files.store.foreign import SUFFIXES, Holds, Table
from lightning_kd.files.store.manifest import NAME, PLAN
from lightning_kd.files.store.reader import Store
from lightning_kd.files.store.remote import exists, is_remote
from lightning_kd.losses.tokens.sparse import SparseLogits
from lightning_kd.teachers.base import Split, Teacher
from lightning_kd.teachers.seen_inputs import SeenInputs

LOGITS = "logits"
LAYER = "layer:"
HEAD = "head:"


@final
class CachedTeacher(Teacher):
    r"""Looks up what ``lightning-kd cache`` or ``lightning_kd.cache.write`` has stored of a teacher; no network runs.

    Each sample that the student is called with is found in the store: by the row that the batch carries (``Indexed``),
    or by its contents where a batch carries none. Either way the contents are compared: three numbers of each input
    were stored with each answer. So an input that the teacher has not seen is refused, such as one that was augmented
    at random or mixed with another, wherever that happens. A change of an input by less than 2e-5 of its norm, or 1e-2
    in bfloat16, is not noticed. Inputs of a whole batch, such as a mode, must be those of the store, and so must the
    columns that the teacher takes: those that the student does not take are looked for in the batch.

    The answers on validation and test data are stores of their own. Without them the teacher's part of an evaluation is
    left out, which is told.

    A table of logits or probabilities that somebody else has made, ``.npy``, ``.csv`` or ``.parquet``, is read as well.
    It says nothing of the samples, so batches must carry rows, and nobody can check that they are the right ones.

    Args:
        path: The folder of the store, its URL (``s3://...``, as fsspec knows them), or the file of a table.
        val: The store of the validation data; by default the folder ``val`` in that of the store, if there is one.
        test: The store of the test data; by default the folder ``test``.
        holds: What a table holds.
        temperature: The temperature at which the probabilities of a table were computed.

    Raises:
        FileNotFoundError: If there is no finished store.
        ValueError: If a file of it is cut, longer or damaged; at set-up, if a loss reads a layer that was not stored,
            the first samples are not in the store, or an input that the teacher takes is missing, new, or of another
            value for the whole batch; in a step, if a sample is not in the store, or such an input is another.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_kd import cache
        >>> from lightning_kd.losses import KDLoss
        >>> x = torch.randn(20, 4)
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = cache.write(nn.Linear(4, 3), TensorDataset(x), folder.name, losses=[KDLoss()])
        >>> teacher = CachedTeacher(folder.name)
        >>> teacher.answer(None, Call(args=(x[5:7],))).output.shape
        torch.Size([2, 3])
        >>> folder.cleanup()
    """

    looks_up = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        val: str | os.PathLike[str] | None = None,
        test: str | os.PathLike[str] | None = None,
        *,
        holds: Holds = "logits",
        temperature: float = 1.0,
    ) -> None:
        self.path = os.fspath(path)
        is_table = Path(self.path).suffix in SUFFIXES
        if not temperature > 0.0:
            raise ValueError(f"CachedTeacher: expected temperature > 0, got {temperature}.")
        if not is_table and (holds != "logits" or temperature != 1.0):
            raise ValueError(
                f"CachedTeacher: holds and temperature are of a table {SUFFIXES}, and have no effect on the store "
                f"{self.path!r}, which says itself what it holds; leave them out."
            )
        if holds == "logits" and temperature != 1.0:
            raise ValueError("CachedTeacher: temperature is of probabilities, and has no effect on logits.")
        open_one = (lambda place: Table(Path(place), holds, temperature)) if is_table else Store
        self._stores: dict[Split, Store | Table | None] = {"train": open_one(self.path)}
        others: dict[Split, str | os.PathLike[str] | None] = {"val": val, "test": test}
        for split, given in others.items():
            beside = f"{self.path}/{split}"
            if given is None and not is_table and _is_begun(beside):
                given = beside
            self._stores[split] = None if given is None else open_one(os.fspath(given))
        self._seen: dict[Store, SeenInputs] = {}
        self._split: Split = "train"
        self._told: set[str] = set()
        self._samples: int | None = None
        self._layers: tuple[str, ...] = ()

    @property
    def axes(self) -> Mapping[str, Axes]:
        """What the axes of the stored layers mean."""
        store = self._stores["train"]
        if not isinstance(store, Store):
            return {}
        plain = store.manifest.axes
        return {
            name: Axes(**{**of, "shape": tuple(of["shape"]), "grid": _pair(of["grid"])}) for name, of in plain.items()
        }

    @property
    def chosen_layers(self) -> Mapping[str, Mapping[str, Any]]:
        """Which layers the losses read that name none, by the names of the losses."""
        store = self._stores["train"]
        return store.manifest.layers if isinstance(store, Store) else {}

    @property
    def number(self) -> int | None:
        """What the answers come to: of a store, those of one teacher on one data set."""
        store = self._stores["train"]
        if not isinstance(store, Store):
            return None
        told = {"teacher": store.manifest.teacher["sha256"], "data": store.manifest.data["sha256"]}
        return zlib.crc32(json.dumps([told, store.manifest.view], sort_keys=True).encode())

    @property
    def stored_columns(self) -> tuple[str, ...]:
        """The inputs of which the store was written, as far as the teacher takes them."""
        store = self._stores["train"]
        return self._seen_of(store).columns if isinstance(store, Store) else ()

    @property
    def stored_heads(self) -> tuple[int | str, ...]:
        """Which of several outputs of the teacher are stored by name."""
        store = self._stores["train"]
        return tuple(_heads_in(store)) if isinstance(store, Store) else ()

    def begin_split(self, split: Split) -> None:
        """Read the store of the training, validation or test data from now on."""
        self._split, self.ready = split, self._stores[split] is not None
        if not self.ready and split not in self._told:
            self._told.add(split)
            rank_zero_info(
                f"The teacher's part of {split}/ is left out: {self.path!r} holds its answers on the training "
                f"data alone. Store those on the {split} data with `lightning-kd cache --split {split} --output "
                f"{self.path}/{split}`."
            )

    def see_fit(self, samples: int | None, options: Mapping[str, Any]) -> None:
        """Learn of the data and the options of a fit.

        Raises:
            ValueError: If a table has another number of rows, or the fit would give the teacher other inputs than it
                had when the store was written, or read another of its outputs.
        """
        self._samples = samples
        view, head = options.get("teacher_inputs"), options.get("teacher_logits", options.get("logits"))
        table = self._stores["train"]
        if isinstance(table, Table) and samples is not None and samples != len(table):
            raise ValueError(
                f"CachedTeacher: {self.path!r} has {len(table)} rows, but the training data has {samples} samples; a "
                "table has a row for each sample, in the order of the data set."
            )
        for store in self._stores.values():
            if isinstance(store, Store):
                _check_options(store, view, head)

    def watch(self, layers: Iterable[str]) -> None:
        """Check that the layers that the losses read were stored."""
        self._layers = tuple(dict.fromkeys(layers))
        store = self._stores["train"]
        held = (
            [n.removeprefix(LAYER) for n in store.manifest.items if n.startswith(LAYER)]
            if isinstance(store, Store)
            else []
        )
        missing = [name for name in self._layers if name not in held]
        if missing:
            layer_words = f"the layers {held}" if held else "no layers"
            raise ValueError(
                f"A loss reads the teacher's layer {missing[0]!r}, but {self.path!r} holds {layer_words}. Store "
                "it: run `lightning-kd cache --config FIT.yaml --output DIR` with a configuration that has this loss "
                "and the teacher itself, or give the loss to lightning_kd.cache.write(..., losses=[...])."
            )

    def first_answer(self, batch: Any, call: Call) -> Call:
        """Answer at set-up; of an example that is no sample with the first rows of the store."""
        if not call.is_example:
            return self.answer(batch, call)
        store, student = self._now(), call if call.of is None else call.of
        return self._lesson(store, torch.arange(student.rows()) % len(store), student)

    def answer(self, batch: Any, call: Call) -> Call:
        """Return the stored answers on the samples that the student was called with."""
        store = self._now()
        student = call if call.of is None else call.of
        if isinstance(store, Table):
            rows = self._rows_of_table(store, student, call.index)
        else:
            rows = self._rows(store, student, call.index, batch)
        return self._lesson(store, rows, student)

    def _now(self) -> Store | Table:
        store = self._stores[self._split]
        assert store is not None, "ready"
        return store

    def _rows_of_table(self, store: Table, call: Call, index: Tensor | None) -> Tensor:
        if index is None:
            raise ValueError(
                f"CachedTeacher: {str(store.path)!r} is a table, which does not know its samples, so batches must "
                "carry each sample's row: wrap the data set in lightning_kd.data.Indexed. If it is, the training step "
                "has called the student with other values than the batch holds, whose rows are not known."
            )
        rows = index.detach().cpu().long()
        if len(rows) != call.rows():
            raise ValueError(
                f"CachedTeacher: the batch carries {len(rows)} rows, but the student was called with {call.rows()} "
                "samples; a table cannot tell whose they are."
            )
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(store):
            raise ValueError(
                f"CachedTeacher: the batch carries the row {int(rows.max())}, but {str(store.path)!r} has "
                f"{len(store)} rows."
            )
        return rows

    def _rows(self, store: Store, call: Call, index: Tensor | None, batch: Any) -> Tensor:
        """Find the row of each sample, and check that the teacher has seen it."""
        found, dtypes = self._contents(store, call, batch)
        views, count = store.manifest.views, len(next(iter(found.values())))
        if index is not None and len(index) == count:
            given = index.detach().cpu().long()
            if not count or 0 <= int(given.min()) <= int(given.max()) < len(store) // views:
                rows = store.choose(given * views + torch.arange(views).unsqueeze(1), found, dtypes)
                if bool((rows >= 0).all()):
                    return rows
        rows = store.find(found, dtypes)
        missing = rows < 0
        if missing.any():
            raise ValueError(self._unknown(store, missing.nonzero().flatten().tolist(), count, index))
        if index is not None and len(index) == count and self._samples == len(store) // views:
            other = (rows // views != index.cpu()).nonzero().flatten().tolist()
            if other:
                raise ValueError(
                    f"CachedTeacher: the data is in another order than when {str(store.folder)!r} was written: what "
                    f"the batch calls row {int(index[other[0]])} was row {int(rows[other[0]]) // views}. Write the "
                    "store anew, or leave out Indexed: without rows the samples are found by their contents."
                )
        return rows

    def _unknown(self, store: Store, missing: list[int], count: int, index: Tensor | None) -> str:
        row = "" if index is None or len(index) != count else f" (row {int(index[missing[0]])} of the data)"
        return (
            f"CachedTeacher: {len(missing)} of {count} samples that the student was called with are not in "
            f"{str(store.folder)!r}, the first is sample {missing[0]} of the batch{row}. The teacher has not seen "
            "them: the data is other data or has grown, another transform is applied, or the samples are augmented "
            "or mixed at random, in the data set, the collate function, on_after_batch_transfer or the training step. "
            "Store views that come again, lightning_kd.data.Replayed(dataset, views=K), take the augmentation away, or "
            "use the teacher itself."
        )

    def _seen_of(self, store: Store) -> SeenInputs:
        if store not in self._seen:
            self._seen[store] = SeenInputs(store.manifest, str(store.folder))
        return self._seen[store]

    def _contents(self, store: Store, call: Call, batch: Any) -> tuple[dict[str, Tensor], dict[str, torch.dtype]]:
        common = self._seen_of(store).numbers(call, batch)
        given = {v.dtype for v in _tensors(call)}
        coarse = next((d for d in (torch.bfloat16, torch.float16) if d in given), torch.float32)
        return {n: of.cpu() for n, of in common.items()}, dict.fromkeys(common, coarse)

    def _lesson(self, store: Store | Table, rows: Tensor, call: Call) -> Call:
        device = next((v.device for v in _tensors(call)), torch.device("cpu"))
        if isinstance(store, Table):
            return Call(called=True, output=store.read(rows).to(device))
        items = store.manifest.items
        labels = next((call.kwargs[key] for key in TARGET_KEYS if key in call.kwargs), None)
        masks = masks_of(call.kwargs, labels) if store.lengths else {}

        of_logits = items.get(LOGITS, {})
        kept = of_logits.get("top_k") or of_logits.get("draws") or 0

        def read(name: str, item: str, fill: Tensor | float = 0.0) -> Tensor:
            value = store.read(name, rows)
            if name.endswith("#ids"):
                ids = unpacked(value.flatten(0, -2), kept, items[item]["bits"])
                value = ids.view(*value.shape[:-1], kept)
            value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
            if items[item]["kind"] == "tokens":
                side = items[item]["side"]
                value = _at_places(value, masks[side], store.lengths[side][rows], fill)
            return value.to(device, non_blocking=True)

        features = {name: read(LAYER + name, LAYER + name) for name in self._layers}
        output: Any = None
        if LOGITS in items:
            if not kept:
                output = read(LOGITS, LOGITS)
            else:
                ids = read(f"{LOGITS}#ids", LOGITS, torch.arange(kept) % of_logits["vocabulary"])
                if of_logits.get("draws"):
                    output = SparseLogits.from_draws(ids)
                else:
                    output = SparseLogits(ids, read(f"{LOGITS}#log_probs", LOGITS))
        heads = {head: read(item, item) for head, item in _heads_in(store).items()}
        if heads:  # as a network with several outputs returns them; the one without a name is that of the task
            of_task = "logits" if store.manifest.head is None else store.manifest.head
            output = heads if output is None else {of_task: output, **heads}
        return Call(called=True, output=output, features=features)


def _check_options(store: Store, view: object, head: object) -> None:
    """Raise a ``ValueError`` if a fit would ask a teacher otherwise than it was asked for a store."""
    manifest, folder = store.manifest, str(store.folder)
    if view is not None and json.loads(json.dumps(view)) != manifest.view:
        raise ValueError(
            f"CachedTeacher: teacher_inputs={view} has no effect on stored answers, and {folder!r} was written with "
            f"{'none' if manifest.view is None else manifest.view}; write the store anew with it, or leave it out."
        )
    if head != manifest.head:
        raise ValueError(
            f"CachedTeacher: {folder!r} holds the teacher's output {manifest.head!r}, but the fit reads {head!r} "
            "(teacher_logits); name the one that is stored, or write the store anew."
        )
    if view is None and manifest.view is not None:
        rank_zero_info(f"The answers in {folder!r} are of a teacher with teacher_inputs={manifest.view}.")


def _heads_in(store: Store) -> dict[int | str, str]:
    """Return the item of each output that is stored by name."""
    items = {item.removeprefix(HEAD): item for item in store.manifest.items if item.startswith(HEAD)}
    return {int(name) if name.isdecimal() else name: item for name, item in items.items()}


def _tensors(call: Call) -> list[Tensor]:
    """Return the tensors of a call."""
    inputs = (*call.args, *call.kwargs.values())
    if not all(isinstance(value, Tensor) for value in inputs):
        inputs = tuple(tree_leaves((call.args, call.kwargs)))
    return [value for value in inputs if isinstance(value, Tensor)]


def _is_begun(folder: str) -> bool:
    """Whether there is a store in a folder, finished or not."""
    if is_remote(folder):
        return exists(folder)
    return any((Path(folder) / name).is_file() for name in (NAME, PLAN))


def _pair(value: Any) -> tuple[int, int] | None:
    return None if value is None else (value[0], value[1])


def _at_places(value: Tensor, mask: Tensor | None, lengths: Tensor, fill: Tensor | float) -> Tensor:
    """Put the positions of all rows where the batch at hand has its tokens."""
    if mask is None:
        if len(lengths.unique()) > 1:
            raise ValueError(
                f"CachedTeacher: the rows have from {int(lengths.min())} to {int(lengths.max())} tokens, and nothing "
                "says where they stand in the batch; call the student with an attention_mask, or with the labels of "
                "its decoder."
            )
        return value.view(len(lengths), -1, *value.shape[1:])
    if not torch.equal(mask.sum(1), lengths):
        raise ValueError(
            f"CachedTeacher: the rows were stored with {lengths.tolist()} tokens, but the batch has "
            f"{mask.sum(1).tolist()}; cut and pad the texts as when the store was written."
        )
    placed = value.new_zeros(*mask.shape, *value.shape[1:])
    placed[:] = fill
    placed[mask] = value
    return placed
