"""A teacher from a file: safetensors, a plain state dict, or the student inside a Lightning checkpoint."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lightning_kd.capture.networks import plain_name
from lightning_kd.capture.private import replace_tensors
from lightning_kd.distributed.whole_state import placed_like
from lightning_kd.files.checkpoint import reading
from lightning_kd.files.integrity import check_tensor, checksums_of
from lightning_kd.files.reading import load_plain

_OWNERS = frozenset({"model", "module", "net", "network", "student", "teacher"})
"""Names that a LightningModule or a wrapper gives the network that it holds, possibly beside other things."""


def from_checkpoint(model: nn.Module, path: str | os.PathLike[str], prefix: str = "") -> nn.Module:
    """Load weights from a file into a model, strictly, without running code from the file.

    Args:
        model: The model that the weights belong to.
        path: A ``.safetensors`` file, a state dict saved by ``torch.save``, or a Lightning ``.ckpt``.
        prefix: Part of the key names to cut off, such as ``"student."`` for a checkpoint of a
            ``DistillationModule``; keys that do not begin with it are left out.

    Returns:
        The same model, with the weights of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file breaks off in the middle, is damaged, holds more than tensors and plain data (the
            message names it; no code of it has run), no key begins with ``prefix``, or the weights do not fit.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"net.weight": torch.ones(1, 2), "net.bias": torch.zeros(1)}, f"{folder}/teacher.pt")
        ...     from_checkpoint(nn.Linear(2, 1), f"{folder}/teacher.pt", prefix="net.").weight
        Parameter containing:
        tensor([[1., 1.]], requires_grad=True)
    """
    state = _with_tied(read_weights(path, prefix), model)
    own = model.state_dict()
    names = {plain_name(key): key for key in own}  # the keys of a compiled model have a prefix
    for key, value in state.items():
        _check_kind(repr(str(path)), key, value, own.get(names.get(key, key)))
    try:
        model.load_state_dict({names.get(key, key): value for key, value in state.items()})
    except RuntimeError as error:
        raise ValueError(
            f"The weights in {os.fspath(path)!r} do not fit {type(model).__name__}; build the architecture that they "
            f"were saved from{'' if prefix else ', or give the prefix of its keys'}. {error}"
        ) from error
    return model


def read_weights(path: str | os.PathLike[str], prefix: str = "") -> dict[str, Tensor]:
    """Read the weights whose names begin with a prefix, which is cut off, under the names of a plain model.

    Args:
        path: As for :func:`from_checkpoint`.
        prefix: As for :func:`from_checkpoint`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file breaks off in the middle, holds no state dict, or no name begins with ``prefix``.
    """
    state = {plain_name(key[len(prefix) :]): value for key, value in _read(Path(path)) if key.startswith(prefix)}
    if not state:
        raise ValueError(f"No weight in {str(path)!r} has a name that begins with {prefix!r}.")
    return state


def materialize(
    model: nn.Module, paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], device: torch.device | str
) -> None:
    """Give a model on the meta device storage, and the weights of files, strictly, one tensor at a time.

    A parameter that is sharded over processes takes its own part only, so no process ever holds the whole model.

    Args:
        model: The model on the meta device, sharded or not.
        paths: File or files as for :func:`from_checkpoint`; together they hold all weights. Safetensors are read one
            tensor at a time.
        device: Where the model is to be.

    Example:
        >>> import tempfile
        >>> with torch.device("meta"):
        ...     model = nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, f"{folder}/teacher.pt")
        ...     materialize(model, f"{folder}/teacher.pt", "cpu")
        >>> model.weight
        Parameter containing:
        tensor([[1., 1.]], requires_grad=True)

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a weight has another shape, or is missing (buffers too) or unknown.
    """
    before = list(_named_tensors(model))
    waiting = {name for name, tensor in before if tensor.is_meta}
    # tied weights are one tensor under several names; one key for them makes one storage, so they stay tied
    storage = {tensor: torch.empty_like(tensor, device=device) for _, tensor in before if tensor.is_meta}
    replace_tensors(model, lambda t: storage[t] if t in storage else t.to(device))
    original, wanted = dict(before), dict(_named_tensors(model))
    files = _listed(paths)
    prefix = _prefix_in([name for path in files for name, _ in _read(Path(path))], wanted, files)
    for path in files:
        for key, value in _read(Path(path)):
            if not key.startswith(prefix):
                continue
            name = key[len(prefix) :]
            target = wanted.get(name)
            if target is None or target.shape != value.shape:
                shape = None if target is None else tuple(target.shape)
                found = f"no such weight{_nearest(name, wanted)}" if shape is None else f"the shape {shape}"
                raise ValueError(
                    f"{os.fspath(path)!r} has {name!r} of shape {tuple(value.shape)}, but {type(model).__name__} has "
                    f"{found}; build the architecture that was saved."
                )
            _check_kind(repr(str(path)), name, value, target)
            with torch.no_grad():
                target.copy_(placed_like(value, target))
            waiting -= {other for other, tensor in before if tensor is original[name]}
    if waiting:
        missing = sorted(waiting)
        named = ", ".join(str(Path(path)) for path in files)
        raise ValueError(
            f"{named}: no weights for {missing[:5]}{' and others' if missing[5:] else ''} of {type(model).__name__}; "
            "give all files. A buffer that no file holds must not be on the meta device: make it with device='cpu'."
        )


def load_weights(
    model: nn.Module, paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], prefix: str | None = None
) -> None:
    """Load the weights of files into a model, strictly: every weight of the model, and nothing else.

    Args:
        model: The model.
        paths: File or files as for :func:`from_checkpoint`; together they hold all weights.
        prefix: What the keys begin with; by default nothing, or the one beginning, such as ``"model."`` in a Lightning
            checkpoint, without which the keys are exactly the model's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a weight has another shape, is missing or unknown, or several beginnings would do.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1, bias=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"model.weight": torch.ones(1, 2)}}, f"{folder}/teacher.ckpt")
        ...     load_weights(model, f"{folder}/teacher.ckpt")
        >>> model.weight.tolist()
        [[1.0, 1.0]]
    """
    files = _listed(paths)
    state = _together(files)
    wanted = {plain_name(key): (key, value) for key, value in model.state_dict().items()}
    if prefix is None:
        prefix = _prefix_in(state, wanted, files)
    found = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    found = _with_tied(found, model)
    named, whose = ", ".join(repr(str(path)) for path in files), type(model).__name__
    advice = "Build the architecture that was saved, or give its file."
    missing = [key for key in wanted if key not in found]
    if missing:
        raise ValueError(
            f"{named}: no weights for {missing[:5]}{' and others' if missing[5:] else ''} of {whose}"
            f"{_nearest(missing[0], found)}. {advice}"
        )
    unknown = [key for key in found if key not in wanted]
    if unknown:
        raise ValueError(
            f"{named}: {whose} has no weights {unknown[:5]}{' and others' if unknown[5:] else ''}"
            f"{_nearest(unknown[0], wanted)}. {advice}"
        )
    for key, value in found.items():
        old = wanted[key][1]
        if isinstance(old, Tensor) and old.shape != value.shape:
            raise ValueError(
                f"{named} has {key!r} of shape {tuple(value.shape)}, but {whose} has the shape {tuple(old.shape)}. "
                f"{advice}"
            )
        _check_kind(named, key, value, old)
    model.load_state_dict({wanted[key][0]: value for key, value in found.items()})


def _check_kind(path: str, name: str, value: object, target: object) -> None:
    """Raise a ``ValueError`` if a file holds whole numbers where a model has real ones, as quantised files do."""
    if not isinstance(value, Tensor) or not isinstance(target, Tensor) or not target.is_floating_point():
        return
    if not value.is_floating_point():
        raise ValueError(
            f"{path} holds {name!r} as {str(value.dtype).removeprefix('torch.')}, but the model has "
            f"{str(target.dtype).removeprefix('torch.')}. If the file is quantised, its numbers mean nothing without "
            "their scales: give the file of real weights, or quantise a loaded network by QuantizedTeacher. Else build "
            "the architecture that was saved."
        )


def _together(files: Sequence[str | os.PathLike[str]]) -> dict[str, Tensor]:
    """Return the weights of several files, which must not hold the same one twice."""
    state: dict[str, Tensor] = {}
    owners: dict[str, object] = {}
    for path in files:
        for name, value in _read(Path(path)):
            key = plain_name(name)
            if owners.setdefault(key, path) is not path:
                raise ValueError(
                    f"{str(owners[key])!r} and {str(path)!r} both hold {key!r}; give the files of one network, or one "
                    "file."
                )
            state[key] = value
    return state


def _with_tied(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights with both names of one that has two in a model; safetensors writes one of them alone."""
    names: dict[int, list[str]] = {}
    for name, tensor in _named_tensors(model):
        names.setdefault(id(tensor), []).append(plain_name(name))
    found = dict(state)
    for same in names.values():
        known = next((state[name] for name in same if name in state), None)
        if known is not None and len(same) > 1:
            found |= {name: known for name in same if name not in state}
    return found


def _listed(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _prefix_in(keys: Iterable[str], wanted: Iterable[str], files: Sequence[object]) -> str:
    """Return the one beginning of keys without which they are exactly the wanted ones, ``""`` if there is none.

    Raises:
        ValueError: If several beginnings would do, as in a checkpoint that holds two networks of one architecture.
    """
    keys, wanted = set(keys), set(wanted)
    if not wanted or keys & wanted:
        return ""
    first = min(wanted)
    prefixes = sorted(key.removesuffix(first) for key in keys if key.endswith(f".{first}"))
    fitting = [one for one in prefixes if {key[len(one) :] for key in keys if key.startswith(one)} == wanted]
    if not any(one.partition(".")[0] in _OWNERS or all(key.startswith(one) for key in keys) for one in fitting):
        return ""  # a part of another network that happens to have such weights
    if len(fitting) > 1:
        named = ", ".join(repr(str(path)) for path in files)
        raise ValueError(
            f"{named}: {' and '.join(map(repr, fitting))} both begin the keys of such a network; build the network by "
            f"lightning_kd.teachers.from_checkpoint(network, path, prefix={fitting[0]!r}) instead."
        )
    return fitting[0]


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that names what is nearest to a name."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f"; nearest to {name!r}: {', '.join(near)}" if near else ""


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and weights of a file, each read when it is asked for where the format allows."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r} (looked from {str(Path.cwd())!r}).")
    if path.suffix == ".safetensors":
        with reading(path), safe_open(path, framework="pt") as file:
            sums = checksums_of(file.metadata())
            for name in file.keys():  # noqa: SIM118  safetensors' file is no dictionary and cannot be iterated over
                tensor = file.get_tensor(name)
                check_tensor(str(path), name, tensor, file.get_slice(name).get_dtype(), sums)
                yield name, tensor
        return
    content = load_plain(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{str(path)!r} holds no state dict, but a {type(content).__name__}.")
    yield from content.items()
