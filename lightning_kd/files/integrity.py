"""Whether a file still holds what was written: the checksums of torch's files, and those of our own safetensors.

torch writes the CRC-32 of every record into a ``.pt`` or ``.ckpt`` file, but never reads it: a bit that has flipped on
the disk becomes another weight. Safetensors have no checksums, so that ours keep one of every tensor in the header,
under ``CHECKSUMS``: the SHA-256 of its type, its shape and its bytes.
"""

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_kd.files.checkpoint import DamagedError, is_zip

CHECKSUMS = "sha256"
"""The key of a safetensors header's metadata that holds, as JSON, the checksum of every tensor by name."""
_BLOCK = 1 << 20
_DIFFERS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)
"""What Python's zipfile raises where a checksum, a size, a name or a flag is not as it was written."""
_DAMAGED = (
    "is damaged: what it holds at {where!r} is not what was written (its checksum differs). Take another copy of the "
    "file; nothing has been loaded."
)


def damaged_record(file: Any) -> str | None:
    """Return the name of a record of a zip file that does not match its checksum, ``None`` if all match.

    Reads the file once from beginning to end, in blocks. What ``torch.save`` wrote while
    ``torch.serialization.set_crc32_options(False)`` held has no checksums, and neither has torch's format before 1.6.

    Args:
        file: A path, or an open file, whose position is not restored.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> torch.save({"weight": torch.tensor([1.0, 2.0])}, file)
        >>> damaged_record(file) is None
        True
        >>> damaged = file.getvalue().replace(torch.tensor([2.0]).numpy().tobytes(), b"AAAA")
        >>> damaged_record(io.BytesIO(damaged))
        'archive/data/0'
    """
    if not is_zip(file):
        return None
    name = "its table of contents"
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            for record in records if any(record.CRC for record in records) else ():
                name = record.filename
                with archive.open(record) as content:
                    while content.read(_BLOCK):
                        pass
    except _DIFFERS:
        return name
    return None


def check_records(file: Any, name: str) -> None:
    """Raise a ``ValueError`` that names the file if a record does not match its checksum, see :func:`damaged_record`.

    Args:
        file: A path, or an open file, whose position is restored.
        name: What the file is called, for the message.
    """
    start = file.tell() if hasattr(file, "tell") else None
    try:
        found = damaged_record(file)
    finally:
        if start is not None:
            file.seek(start)
    if found is not None:
        raise DamagedError(f"{name} {_DAMAGED.format(where=found)}")


def with_checksums(content: bytes) -> list[bytes | memoryview]:
    """Return a safetensors file, in pieces to write one after the other, with the checksum of every tensor.

    The order within the header is always the same, so the same weights give the same bytes.

    Args:
        content: The file without checksums.
    """
    size = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    data = memoryview(content)[8 + size :]
    sums = {}
    for name, tensor in header.items():
        start, end = tensor["data_offsets"]
        sums[name] = _checksum(tensor["dtype"], tensor["shape"], data[start:end])
    metadata = dict(sorted({**metadata, CHECKSUMS: json.dumps(sums)}.items()))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data so
    return [len(text).to_bytes(8, "little"), text, data]


def checksums_of(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return the checksums that the metadata of a safetensors file holds, empty if it holds none of ours."""
    try:
        found = json.loads((metadata or {})[CHECKSUMS])
    except (KeyError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_tensor(path: str, name: str, tensor: Tensor, dtype: str, sums: Mapping[str, str]) -> None:
    """Raise a ``ValueError`` that names file and tensor if the tensor does not match its checksum.

    Args:
        path: The file, for the message.
        name: The tensor's name.
        tensor: The tensor as it was read.
        dtype: Its type, as the file calls it.
        sums: The checksums of the file; empty if it has none.
    """
    if sums:
        content: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        if _checksum(dtype, tensor.shape, content) != sums.get(name):
            raise DamagedError(f"The file {path!r} {_DAMAGED.format(where=name)}")


def _checksum(dtype: str, shape: Any, content: memoryview) -> str:
    found = hashlib.sha256(f"{dtype} {list(shape)}\n".encode())
    found.update(content)
    return found.hexdigest()
