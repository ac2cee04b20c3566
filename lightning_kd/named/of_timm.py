"""Networks of timm."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_kd.named.fetching import fetched, import_library
from lightning_kd.named.names import Name, nearest
from lightning_kd.named.wanted import TOLD

_CACHE = "the folder ~/.cache/huggingface (HF_HOME)"
_ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:", "local_dir:")
"""How names begin that timm looks up on the hub or on the disk."""


def pretrained(name: Name) -> nn.Module:
    """Return a network with the weights that timm has for it."""
    check(name, weights=True)
    return _loaded(name, pretrained=True)


def fresh(name: Name, classes: int | None, class_names: Sequence[str] | None) -> nn.Module:
    """Return a network with new weights."""
    check(name, weights=False)
    made = _loaded(name, pretrained=False, num_classes=classes)
    if classes is not None:  # the names that timm knows are those of its weights
        setattr(made, TOLD, {**getattr(made, TOLD), "label_names": None if class_names is None else list(class_names)})
    return made


def check(name: Name, *, weights: bool) -> None:
    """Check that timm has a network, and weights for it; names of the hub and of the disk are not looked up."""
    timm = import_library("timm")
    if name.network.startswith(_ELSEWHERE):
        return
    bare, _, tag = name.network.partition(".")
    if not timm.is_model(bare):
        raise ValueError(
            f"timm {timm.__version__} has no network {bare!r}.{nearest(bare, timm.list_models())} All: "
            "timm.list_models()."
        )
    tagged = timm.list_pretrained()
    tags = [other for other in tagged if other.partition(".")[0] == bare]
    if tag and name.network not in tagged:
        there = nearest(name.network, tags) or (f" There are {tags}." if tags else " It has none.")
        raise ValueError(f"timm {timm.__version__} has no weights {name.network!r}.{there}")
    if weights and not tags and not timm.is_model_pretrained(bare):
        raise ValueError(
            f"timm {timm.__version__} has no weights for {bare!r}, and a network that has learnt nothing cannot teach."
            f"{nearest(bare, {other.partition('.')[0] for other in tagged})} Or build it, load your own weights by "
            "lightning_kd.teachers.from_checkpoint, and give that."
        )


def _loaded(name: Name, **options: Any) -> nn.Module:
    timm = import_library("timm")

    def load() -> nn.Module:
        made = timm.create_model(name.network, **options)
        assert isinstance(made, nn.Module)
        return made

    if not options["pretrained"] and not name.network.startswith(_ELSEWHERE):
        return load()
    return fetched(name, load, f"import timm; timm.create_model({name.network!r}, pretrained=True)", _CACHE)
