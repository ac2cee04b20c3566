"""Networks of transformers, by the folder that ``save_pretrained`` has written or by their name on the hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_kd.hf.pretrained import Task, from_config, from_pretrained
from lightning_kd.named.fetching import fetched, import_library
from lightning_kd.named.names import Name, nearest
from lightning_kd.named.wanted import tell
from lightning_kd.teachers.normalisation import PROCESSOR, Statistics

_CACHE = "the folder ~/.cache/huggingface (HF_HOME)"
_CONFIG = "config.json"
_TASKS: dict[str, Task] = {
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForMaskedLM": "masked_lm",
    "ForConditionalGeneration": "seq2seq",
    "ForSequenceClassification": "classification",
    "ForImageClassification": "image_classification",
    "ForImageClassificationWithTeacher": "image_classification",
    "ForTokenClassification": "token_classification",
}
"""The task of a network, by the end of the name of its class."""
_OF_CLASSES = ("classification", "image_classification", "token_classification")


def pretrained(name: Name) -> nn.Module:
    """Return a network with its weights, for the task that it was saved for."""
    transformers = import_library("hf")
    folder = _folder(name)
    config = _config(transformers, name, folder)
    task = _task(transformers, name, config, fresh=False)
    made = fetched(name, lambda: from_pretrained(folder, task), _by_hand(name), _CACHE)
    _tell(transformers, made, folder, task)
    return made


def fresh(name: Name, classes: int | None, class_names: Sequence[str] | None) -> nn.Module:
    """Return a network with new weights by its configuration."""
    transformers = import_library("hf")
    folder = _folder(name)
    config = _config(transformers, name, folder)
    task = _task(transformers, name, config, fresh=True)
    options: dict[str, Any] = {}
    if classes is not None and task in _OF_CLASSES:
        names = [f"LABEL_{i}" for i in range(classes)] if class_names is None else class_names
        options = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    made = fetched(name, lambda: from_config(folder, task, **options), _by_hand(name), _CACHE)
    _tell(transformers, made, folder, task)
    return made


def check(name: Name, *, weights: bool) -> None:
    """Check that there is a folder, if the name can be of none on the hub."""
    import_library("hf")
    _folder(name)


def _folder(name: Name) -> str:
    """Return a folder that is there, or a name that can be one of the hub."""
    path = Path(name.network).expanduser()
    if path.is_dir():
        if not (path / _CONFIG).is_file():
            raise ValueError(f"{name}: the folder has no {_CONFIG}, which save_pretrained writes. Give that folder.")
        return str(path)
    if name.network.startswith((".", "/", "~")) or name.network.count("/") > 1 or path.is_file():
        raise ValueError(f"{name}: there is no such folder.{_beside(name)}")
    return name.network


def _beside(name: Name) -> str:
    """Return the end of a message that shows the nearest folders with a network beside one that there is not."""
    path = Path(name.network).expanduser()
    folders = path.parent.glob(f"*/{_CONFIG}") if path.parent.is_dir() else ()
    return nearest(path.name, (other.parent.name for other in folders))


def _config(transformers: Any, name: Name, folder: str) -> Any:
    def load() -> Any:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)

    no_folder = "" if Path(folder).is_dir() else f" There is no folder {folder!r} here.{_beside(name)}"
    return fetched(name, load, _by_hand(name), _CACHE, no_folder)


def _task(transformers: Any, name: Name, config: Any, *, fresh: bool) -> Task:
    """Return what a network is for, by the class that its configuration names."""
    named = (config.architectures or [""])[0]
    for end, task in _TASKS.items():
        if named.endswith(end):
            return task
    of_images = type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    of_texts = type(config) in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if fresh and not named and of_images and not of_texts:
        return "image_classification"
    what = f"is a {named}, which has no head" if named else f"names no class under architectures in its {_CONFIG}"
    build = "from_config" if fresh else "from_pretrained"
    raise ValueError(
        f"{name} {what}, so what it is for cannot be told. Build it by lightning_kd.hf.{build}({name.network!r}, "
        "task=...), and give that."
    )


def _tell(transformers: Any, network: nn.Module, folder: str, task: Task) -> None:
    config: Any = network.config
    of_images = task == "image_classification"
    processor = _processor(transformers, folder) if of_images else {}
    tell(
        network,
        statistics=_statistics(processor) if processor else None,
        size=_size(getattr(config, "image_size", None)) or _size_of(processor) if of_images else None,
        classes=int(config.num_labels) if task in _OF_CLASSES else None,
        names=None,  # they stand in its configuration
    )


def _processor(transformers: Any, folder: str) -> Mapping[str, Any]:
    """Return how images are made for a network, ``{}`` if nothing beside its weights tells."""
    try:
        told = json.loads(Path(transformers.utils.cached_file(folder, PROCESSOR)).read_text())
    except (OSError, ValueError, TypeError):
        return {}
    return told if isinstance(told, Mapping) else {}


def _statistics(processor: Mapping[str, Any]) -> Statistics | None:
    r"""Return mean and deviation for colours in [0, 1].

    The processor gives :math:`(255 f x - \mu) / \sigma` with a factor f, which is 1/255 for most networks.
    """
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    if not isinstance(mean, Sequence) or not isinstance(std, Sequence):
        return None
    factor = 255.0 * (float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0)
    return [float(v) / factor for v in mean], [float(v) / factor for v in std]


def _size_of(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    return (_size(processor.get("crop_size")) if processor.get("do_center_crop") else None) or _size(
        processor.get("size")
    )


def _size(told: Any) -> tuple[int, int] | None:
    if isinstance(told, Mapping):
        told = [told.get(one, told.get("shortest_edge")) for one in ("height", "width")]
    if isinstance(told, int):
        told = [told, told]
    if isinstance(told, Sequence) and len(told) == 2 and all(isinstance(one, int) for one in told):
        return told[0], told[1]
    return None


def _by_hand(name: Name) -> str:
    return f"import huggingface_hub; huggingface_hub.snapshot_download({name.network!r})"
