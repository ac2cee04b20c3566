"""Networks that answer what is on record: the tensors that others' code was run on, as the values of named layers."""

from types import SimpleNamespace

import torch.nn.functional as F
from torch import Tensor, nn

from tests.losses.golden import TOKENS, Golden, golden


def record(name: str) -> Golden:
    """The record that has this name, such as ``deit-c0__hard_a.5``."""
    return next(one for one in golden(name.partition("-")[0], folder=TOKENS) if str(one) == name)


class Layers(nn.Module):
    """A network that has layers of these dotted names, and does nothing.

    Args:
        layers: The names.
    """

    def __init__(self, layers: list[str]) -> None:
        super().__init__()
        self.layers = layers
        for layer in layers:
            parent: nn.Module = self
            for part in layer.split("."):
                if part not in dict(parent.named_children()):
                    parent.add_module(part, nn.Identity())
                parent = parent.get_submodule(part)


class Recorded(Layers):
    """Returns the recorded tensors of one side; a batch names them by row.

    Args:
        name: Name of the record.
        side: ``student`` or ``teacher``.
        places: For each tensor the dotted name of the layer that returns it, or of the output.
        layers: Which of the places are layers.
    """

    def __init__(self, name: str, side: str, places: list[str], layers: list[str]) -> None:
        super().__init__(layers)
        found = record(name)
        values = [found.arrays[f"{side[0]}{number}"].clone() for number in range(len(places))]
        self.values = nn.ParameterList(values)
        self.places = places

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> SimpleNamespace:
        """Look up the rows; with labels, also compute the loss as a masked language model does."""
        del attention_mask
        output = SimpleNamespace()
        for place, value in zip(self.places, self.values, strict=True):
            rows = value[input_ids[:, 0]]
            if place in self.layers:
                rows = self.get_submodule(place)(rows)
                rows = rows.flatten(1)
            setattr(output, place.replace(".", "_"), rows)
        if labels is not None and labels.ndim == 2:
            output.loss = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
        return output
