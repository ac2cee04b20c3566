"""CKA against the unbiased estimate of HSIC as it is defined: a sum over four different samples."""

from itertools import permutations

import torch

from lightning_kd.doctor.similarity import cka
from lightning_kd.metrics import LinearCKA


def hsic(k, ell):
    """The mean over all (i, j, q, r) of K_ij (L_ij + L_qr - 2 L_iq), the definition of Song et al. (2012)."""
    terms = [k[i, j] * (ell[i, j] + ell[q, r] - 2 * ell[i, q]) for i, j, q, r in permutations(range(len(k)), 4)]
    return sum(terms) / len(terms)


def test_it_is_the_mean_over_four_samples_of_the_definition():
    torch.manual_seed(0)
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, 2, dtype=torch.float64)
    k, ell = x @ x.T, y.flatten(1) @ y.flatten(1).T
    expected = float(hsic(k, ell) / (hsic(k, k) * hsic(ell, ell)) ** 0.5)
    assert abs(cka(x, y) - expected) < 1e-10


def test_wide_layers_that_have_nothing_in_common_are_not_alike():
    torch.manual_seed(0)
    x, y = torch.randn(32, 5000), torch.randn(32, 3000)
    assert abs(cka(x, y)) < 0.1
    assert abs(cka(x, -2 * x.flip(1)) - 1) < 1e-9


def test_too_few_samples_and_constant_layers_are_not_known():
    assert cka(torch.randn(3, 5), torch.randn(3, 5)) != cka(torch.randn(3, 5), torch.randn(3, 5))
    assert str(cka(torch.ones(8, 5), torch.randn(8, 5))) == "nan"


def test_it_is_the_metric_that_adds_up_features():
    x, y = torch.randn(12, 5), torch.randn(12, 2, 3)
    metric = LinearCKA(5, 6, debiased=True)
    metric.update(x, y.flatten(1))
    assert abs(cka(x, y) - float(metric.compute())) < 1e-6
