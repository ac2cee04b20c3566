"""Networks of torchvision for the classes of images."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_kd.named.fetching import fetched, import_library
from lightning_kd.named.names import Name, nearest
from lightning_kd.named.wanted import tell

_CACHE = "the folder ~/.cache/torch/hub (TORCH_HOME)"


def pretrained(name: Name) -> nn.Module:
    """Return a network with the weights that torchvision recommends for it."""
    models = _models(name)
    weights = models.get_model_weights(name.network).DEFAULT

    def load() -> nn.Module:
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True)  # refuses a file that would run code
        made = models.get_model(name.network, weights=weights)
        assert isinstance(made, nn.Module)
        return made

    by_hand = f"import torchvision; torchvision.models.get_model({name.network!r}, weights='DEFAULT')"
    made = fetched(name, load, by_hand, _CACHE)
    names = weights.meta["categories"]
    _tell(made, weights, len(names), names)
    return made


def fresh(name: Name, classes: int | None, class_names: Sequence[str] | None) -> nn.Module:
    """Return a network with new weights; it wants images as the pretrained one does."""
    models = _models(name)
    weights = models.get_model_weights(name.network).DEFAULT
    number = len(weights.meta["categories"]) if classes is None else classes
    made = models.get_model(name.network, weights=None, num_classes=number)
    assert isinstance(made, nn.Module)
    _tell(made, weights, number, class_names)
    return made


def check(name: Name, *, weights: bool) -> None:
    """Check that torchvision has a network; it has weights for each."""
    _models(name)


def _models(name: Name) -> Any:
    torchvision = import_library("torchvision")
    models = torchvision.models
    known = models.list_models(module=models)
    if name.network not in known:
        other = name.network in models.list_models()
        why = "is not for classes of images; build it, and give that" if other else "is none of its networks"
        raise ValueError(
            f"torchvision {torchvision.__version__}: {name.network!r} {why}.{nearest(name.network, known)} All: "
            "torchvision.models.list_models(module=torchvision.models)."
        )
    return models


def _tell(network: nn.Module, weights: Any, classes: int, names: Sequence[str] | None) -> None:
    wanted = weights.transforms()
    size = list(wanted.crop_size)
    tell(
        network,
        statistics=(list(wanted.mean), list(wanted.std)),
        size=(size[0], size[-1]),
        classes=classes,
        names=names,
    )
