"""Relations of queries, keys and values: the numbers of MiniLM's code, padding, and widths."""

import math

import pytest
import torch

from lightning_kd.functional import qkv_relation_loss
from lightning_kd.losses import QKVRelationLoss
from tests.losses.case import random
from tests.losses.golden import TOKENS, Golden, check_golden, golden

RELATIONS = {
    "__v2": {"QQ": 1 / 3, "KK": 1 / 3, "VV": 1 / 3},
    "__v1": {"QK": 1.0, "VV": 1.0},
    "__w": {"QQ": 0.5, "KV": 0.25, "VV": 2.0},
}
ALL = {"QQ": 1.0, "KK": 2.0, "VV": 3.0, "QK": 0.5}


@pytest.mark.parametrize("record", golden("minilm_relations", folder=TOKENS), ids=str)
def test_it_equals_the_code_of_minilm(record: Golden) -> None:
    relations, heads = RELATIONS[record.suffix], int(record.hyper["relation_heads"])
    check_golden(
        record,
        lambda s, t, more: qkv_relation_loss(s, t, mask=more["mask"], relation_heads=heads, relations=relations),
    )


@pytest.mark.parametrize("reduction", ["tokens", "sentences"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, 5.0])
@pytest.mark.parametrize("side", [(2, 0), (0, 2), (1, 1)])
def test_padding_makes_no_difference(reduction: str, poison: float, side: tuple[int, int]) -> None:
    options = {"relation_heads": 2, "relations": ALL, "reduction": reduction}
    student, teacher = ([random(2, 3, 4, seed=seed) for seed in seeds] for seeds in ((1, 2, 3), (4, 5, 6)))
    alone = qkv_relation_loss(student, teacher, **options)
    padded = [[torch.nn.functional.pad(x, (0, 0, *side), value=poison) for x in one] for one in (student, teacher)]
    leaves = [x.requires_grad_() for x in padded[0]]
    mask = torch.nn.functional.pad(torch.ones(2, 3), side)
    value = qkv_relation_loss(leaves, padded[1], mask=mask, **options)
    value.backward()
    torch.testing.assert_close(value, alone, rtol=1e-12, atol=0)
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[~mask.bool()].any()


def test_padding_alone_is_zero_with_a_graph() -> None:
    student = [random(2, 3, 4, seed=seed).requires_grad_() for seed in (1, 2, 3)]
    teacher = [random(2, 3, 4, seed=seed) for seed in (4, 5, 6)]
    value = qkv_relation_loss(student, teacher, mask=torch.zeros(2, 3), relation_heads=1, relations=ALL)
    value.backward()
    assert value.item() == 0.0
    assert not any(one.grad.any() for one in student)


def shapes(*widths: int) -> dict[str, tuple[int, ...]]:
    return {name: (2, 5, width) for name, width in zip("qkv", widths, strict=True)}


def component(**options: object) -> QKVRelationLoss:
    return QKVRelationLoss(["q", "k", "v"], ["q", "k", "v"], **{"relation_heads": 4, "relations": ALL, **options})


def test_grouped_queries_are_compared_where_that_is_possible() -> None:
    component(relations={"QQ": 1.0, "KK": 1.0, "VV": 1.0}).build(shapes(32, 16, 16), shapes(64, 64, 64))
    with pytest.raises(ValueError, match=r"QK multiplies widths 32 and 16.*use QQ and KK"):
        component().build(shapes(32, 16, 16), shapes(64, 64, 64))


def test_relation_heads_that_do_not_divide_name_the_widths() -> None:
    with pytest.raises(ValueError, match=r"6 relation heads do not divide the widths \[32, 64\].*divisor of 32"):
        component(relation_heads=6).build(shapes(32, 32, 32), shapes(64, 64, 64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"relations": {"QX": 1.0}}, "'QQ': 1.0, 'KV': 0.5"),
        ({"relations": {}}, "'QQ': 1.0, 'KV': 0.5"),
        ({"relations": {"QQ": 0.0}}, "weight > 0 for every relation"),
        ({"relation_heads": 0}, "whole number >= 1"),
        ({"reduction": "sum"}, "reduction to be one of"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"QKVRelationLoss: expected.*{words}"):
        component(**options)


def test_one_block_or_three_modules_are_asked_for() -> None:
    with pytest.raises(ValueError, match="one student block, or of three student modules"):
        QKVRelationLoss(["q", "k"], ["q", "k"], relation_heads=1, relations=ALL)
    with pytest.raises(ValueError, match="2 tensors of the student and 3"):
        qkv_relation_loss([torch.zeros(1, 2, 2)] * 2, [torch.zeros(1, 2, 2)] * 3, relation_heads=1, relations=ALL)
