"""Positions with fewer stored tokens than others are padded with log-probability -inf, whatever the id there is."""

import pytest
import torch

from lightning_kd.functional import token_kd_loss
from lightning_kd.losses import SparseLogits
from tests.losses.case import random

SETTINGS = [
    ("renormalize", "forward_kl"),
    *((missing, form) for missing in ("tail", "renormalize_both") for form in ("forward_kl", "reverse_kl", "jsd")),
]


@pytest.mark.parametrize(("missing", "divergence"), SETTINGS)
@pytest.mark.parametrize("filler", [0, 7, "stored"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_they_are_as_if_they_were_not_there(missing, divergence, filler, temperature):
    student = random(2, 3, 10, seed=1).requires_grad_()
    log_probs, ids = (2 * random(2, 3, 10, seed=2)).log_softmax(-1).topk(3)
    fill = ids[..., :2] if filler == "stored" else torch.full_like(ids[..., :2], filler)
    padded = torch.cat([fill, ids], -1), torch.cat([torch.full_like(log_probs[..., :2], float("-inf")), log_probs], -1)
    options = {"missing": missing, "divergence": divergence, "temperature": temperature, "shift": False}
    values = [token_kd_loss(student, SparseLogits(*of), **options) for of in ((ids, log_probs), padded)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)
