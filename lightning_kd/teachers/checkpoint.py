"""A teacher from a file: safetensors, a plain state dict, or the student inside a Lightning checkpoint."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_kd.checkpoint import reading
from lightning_kd.safe_load import load_plain


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
        ValueError: If the file breaks off in the middle, holds more than tensors and plain data (it is named, and has
            not run), no key begins with ``prefix``, or the weights do not fit.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"net.weight": torch.ones(1, 2), "net.bias": torch.zeros(1)}, f"{folder}/teacher.pt")
        ...     from_checkpoint(nn.Linear(2, 1), f"{folder}/teacher.pt", prefix="net.").weight
        Parameter containing:
        tensor([[1., 1.]], requires_grad=True)
    """
    state = read_weights(path, prefix)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"The weights in {os.fspath(path)!r} do not fit {type(model).__name__}; build the architecture that they "
            f"were saved from{'' if prefix else ', or give the prefix of its keys'}. {error}"
        ) from error
    return model


def read_weights(path: str | os.PathLike[str], prefix: str = "") -> dict[str, Tensor]:
    """Read the weights whose names begin with a prefix, which is cut off.

    Args:
        path: As for :func:`from_checkpoint`.
        prefix: As for :func:`from_checkpoint`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file breaks off in the middle, holds no state dict, or no name begins with ``prefix``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r} (looked from {str(Path.cwd())!r}).")
    state = {key[len(prefix) :]: value for key, value in _read(path).items() if key.startswith(prefix)}
    if not state:
        raise ValueError(f"No weight in {str(path)!r} has a name that begins with {prefix!r}.")
    return state


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        with reading(path):
            return load_file(path)
    content = load_plain(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{str(path)!r} holds no state dict, but a {type(content).__name__}.")
    return content
