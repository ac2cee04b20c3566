"""A student that is its teacher with fewer layers, as DistilBERT and others begin."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_kd.capture.columns import is_of_transformers
from lightning_kd.capture.networks import isolated_random_state, original

M = TypeVar("M", bound=nn.Module)

Layers = int | Sequence[int] | Mapping[str, int | Sequence[int]]

_OF_ONE = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_OF_SIDES = ("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers")
_COUNTS = (*_OF_ONE, *_OF_SIDES)
_NOT_OF_LAYERS = ("size", "token", "architectures", "mean", "std", "label", "stride", "kernel", "shape", "languages")


@dataclass(frozen=True)
class Stack:
    """Layers of one kind, one after the other.

    Args:
        name: Where they are in the model.
        side: ``"encoder"`` or ``"decoder"`` in a model that has both, else ``""``.
        layers: The layers.
        counts: The entries of the configuration that count them.
    """

    name: str
    side: str
    layers: nn.ModuleList
    counts: tuple[str, ...]


def student_from_teacher(teacher: M, layers: Layers) -> M:
    """Make a student of a teacher's own layers: the same class, fewer layers, the teacher's weights.

    The student computes what the teacher would with the other layers left out. It is a model of its own: it shares no
    weight with the teacher, and ``save_pretrained`` writes it with its own configuration. In a configuration file:

    .. code-block:: yaml

        student:
          class_path: lightning_kd.hf.student_from_teacher
          init_args:
            layers: [0, 3, 6, 9]
            teacher: {class_path: lightning_kd.hf.from_pretrained, init_args: {folder: runs/teacher, task: masked_lm}}

    Args:
        teacher: A model of Hugging Face.
        layers: Which layers to keep, counted from 0 and from the front: ``[0, 3, 6, 9]``; or how many, of which each
            is the last of an equal part, ``round((i + 1) L / l) - 1``. In a model with encoder and decoder both take
            it, or ``{"encoder": ..., "decoder": ...}`` gives each its own; a side that is not named stays whole.

    Returns:
        The student, in training mode, on the teacher's device and in its format.

    Raises:
        TypeError: If the teacher is no model of Hugging Face.
        ValueError: If there are no such layers, they are not alike (stages of Swin), or a weight of a kept layer would
            have no place or no source: T5 keeps the position bias in layer 0 alone, and ModernBERT has no norm there,
            so both must keep layer 0 first.

    Example:
        >>> from lightning_kd.hf.cut import kept_layers
        >>> kept_layers(3, 12, "encoder")
        [3, 7, 11]
    """
    network: Any = original(teacher)
    config = getattr(network, "config", None)
    if not is_of_transformers(network) or hasattr(network, "peft_config") or hasattr(network, "get_base_model"):
        what = "with adapters; merge them first (merge_and_unload)" if hasattr(network, "peft_config") else "not one"
        raise TypeError(
            f"student_from_teacher: expected a model of Hugging Face's transformers without adapters, but "
            f"{type(network).__name__} is {what}."
        )
    stacks = find_stacks(network, config)
    if not stacks:
        raise ValueError(
            f"student_from_teacher: {type(network).__name__} has no list of layers that its configuration counts."
        )
    keep = _kept(layers, stacks)
    _check_alike(network, stacks)
    made = _config_of(config, stacks, keep)
    with isolated_random_state():
        student: M = type(network)(made)
    _leave_out_absent(network, student)
    first = next(network.parameters())
    student.to(device=first.device, dtype=first.dtype)
    places = {stack.name: keep[stack.name] for stack in stacks}
    _copy_weights(network, student, places)
    _check_same_kind(network, student, places)
    if getattr(network, "generation_config", None) is not None:
        vars(student)["generation_config"] = copy.deepcopy(network.generation_config)
    return student


# a configuration file takes what returns an nn.Module; jsonargparse 4.53 does not know that M stands for one
student_from_teacher.__annotations__.update({"teacher": nn.Module, "return": nn.Module})


def kept_layers(layers: int | Sequence[int], depth: int, where: str) -> list[int]:
    """Return which layers are kept of so many.

    Raises:
        ValueError: If they are not there, not in order, or none.
    """
    if isinstance(layers, bool):
        raise ValueError(f"student_from_teacher: expected layers as a number or a list, got {layers!r}.")
    if isinstance(layers, int):
        if not 1 <= layers <= depth:
            raise ValueError(f"student_from_teacher: expected 1 to {depth} layers of the {where}, got {layers}.")
        return [(2 * (i + 1) * depth + layers) // (2 * layers) - 1 for i in range(layers)]
    keep = list(layers)
    if not keep or any(not isinstance(i, int) or not 0 <= i < depth for i in keep) or sorted(set(keep)) != keep:
        raise ValueError(
            f"student_from_teacher: expected some of the layers 0 to {depth - 1} of the {where}, in order and each "
            f"once, got {keep}."
        )
    return keep


def find_stacks(network: nn.Module, config: Any) -> list[Stack]:
    """Find the lists of layers of one class that the configuration counts; lists inside of layers are no stacks."""
    entries = config.to_dict()
    entries |= {name: getattr(config, name) for name in _COUNTS if isinstance(getattr(config, name, None), int)}
    counts = {name: value for name, value in entries.items() if name in _COUNTS and isinstance(value, int)}
    lists = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    outer = [(n, part) for n, part in lists if not any(n.startswith(f"{other}.") for other, _ in lists)]
    both = bool(getattr(config, "is_encoder_decoder", False))
    stacks = []
    for name, part in outer:
        side = next((s for s in ("encoder", "decoder") if both and s in name.split(".")), "")
        # the decoder of a model with two sides, alone: the same configuration counts both
        alone = not both and "decoder" in name.split(".")
        own = tuple(
            count
            for count, value in counts.items()
            if value == len(part) and _counts_side(count, "decoder" if alone else side, counts)
        )
        if own and len({type(layer) for layer in part}) == 1:
            stacks.append(Stack(name, side, part, own))
    return stacks


def _counts_side(count: str, side: str, counts: Mapping[str, int]) -> bool:
    if side == "decoder":
        named = [one for one in counts if "decoder" in one]
        return count in named if named else True
    return "decoder" not in count


def _kept(layers: Layers, stacks: Sequence[Stack]) -> dict[str, list[int]]:
    if isinstance(layers, Mapping):
        sides = sorted({stack.side for stack in stacks} - {""})
        unknown = sorted(set(layers) - set(sides))
        if unknown or not sides:
            raise ValueError(
                f"student_from_teacher: expected the layers of {sides or 'one list, as the model has one side'}, got "
                f"those of {sorted(layers)}."
            )
        return {s.name: kept_layers(layers.get(s.side, len(s.layers)), len(s.layers), s.side) for s in stacks}
    return {stack.name: kept_layers(layers, len(stack.layers), stack.side or "model") for stack in stacks}


def _check_alike(network: nn.Module, stacks: Sequence[Stack]) -> None:
    for stack in stacks:
        first, *others = (dict(layer.named_parameters()) for layer in stack.layers)
        for i, other in enumerate(others, 1):
            wrong = [name for name in first if name in other and first[name].shape != other[name].shape]
            if wrong:
                raise ValueError(
                    f"student_from_teacher: the layers {stack.name!r} of {type(network).__name__} are not alike, as "
                    f"stages are not: {wrong[0]} has the shape {tuple(first[wrong[0]].shape)} in layer 0, and "
                    f"{tuple(other[wrong[0]].shape)} in layer {i}. Build the student of a configuration, with "
                    "lightning_kd.hf.from_config."
                )


def _config_of(config: Any, stacks: Sequence[Stack], keep: Mapping[str, list[int]]) -> Any:
    """Return a copy of the configuration for the layers that are kept, with its lists of layers cut too."""
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(
            "student_from_teacher: scale_attn_by_inverse_layer_idx scales attention by a layer's number, which would "
            "change; build the student of a configuration, with lightning_kd.hf.from_config."
        )
    entries = config.to_dict()
    changes: dict[str, Any] = {}
    for stack in stacks:
        kept, depth = keep[stack.name], len(stack.layers)
        for name, value in entries.items():
            listed = isinstance(value, list | tuple) and len(value) == depth
            if listed and not any(part in name for part in _NOT_OF_LAYERS) and stack.side in ("", "encoder"):
                changes[name] = [value[i] for i in kept]
        changes |= dict.fromkeys(stack.counts, len(kept))
    names = getattr(config, "attribute_map", {})
    made = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(made, names.get(name, name), value)
    return made


def _leave_out_absent(teacher: nn.Module, student: nn.Module) -> None:
    """Drop what the teacher was made without, such as the pooler by ``add_pooling_layer=False``.

    That is an argument of the class, not an entry of the configuration, so the student was made with it.
    """
    for name, _ in list(student.named_children()):
        if getattr(teacher, name, student) is None:
            setattr(student, name, None)
    inner = getattr(teacher, "base_model_prefix", "")
    if inner and isinstance(getattr(student, inner, None), nn.Module):
        _leave_out_absent(getattr(teacher, inner), getattr(student, inner))


def _copy_weights(teacher: nn.Module, student: nn.Module, places: Mapping[str, list[int]]) -> None:
    """Copy every weight, or raise a ``ValueError`` that names those without a source or without a place."""
    source, target = teacher.state_dict(), student.state_dict()
    renamed = {name: _source_of(name, places) for name in target}
    unfed = [name for name, other in renamed.items() if other not in source]
    taken = set(renamed.values())
    left = [name for name in source if name not in taken and _is_kept(name, places)]
    if unfed or left:
        told = [f"the student's {unfed[:3]} would have no source"] if unfed else []
        told += [f"the teacher's {left[:3]} would have no place"] if left else []
        raise ValueError(
            f"student_from_teacher: with the layers {list(places.values())} {' and '.join(told)}. The first layer of "
            f"{type(teacher).__name__} is unlike the others: keep layer 0 first, such as layers=[0, ...]."
        )
    other_shape = [name for name, other in renamed.items() if target[name].shape != source[other].shape]
    if other_shape:
        name = other_shape[0]
        raise ValueError(
            f"student_from_teacher: {name!r} has the shape {tuple(target[name].shape)} in the student, and "
            f"{tuple(source[renamed[name]].shape)} in the teacher; is the teacher quantised? Cut it before that."
        )
    with torch.no_grad():
        for name, other in renamed.items():
            target[name].copy_(source[other])


def _source_of(name: str, places: Mapping[str, list[int]]) -> str:
    for prefix, kept in places.items():
        if name.startswith(f"{prefix}."):
            number, _, rest = name[len(prefix) + 1 :].partition(".")
            return f"{prefix}.{kept[int(number)]}.{rest}"
    return name


def _is_kept(name: str, places: Mapping[str, list[int]]) -> bool:
    for prefix, kept in places.items():
        if name.startswith(f"{prefix}."):
            return int(name[len(prefix) + 1 :].partition(".")[0]) in kept
    return True


def _check_same_kind(teacher: nn.Module, student: nn.Module, places: Mapping[str, list[int]]) -> None:
    """Raise a ``ValueError`` if a kept layer would compute otherwise than it did, such as by another window."""
    for prefix, kept in places.items():
        mine, its = student.get_submodule(prefix), teacher.get_submodule(prefix)
        assert isinstance(mine, nn.ModuleList), "a stack of the same class"
        assert isinstance(its, nn.ModuleList), "a stack"
        for i, layer in enumerate(mine):
            for one, other in zip(layer.modules(), its[kept[i]].modules(), strict=False):
                unlike = _unlike(_plain(one), _plain(other), kept[i] - i)
                if type(one) is not type(other) or unlike:
                    raise ValueError(
                        f"student_from_teacher: layer {kept[i]} of {prefix!r} would compute otherwise as layer {i} of "
                        f"the student ({type(one).__name__}: {unlike or type(other).__name__}); keep layers whose "
                        "kinds come in the order of the teacher's, or build the student of a configuration, with "
                        "lightning_kd.hf.from_config."
                    )


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any], later: int) -> list[str]:
    """Return which attributes differ, but for numbers of the layer itself, which count up by one a layer.

    Args:
        one: The attributes of a part of the student's layer.
        other: Those of the teacher's.
        later: How much later the layer stands in the teacher.
    """
    unlike = [name for name in one if one[name] != other.get(name)]
    return [
        name
        for name in unlike
        if not ("idx" in name or "layer_id" in name) or name not in other or other[name] - one[name] != later
    ]


def _plain(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str)
        if name not in ("training", "is_causal") and not isinstance(value, Tensor)
    }
