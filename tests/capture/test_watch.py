"""What looks on at operations sees those of the network once, and none of another one that looks on."""

from collections import UserDict
from typing import Any

import torch
from torch import Tensor, nn

from lightning_kd.capture.followed import following
from lightning_kd.capture.operations import Operations
from lightning_kd.capture.watch import OperationWatch, tensors_in


class Busy(OperationWatch):
    """Looks up sizes and computes, for every operation that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def see(self, func: Any, args: Any, kwargs: dict[str, Any], made: Any) -> None:
        self.names.append(func.__name__)
        for tensor in tensors_in((args, kwargs, made)):
            assert tensor.reshape(-1).shape[0] == (tensor + 1).numel()


def test_modes_see_the_network_and_not_one_another() -> None:
    outer, inner = Busy(), Busy()
    value = torch.ones(2, 3)
    with outer, inner:
        value.shape  # noqa: B018
        doubled = value.mul(2)
        doubled[0] = 1.0
    assert inner.names == outer.names == ["mul", "__setitem__"]


def test_what_is_noted_does_not_depend_on_the_order_of_the_modes() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    images = torch.ones(2, 1, 4, 4)
    seen = []
    for operations_first in (True, False):
        operations = Operations(network)
        if operations_first:
            with operations, following(network) as runs:
                network(images)
        else:
            with following(network) as runs, operations:
                network(images)
        names = [
            operation.name for _, operation in operations.that_are({"conv2d", "relu", "flatten", "linear", "stride"})
        ]
        seen.append((names, [(run.name, run.axis) for run in runs.runs]))
    assert seen[0] == seen[1]
    assert seen[0][0] == ["conv2d", "relu", "flatten", "linear"]


class Wrapped(UserDict[str, Tensor]):
    """No tree: what is inside is not found, as with torch's own trees."""


def test_tensors_are_found_in_order_and_wherever_trees_hold_them() -> None:
    one, two, three, four = (torch.full((1,), float(i)) for i in range(4))
    pair = torch.return_types.max((two, three))  # type: ignore[attr-defined]
    tree = (one, [pair, None, 1, "text"], {"weight": nn.Parameter(four)}, torch.Size([2]), Wrapped(a=one))
    assert [tensor.item() for tensor in tensors_in(tree)] == [0.0, 1.0, 2.0, 3.0]
    assert tensors_in(torch.Size([2])) == []
