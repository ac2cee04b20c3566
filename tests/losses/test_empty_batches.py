"""A batch without samples costs nothing through every formula, and sends a gradient of zero."""

import inspect

import pytest
import torch

from lightning_kd import functional
from tests.losses.cases import HELPERS

NO_IDS = torch.zeros(0, dtype=torch.long)
EXTRA = {"target": NO_IDS, "log_scale": torch.ones(4), "margin": torch.zeros(4), "raw_temperature": torch.ones(1)}
LEFT_OUT = {*HELPERS, "crd_loss", "mutual_learning_loss", "byot_loss", "hybrid_loss", "vid_loss"}
LEFT_OUT |= {"qkv_relation_loss", "uld_loss"}
"""These take banks, lists or more; their own tests show empty batches."""
FORMULAS = {
    name: function
    for name, function in vars(functional).items()
    if inspect.isfunction(function) and name not in LEFT_OUT
}


@pytest.mark.parametrize("name", FORMULAS)
def test_nothing_costs_nothing(name):
    function = FORMULAS[name]
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is inspect.Parameter.empty]
    maps = "maps" in (function.__doc__ or "") or "map" in (function.__doc__ or "")
    shapes = [(0, 4, 2, 2), (0, 4)] if maps else [(0, 4), (0, 4, 2, 2)]
    error = None
    for shape in shapes:
        leaf = torch.zeros(shape, requires_grad=True)
        arguments = [EXTRA.get(one, leaf if i == 0 else torch.zeros(shape)) for i, one in enumerate(required)]
        try:
            value = function(*arguments)
        except ValueError as refused:  # of the other number of axes
            error = refused
            continue
        value.backward()
        assert value.item() == 0.0
        assert leaf.grad is not None
        return
    raise AssertionError(error)


def test_relations_of_no_sentences_cost_nothing():
    student = [torch.zeros(0, 5, 8, requires_grad=True) for _ in range(3)]
    value = functional.qkv_relation_loss(
        student, [torch.zeros(0, 5, 8)] * 3, relation_heads=2, relations={"QQ": 1.0, "KK": 1.0, "VV": 1.0}
    )
    value.backward()
    assert value.item() == 0.0
    assert all(one.grad is not None for one in student)


def test_no_sentences_of_two_vocabularies_cost_nothing():
    student, ids = torch.zeros(0, 5, 8, requires_grad=True), torch.zeros(0, 5, dtype=torch.long)
    value = functional.uld_loss(student, torch.zeros(0, 5, 9), ids, ids)
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None
