"""How a network's images were normalised, as far as it tells."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_kd.capture.networks import original

Statistics = tuple[list[float], list[float]]

PROCESSOR = "preprocessor_config.json"
"""The file beside the weights of a model of Hugging Face that tells how its images are made."""


def statistics_of(of: Any) -> Statistics | None:
    """Return mean and deviation of each channel that a network's images are normalised with, if it tells.

    Args:
        of: A timm model, torchvision weights, an image processor, a model of Hugging Face that was loaded from a folder
            with its image processor, or anything with ``mean`` and ``std``.
    """
    if isinstance(of, nn.Module):
        of = original(of)
    config: Any = getattr(of, "pretrained_cfg", None) or getattr(of, "default_cfg", None) or of
    if callable(getattr(config, "transforms", None)):  # torchvision weights
        config = config.transforms()
    if isinstance(of, nn.Module) and config is of:
        config = _beside_weights(of)
    for names in (("mean", "std"), ("image_mean", "image_std")):
        mean, std = (config.get(n) if isinstance(config, Mapping) else getattr(config, n, None) for n in names)
        if isinstance(mean, Sequence) and isinstance(std, Sequence):
            return [float(v) for v in mean], [float(v) for v in std]
    return None


def told_difference(student: nn.Module, teacher: nn.Module) -> str | None:
    """Return a sentence if two networks were given images that were normalised otherwise, ``None`` if not known."""
    mine, its = statistics_of(student), statistics_of(teacher)
    if mine is None or its is None or mine == its:
        return None
    return (
        f"The student's images are normalised by mean {mine[0]} and std {mine[1]}, the teacher's by mean {its[0]} and "
        f"std {its[1]}, and both see the same batch. If it is normalised for the student, give "
        "teacher_inputs=lightning_kd.teachers.Renormalize.between(student, teacher)."
    )


def _beside_weights(network: nn.Module) -> Mapping[str, Any]:
    folder = getattr(network, "name_or_path", None)
    if not isinstance(folder, str) or not folder:
        return {}
    try:
        told = json.loads((Path(folder) / PROCESSOR).read_text())
    except (OSError, ValueError):  # a name of the hub, a model of texts, or no file that can be read
        return {}
    return told if isinstance(told, Mapping) and told.get("do_normalize", True) else {}
