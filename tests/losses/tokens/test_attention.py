"""Attention matrices: the numbers of TinyBERT's code, padding, and unequal heads."""

import math

import pytest
import torch
from torch import Tensor

from lightning_kd.functional import attention_matrix_loss, hidden_state_loss
from lightning_kd.losses import AttentionMatrixLoss
from tests.losses.case import random
from tests.losses.golden import TOKENS, Golden, check_golden, golden

KINDS = ["scores", "probabilities", "scores_kl", "probabilities_kl"]


@pytest.mark.parametrize("record", golden("tinybert_layers", folder=TOKENS), ids=str)
def test_layers_equal_the_code_of_tinybert(record: Golden) -> None:
    mine, its = (int(record.hyper[f"{role}_layers"]) for role in ("student", "teacher"))
    block = its // mine

    def formula(s: list[Tensor], t: list[Tensor], _: dict[str, Tensor]) -> Tensor:
        attention = [attention_matrix_loss(s[i], t[i * block + block - 1]) for i in range(mine)]
        hidden = [hidden_state_loss(s[mine + i], t[its + i * block]) for i in range(mine + 1)]
        parts = {"att": attention, "rep": hidden, "sum": [*attention, *hidden]}
        return torch.stack(parts[record.hyper["part"]]).sum()

    check_golden(record, formula)


def attention(heads: int, kind: str, seed: int) -> Tensor:
    scores = random(2, heads, 4, 4, seed=seed)
    return scores.softmax(-1) if kind.startswith("probabilities") else scores


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", ["same", "mean"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -1e4])
def test_padding_makes_no_difference(kind: str, heads: str, poison: float) -> None:
    real = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]]).bool()
    pairs = (real.unsqueeze(1) & real.unsqueeze(2)).unsqueeze(1)
    student, teacher = attention(2, kind, 1), attention(2, kind, 2)
    rows = []
    for i, kept in enumerate((slice(1, 4), slice(0, 3))):
        of_row = [x[i : i + 1, :, kept, kept] for x in (student, teacher)]
        rows.append(attention_matrix_loss(*of_row, kind=kind, heads=heads))
    bad = [torch.where(pairs, x, poison).requires_grad_() for x in (student, teacher)]
    value = attention_matrix_loss(*bad, kind=kind, heads=heads, mask=real)
    value.backward()
    torch.testing.assert_close(value, torch.stack(rows).mean(), rtol=1e-12, atol=0)
    assert bad[0].grad is not None
    assert bad[0].grad.isfinite().all()
    assert not bad[0].grad[~pairs.expand_as(bad[0])].any()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_alone_is_zero_with_a_graph(kind: str) -> None:
    student = attention(2, kind, 1).requires_grad_()
    value = attention_matrix_loss(student, attention(2, kind, 2), kind=kind, mask=torch.zeros(2, 4))
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()


def test_scores_and_their_probabilities_have_one_divergence() -> None:
    scores = [attention(2, "scores", seed) for seed in (1, 2)]
    of_scores = attention_matrix_loss(*scores, kind="scores_kl")
    of_shares = attention_matrix_loss(*(one.softmax(-1) for one in scores), kind="probabilities_kl")
    torch.testing.assert_close(of_scores, of_shares, rtol=1e-12, atol=0)


def test_unequal_heads_are_refused_with_the_remedies() -> None:
    with pytest.raises(ValueError, match=r"student has 2 heads, the teacher 3.*heads='mean'.*QKVRelationLoss"):
        attention_matrix_loss(attention(2, "scores", 1), attention(3, "scores", 2))
    with pytest.raises(ValueError, match=r"AttentionMatrixLoss.*'a'.*'b'.*heads='mean'"):
        AttentionMatrixLoss("a", "b").build({"a": (2, 2, 4, 4)}, {"b": (2, 3, 4, 4)})
    AttentionMatrixLoss("a", "b", heads="mean").build({"a": (2, 2, 4, 4)}, {"b": (2, 3, 4, 4)})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "kl"}, "kind to be one of"),
        ({"heads": "max"}, "heads to be one of"),
        ({"reduction": "sum"}, "reduction to be one of"),
        ({"mask": torch.ones(2, 3)}, r"mask \(B, T\)"),
    ],
)
def test_an_unknown_option_is_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"attention_matrix_loss: expected.*{words}"):
        attention_matrix_loss(attention(2, "scores", 1), attention(2, "scores", 2), **options)
