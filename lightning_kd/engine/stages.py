"""The stages of a network: where it says itself, or where its repeated blocks end.

A library's own account comes first: ``feature_info`` of timm, ``return_layers`` of torchvision. Without one, a block is
a module with two or more layers of weights whose kind occurs twice. What ran before the first block, or is called a
stem, is the stem. A stage is a block or holds blocks.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from lightning_kd.capture.activation_input import block_around, place_of_input
from lightning_kd.capture.operations import Key, Operation
from lightning_kd.capture.private import AdaptivePool
from lightning_kd.capture.trace import Ran, Seen, outermost

Size = tuple[int, ...]

PARTS = 4
"""How many layers are read of a network that has one resolution throughout: as many as most others have stages."""

_ACTIVATIONS = {"relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish"}
_ACTIVATIONS |= {"hardswish", "hardtanh", "threshold", "clamp", "clamp_min"}
_BEFORE_ACTIVATION = {"conv1d", "conv2d", "conv3d", "batch_norm", "group_norm", "instance_norm"}
_BEFORE_ACTIVATION |= {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_SUMS = {"add", "iadd", "radd"}
_BRANCHES = _SUMS | {"dropout", "dropout1d", "dropout2d", "dropout3d", "contiguous"}


@dataclass(frozen=True)
class Stages:
    """The ends of the stages of a network, in order.

    Args:
        layers: The last layer of each stage; of a network that has one resolution, all of its blocks.
        sizes: Size in space of each.
        even: Whether the network has one resolution throughout, as ViT and BERT have.
        branches: Those of the layers that are one branch of a sum which was meant and cannot be read.
    """

    layers: list[Seen] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    even: bool = False
    branches: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return min(PARTS, len(self.layers)) if self.even else len(self.layers)

    def take(self, count: int) -> list[Seen]:
        """Return the last ``count`` stages, or the last block of each of ``count`` equal parts of the depth.

        Example:
            >>> [(6 * part + 3) // 4 for part in range(1, 5)]  # of 6 blocks, counted from 1
            [2, 3, 5, 6]
        """
        if not self.even:
            return self.layers[len(self.layers) - count :]
        depth = len(self.layers)
        return [self.layers[-(-depth * part // count) - 1] for part in range(1, count + 1)]


def find_stages(ran: Ran) -> Stages:
    """Find the stages of a network.

    Args:
        ran: What ran in one call of it.
    """
    sizes = _sizes(ran)
    blocks = _blocks(ran, sizes)
    place = _places(ran)
    first = min((place[seen.key] for seen in ran.every if _is_in(seen.name, blocks)), default=0)
    told = [seen for seen in _told(ran) if seen.key in sizes and place[seen.key] >= first and not _is_stem(seen)]
    if told:
        return _even(told, sizes) or _last_of_each(told, sizes)
    ends = [seen for seen in ran.layers if seen.key in sizes and _ends_a_stage(seen, blocks) and not _is_stem(seen)]
    if not ends:
        found = [seen for seen in ran.layers if seen.key in sizes and not isinstance(seen.layer, AdaptivePool)]
        maps = [seen for seen in found if seen.value.ndim >= 4]
        return _last_of_each(maps or found, sizes)
    own = {seen.name: seen for seen in ran.every}
    returned = [own[name] for name in _returned(ran) if name in own and own[name].key in sizes]
    taken = {sizes[seen.key] for seen in returned}
    ends = [seen for seen in _highest(ends, sizes) if sizes[seen.key] not in taken]
    ends = sorted([*ends, *returned], key=lambda seen: place[seen.key])
    return _even([own[name] for name in blocks], sizes) or _last_of_each(ends, sizes)


def find_features(ran: Ran) -> list[Seen]:
    """Find what the last weights before the output read: one layer, or one of each tower of a network of several."""
    if ran.output is None:
        return ran.layers[-1:]
    own = [seen for seen in ran.every if not seen.drops]  # in training it returns another value
    known = outermost(own) | outermost(ran.layers)
    _, read = ran.operations.output_of(ran.output)
    return [known[key] for key in ran.operations.nearest(read, known)] or ran.layers[-1:]


def before_activations(ran: Ran, stages: Stages) -> Stages:
    """Find in each stage the last value of a convolution or normalisation that an activation gets.

    At the end of a residual block the activation gets the sum of its branches, which is read where a module is the
    activation. Where a function is, no hook could read the sum; then it is the longest branch, not the shortcut.

    Args:
        ran: What ran in one call of the network.
        stages: Its stages; those without such a value are left out.
    """
    known = outermost(ran.every) | outermost(ran.layers)
    made = {key for key in known if ran.operations.made_by(key).name in _BEFORE_ACTIVATION}
    place, sizes = _places(ran), _sizes(ran)
    fed: dict[Key, tuple[int, int]] = {}
    lengths = ran.operations.lengths()
    activations = ran.operations.that_are(_ACTIVATIONS)
    # a block may return the sum itself, which an activation outside of it gets
    made |= {one.inputs[0] for _, one in activations if _is_of_sum(ran, one) and one.inputs[0] in known}
    stops = made | {seen.key for seen in ran.layers}  # an nn.Identity behind a sum stops nothing
    for number, (_, operation) in enumerate(activations):
        for key in made.intersection(ran.operations.nearest(operation.inputs, stops, through=_BRANCHES)):
            fed[key] = (number, lengths.get(key, 0))
    layers, kept, branches, start = [], [], [], -1
    for stage, size in zip(stages.layers, stages.sizes, strict=True):
        end = place[stage.key]
        inside = [key for key in fed if start < place[key] <= end and sizes.get(key) == size]
        last = max(inside, key=fed.__getitem__, default=None)
        # the stage ends with an activation, or one stands last in it
        ends = [(stage.key, ran.operations.made_by(stage.key)), *([activations[fed[last][0]]] if last else [])]
        sums = [(result, one.inputs[0]) for result, one in ends if _is_of_sum(ran, one)]
        whole = next((seen for result, total in sums if (seen := _sum_before(ran, total, result))), None)
        found = whole or (None if last is None else known[last])
        if found is not None:
            layers.append(found)
            kept.append(size)
            is_branch = sums and whole is None and found.key not in {total for _, total in sums}
            branches += [found.name] if is_branch else []
        start = end
    return Stages(layers, kept, stages.even, branches)


def _is_of_sum(ran: Ran, operation: Operation) -> bool:
    """Whether an operation is an activation that gets a sum."""
    gets = operation.inputs[0] if operation.name in _ACTIVATIONS and operation.inputs else None
    return gets is not None and ran.operations.made_by(gets).name in _SUMS


def _sum_before(ran: Ran, total: Key, result: Key) -> Seen | None:
    """Return the sum that an activation gets at the end of a residual block, ``None`` if that cannot be read.

    One activation may serve several places of a block. What it gets last is read, so its block must end with it.
    """
    name = ran.ran_alone.get((total, result))
    last = next((call for call, other in reversed([*ran.ran_alone.items()]) if other == name), None)
    if last != (total, result):  # as where a block of several outputs has one activation for all
        return None
    own = {seen.name: seen for seen in ran.every}
    block = None if name is None else own.get(block_around(name))
    if name is None or block is None or block.key != result:
        return None
    return Seen(place_of_input(name), block.layer, block.value, block.version)


def towers(ran: Ran, stages: Stages) -> list[Seen]:
    """Return the last stage of each tower that runs beside others, as those of CLIP; one stage without towers."""
    keys = {seen.key: seen for seen in stages.layers}
    ends = dict(keys)
    for seen in stages.layers:
        for earlier in ran.operations.nearest(ran.operations.made_by(seen.key).inputs, keys):
            ends.pop(earlier, None)
    return list(ends.values())


def _sizes(ran: Ran) -> dict[Key, Size]:
    """Return the size in space of each value that has one, with as many rows as the output where any has."""
    sizes = {}
    rows = None if ran.output is None else ran.output.shape[:1]
    for seen in ran.every:
        if seen.value.ndim >= 3 and seen.key not in sizes:
            axis = ran.followed.channel_axis(seen.name, seen.value, 0) or (1 if seen.value.ndim > 3 else 2)
            size = tuple(length for i, length in enumerate(seen.value.shape) if i not in (0, axis))
            if max(size) > 1:
                sizes[seen.key] = size
    of_samples = {seen.key: sizes[seen.key] for seen in ran.every if seen.key in sizes and seen.value.shape[:1] == rows}
    return of_samples or sizes


def _returned(ran: Ran) -> list[str]:
    """Return the layers that a backbone of torchvision hands to its head or pyramid, as its ``return_layers`` says."""
    names = []
    for prefix, module in ran.network.named_modules():
        returned = getattr(module, "return_layers", None)
        if isinstance(returned, dict):
            names += [f"{prefix}.{name}" if prefix else str(name) for name in returned]
    return names


def _told(ran: Ran) -> list[Seen]:
    """Return the layers that a network of timm, or one inside this network, names in its ``feature_info``."""
    own = {seen.name: seen for seen in ran.every}
    names = []
    for prefix, module in ran.network.named_modules():
        info = getattr(module, "feature_info", None)
        if isinstance(info, list):
            told = [entry.get("module") for entry in info if isinstance(entry, dict)]
            names += [f"{prefix}.{name}" if prefix else str(name) for name in told if name]
    return [own[name] for name in dict.fromkeys(names) if name in own]


def _blocks(ran: Ran, sizes: dict[Key, Size]) -> list[str]:
    """Return the names of the blocks, in order: modules of a kind that occurs twice, with two layers of weights."""
    deep = {
        seen.name: _kind(seen.layer)
        for seen in ran.every
        if seen.key in sizes and sum(map(_has_weights, seen.layer.modules())) >= 2
    }
    often = Counter(deep.values())
    blocks = [name for name, kind in deep.items() if often[kind] >= 2]
    return [name for name in blocks if not _is_in(name.rpartition(".")[0], blocks)]


def _kind(module: nn.Module) -> tuple[type, ...]:
    """Return the class of a module, with those of its parts where it is a plain sequence."""
    return (type(module), *(map(type, module) if type(module) is nn.Sequential else ()))


def _has_weights(module: nn.Module) -> bool:
    own = module.named_parameters(recurse=False)
    return any(parameter.ndim >= 2 and name.endswith("weight") for name, parameter in own)  # no position embeddings


def _is_in(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _is_stem(seen: Seen) -> bool:
    return "stem" in seen.name.rpartition(".")[2]


def _places(ran: Ran) -> dict[Key, int]:
    """Return for each value when it was returned first."""
    places: dict[Key, int] = {}
    for i, seen in enumerate(ran.every):
        places.setdefault(seen.key, i)
    return places


def _ends_a_stage(seen: Seen, blocks: list[str]) -> bool:
    return seen.name in blocks or any(block.startswith(f"{seen.name}.") for block in blocks)


def _highest(layers: list[Seen], sizes: dict[Key, Size]) -> list[Seen]:
    """Keep the layers that are highest in the tree of those with their size."""
    depth: dict[Size, int] = {}
    for seen in layers:
        size = sizes[seen.key]
        depth[size] = min(seen.depth, depth.get(size, seen.depth))
    return [seen for seen in layers if seen.depth == depth[sizes[seen.key]]]


def _last_of_each(layers: list[Seen], sizes: dict[Key, Size]) -> Stages:
    last = {sizes[seen.key]: seen for seen in layers}
    return Stages(list(last.values()), list(last))


def _even(layers: list[Seen], sizes: dict[Key, Size]) -> Stages | None:
    """Return the blocks of a network that has one resolution throughout, ``None`` if it has several."""
    found = [sizes[seen.key] for seen in layers]
    return Stages(layers, found, even=True) if len(layers) > 1 and len(set(found)) == 1 else None
