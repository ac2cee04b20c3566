"""A network by its name: pretrained, or with new weights."""

from collections.abc import Callable, Sequence
from types import ModuleType

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lightning_kd.named import of_hf, of_timm, of_torchvision
from lightning_kd.named.names import Library, parse

_FILES: dict[Library, ModuleType] = {"timm": of_timm, "torchvision": of_torchvision, "hf": of_hf}


def check(name: str, *, weights: bool) -> None:
    """Check that there is a network of a name, without loading or making it.

    Args:
        name: The name, see :func:`pretrained`.
        weights: Whether there have to be weights for it.

    Raises:
        ImportError: If the library is not installed; names the extra.
        ValueError: If there is no such network, or no weights for it; shows the nearest names.
    """
    parsed = parse(name)
    rank_zero_info(f"Looking up {name} ...")  # importing a library takes seconds
    _FILES[parsed.library].check(parsed, weights=weights)


def pretrained(name: str) -> nn.Module:
    """Return a network with the weights that its library has for it.

    It is in eval mode, and tells how it wants its images under ``pretrained_cfg``, as timm's networks do: ``mean``,
    ``std``, ``input_size``. ``Renormalize()`` reads that. In a configuration file:

    .. code-block:: yaml

        teacher:
          class_path: lightning_kd.named.pretrained
          init_args: {name: "torchvision:resnet50"}

    The name is the only option. For another head, other weights or another size build the network yourself.

    Args:
        name: ``timm:vit_small_patch16_224`` (a tag such as ``.augreg_in21k`` chooses the weights),
            ``torchvision:resnet50``, or ``hf:FOLDER``, where the folder is what ``save_pretrained`` has written, or a
            name on the hub.

    Raises:
        ImportError: If the library is not installed; names the extra.
        ValueError: If there is no such network, or no weights for it; shows the nearest names.
        RuntimeError: If the weights cannot be loaded, such as without a connection.

    Example:
        >>> pretrained("torchvison:resnet50")
        Traceback (most recent call last):
        ...
        ValueError: 'torchvison:resnet50' names no network. Did you mean 'torchvision:resnet50'?
    """
    parsed = parse(name)
    made: nn.Module = _FILES[parsed.library].pretrained(parsed)
    made.eval()
    return made


def fresh(name: str, classes: int | None = None, class_names: Sequence[str] | None = None) -> nn.Module:
    """Return a network with new weights, drawn from torch's random numbers.

    It tells how it wants its images, see :func:`pretrained`. In a configuration file:

    .. code-block:: yaml

        student:
          class_path: lightning_kd.named.fresh
          init_args: {name: "timm:resnet18", classes: 10}

    Args:
        name: The name, see :func:`pretrained`; for ``hf`` a folder with ``config.json`` is enough.
        classes: How many classes it scores; by default as many as the pretrained one.
        class_names: Their names, which the network then tells.

    Raises:
        ImportError: If the library is not installed; names the extra.
        ValueError: If there is no such network (shows the nearest names), or not a name for each class.
    """
    if classes is not None and (classes < 1 or len(class_names or range(classes)) != classes):
        raise ValueError(
            f"fresh: expected classes >= 1 and a name for each or none, got {classes} classes and {class_names} names."
        )
    parsed = parse(name)
    make: Callable[..., nn.Module] = _FILES[parsed.library].fresh
    made = make(parsed, classes, class_names if classes is not None else None)
    made.train()
    return made
