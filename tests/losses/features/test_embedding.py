"""The distance of embeddings."""

import torch
import torch.nn.functional as F

from lightning_kd.functional import embedding_loss
from lightning_kd.losses import EmbeddingLoss
from lightning_kd.projectors import IdentityProjector, LinearProjector
from tests.losses.case import random


def test_cosine_is_that_of_torch():
    student, teacher = random(6, 4, seed=1), random(6, 4, seed=2)
    torch.testing.assert_close(
        embedding_loss(student, teacher), F.cosine_embedding_loss(student, teacher, torch.ones(6).double())
    )


def test_equal_widths_get_no_projector():
    for width, expected in ((4, IdentityProjector), (5, LinearProjector)):
        loss = EmbeddingLoss("a", "b")
        loss.build({"a": (2, 4)}, {"b": (2, width)})
        assert isinstance(loss.projectors[0], expected)


def test_an_embedding_of_zeros_has_an_ordinary_gradient():
    student = torch.zeros(2, 4, requires_grad=True)
    embedding_loss(student, torch.ones(2, 4)).backward()
    assert 0 < student.grad.norm() < 2


def test_what_a_pooling_over_all_positions_returns_is_an_embedding():
    student, teacher = random(6, 4, seed=1), random(6, 4, seed=2)
    loss = EmbeddingLoss("a", "b")
    loss.build({"a": (2, 4, 1, 1)}, {"b": (2, 4)})
    torch.testing.assert_close(loss(student[:, :, None, None], teacher), embedding_loss(student, teacher))
