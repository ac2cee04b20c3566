"""Contrast within the batch: the definitions as loops, and float32 near a match."""

import pytest
import torch
import torch.nn.functional as F

from lightning_kd.functional import info_nce_loss, triplet_loss
from tests.losses.case import check_float32, random, tight


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [(1, 3), (5, 3), (4, 7)])
def test_info_nce_equals_a_loop_of_cross_entropies(size, symmetric):
    student, teacher = (random(*size, seed=seed).requires_grad_() for seed in (1, 2))

    def picks(anchors, candidates):
        rows = [torch.stack([F.cosine_similarity(a, c, dim=0) for c in candidates]) / 0.2 for a in anchors]
        return sum(F.cross_entropy(row[None], torch.tensor([i])) for i, row in enumerate(rows)) / len(rows)

    expected = picks(student, teacher)
    if symmetric:
        expected = (expected + picks(teacher, student)) / 2
    value = info_nce_loss(student, teacher, temperature=0.2, symmetric=symmetric)
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(
        torch.autograd.grad(value, (student, teacher)), torch.autograd.grad(expected, (student, teacher)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(2, 3), (5, 3), (4, 7)])
def test_triplet_equals_a_loop_over_all_triplets(size):
    student, teacher = (random(*size, seed=seed).requires_grad_() for seed in (1, 2))
    students, teachers = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    expected = 0.0
    for i, anchor in enumerate(students):
        far = min((anchor - other).square().sum() for j, other in enumerate(teachers) if j != i)
        expected = expected + (1.0 + (anchor - teachers[i]).square().sum() - far).clamp_min(0) / len(students)
    value = triplet_loss(student, teacher, margin=1.0)
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(
        torch.autograd.grad(value, (student, teacher)), torch.autograd.grad(expected, (student, teacher)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_batch_of_one_has_no_triplet():
    assert triplet_loss(random(1, 3, seed=1), random(1, 3, seed=2)).item() == 0.0


def test_triplets_in_float32_are_exact_for_a_tight_cluster_far_from_zero():
    check_float32(triplet_loss, [tight(6, 8, seed=seed) for seed in (1, 2)], learning=2)
