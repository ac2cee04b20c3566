"""What a store of answers says of itself: a JSON file beside its shards."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_kd.files.atomic import atomic_write

SCHEMA = 1
"""Version of the form of a store; a reader refuses another one."""
NAME = "manifest.json"
PLAN = "writing.json"
ROWS = "rows.safetensors"
FIRST_ANSWERS, TAKES, OPTIONS, COLUMNS = "first_answers", "takes", "options", "columns"
"""Of the teacher its first answers and which inputs it takes, and of the data the inputs of whole batches and the names
of all columns; a store of an earlier version says nothing of them."""


@dataclass(frozen=True)
class Shard:
    """One file of a store.

    Args:
        file: Its name in the folder.
        rows: How many rows it holds.
        size: Its size in bytes.
        sha256: The checksum of the file.
    """

    file: str
    rows: int
    size: int
    sha256: str


@dataclass
class Manifest:
    """What the shards of a store hold, and of whom.

    Args:
        rows: Number of rows of the store: one for each sample and view.
        views: How many views of each sample there are; the rows of a sample lie side by side.
        shard_rows: Number of rows of each shard but the last.
        items: What is stored of each row, by name (``logits``, or a layer after ``layer:``): ``shape`` of a row,
            ``dtype``, and ``kind``: ``dense``, or ``tokens`` if each row has as many positions as it has tokens on its
            ``side``, that of the encoder or of the decoder; with ``top_k`` the number of tokens kept at each position.
        inputs: The inputs whose contents are stored, with their formats.
        axes: What the axes of each layer mean.
        layers: Which layers each loss reads, by the loss's name.
        view: What made the teacher's inputs of the student's, ``None`` if they are the same.
        head: Which of several outputs of the teacher the logits are, ``None`` if it returns one.
        teacher: Class, number of parameters and fingerprint of the teacher, numbers of its first answers, and the
            inputs that it takes.
        data: Number of samples of the data set, fingerprints of the first and the last row, and that of all rows,
            the inputs that are of a whole batch, and the names of all columns.
        made_with: Versions, format, batch size and device, with which a teacher's answers move.
        shards: The files, in the order of the rows.
        contents: The file of the rows' contents.
    """

    rows: int
    views: int
    shard_rows: int
    items: dict[str, dict[str, Any]]
    inputs: dict[str, str]
    axes: dict[str, dict[str, Any]] = field(default_factory=dict)
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    view: Any = None
    head: Any = None
    teacher: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, Any] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
    contents: Shard | None = None

    def plan(self) -> dict[str, Any]:
        """Return, as JSON holds it, what must be the same for a writer to go on where another one has stopped.

        The same answers may be written with other batch sizes, and on another machine.
        """
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        for name in ("shards", "contents", "made_with"):
            del plain[name]
        plain["data"] = {name: self.data.get(name) for name in ("samples", "first_row", "last_row", OPTIONS)}
        return plain

    def shard_of(self, number: int) -> tuple[int, int]:
        """Return the first row of a shard, and the row after its last one."""
        return number * self.shard_rows, min(self.rows, (number + 1) * self.shard_rows)

    @property
    def count(self) -> int:
        """Number of shards that the rows fill."""
        return -(-self.rows // self.shard_rows)


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.safetensors"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which makes the store one that can be read."""
    write_plain(folder / NAME, {"schema": SCHEMA, **dataclasses.asdict(manifest)})


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a store.

    Raises:
        FileNotFoundError: If the folder holds no store, or one that is not finished.
        ValueError: If it is of another schema, or was changed since it was written.
    """
    if not (folder / NAME).is_file():
        if (folder / PLAN).is_file():
            raise FileNotFoundError(
                f"The store {str(folder)!r} is not finished: it is being written, or its writer was stopped. Run the "
                "same `lightning-kd cache` command again; it goes on where it stopped."
            )
        inside = "is no folder" if not folder.is_dir() else f"has no {NAME}"
        raise FileNotFoundError(
            f"There is no store of a teacher's answers in {str(folder)!r}, which {inside}; write one with "
            "`lightning-kd cache --config FIT.yaml --output DIR`."
        )
    plain = read_plain(folder / NAME)
    schema = plain.pop("schema", None)
    if schema != SCHEMA:
        raise ValueError(
            f"The store {str(folder)!r} has the schema {schema}, but this version of lightning_kd reads {SCHEMA}; "
            "write the store anew."
        )
    try:
        shards = [Shard(**one) for one in plain.pop("shards")]
        manifest = Manifest(**{**plain, "shards": shards, "contents": Shard(**plain["contents"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"The manifest of the store {str(folder)!r} lacks a part: {error}.") from error
    if sum(one.rows for one in shards) != manifest.rows or len(shards) != manifest.count:
        raise ValueError(f"The manifest of the store {str(folder)!r} contradicts itself; write the store anew.")
    return manifest


def write_plain(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain data as JSON, with a checksum of it inside."""
    text = json.dumps({**content, "checksum": _checksum(content)}, indent=1, sort_keys=True)
    with atomic_write(path) as file:
        file.write(text.encode())


def read_plain(path: Path) -> dict[str, Any]:
    """Read what :func:`write_plain` has written.

    Raises:
        ValueError: If it is no JSON, or the checksum in it is another than that of its content.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError("no object")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The file {str(path)!r} is damaged: it is no JSON ({error}); write the store anew."
        ) from error
    if content.pop("checksum", None) != _checksum(content):
        raise ValueError(
            f"The file {str(path)!r} was changed after it was written: its checksum does not fit. Copy the store "
            "again, or write it anew."
        )
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def differences(one: Mapping[str, Any], other: Mapping[str, Any], parts: Sequence[str] = ()) -> list[str]:
    """Return in words what differs between two pieces of plain data, such as ``dtype: 'float16', not 'bfloat16'``."""
    found: list[str] = []
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, (*parts, key))
        else:
            found.append(f"{'.'.join((*parts, key))}: {a!r}, not {b!r}")
    return found
