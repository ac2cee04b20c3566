"""CKA equals its definition by Gram matrices of the samples, over the whole set."""

import numpy as np
import pytest
import torch

from lightning_kd.metrics import LinearCKA


def features(rows, width, seed):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) + 3.0


def hsic(k, other):
    """HSIC of centred kernels, up to a factor."""
    n = len(k)
    centre = np.eye(n) - np.ones((n, n)) / n
    return np.trace(k @ centre @ other @ centre)


def unbiased(k, other):
    """Song et al. 2012, equation 5."""
    n = len(k)
    k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
    one = np.ones(n)
    trace, both = np.trace(k @ other), one @ k @ other @ one
    return (trace + (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * both) / (n * (n - 3))


def by_kernels(x, y, form):
    k, other = (one.double().numpy() @ one.double().numpy().T for one in (x, y))
    return form(k, other) / np.sqrt(form(k, k) * form(other, other))


@pytest.mark.parametrize("size", [1, 4, 19])
@pytest.mark.parametrize("debiased", [False, True])
def test_the_value_is_that_of_the_whole_set(debiased, size):
    x, y = features(19, 6, 0), features(19, 3, 1)
    y[:, 0] += x[:, 1]
    metric = LinearCKA(6, 3, debiased=debiased)
    for rows in zip(x.split(size), y.split(size), strict=True):
        metric.update(*rows)
    assert float(metric.compute()) == pytest.approx(by_kernels(x, y, unbiased if debiased else hsic), rel=1e-9)


def test_processes_add_up():
    x, y = features(19, 6, 0), features(19, 3, 1)
    one, other = LinearCKA(6, 3, debiased=True), LinearCKA(6, 3, debiased=True)
    one.update(x[:7], y[:7])
    other.update(x[7:], y[7:])
    for state, value in other.metric_state.items():
        setattr(one, state, getattr(one, state) + value)
    assert float(one.compute()) == pytest.approx(by_kernels(x, y, unbiased), rel=1e-9)


def test_rotation_and_scale_and_shift_do_not_matter():
    x = features(40, 5, 0)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2)))[0]
    for debiased in (False, True):
        metric = LinearCKA(5, 5, debiased=debiased)
        metric.update(x, 0.2 * x @ rotation + 1.5)
        assert float(metric.compute()) == pytest.approx(1.0, abs=1e-6)


def test_few_samples_of_many_features_are_alike_by_chance_unless_debiased():
    x, y = features(20, 200, 0), features(20, 200, 1)
    biased, debiased = LinearCKA(200, 200), LinearCKA(200, 200, debiased=True)
    biased.update(x, y)
    debiased.update(x, y)
    assert float(biased.compute()) > 0.8
    assert abs(float(debiased.compute())) < 0.1


def test_what_has_no_value_is_not_a_number():
    metric = LinearCKA(2, 2)
    metric.update(torch.ones(1, 2), torch.ones(1, 2))
    assert np.isnan(float(metric.compute()))
    debiased = LinearCKA(2, 2, debiased=True)
    debiased.update(features(3, 2, 0), features(3, 2, 1))
    assert np.isnan(float(debiased.compute()))


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"expected features \(N, 2\) and \(N, 3\), got \(4, 2, 5\)"):
        LinearCKA(2, 3).update(torch.zeros(4, 2, 5), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="4 and 5 samples do not belong together"):
        LinearCKA(2, 3).update(torch.zeros(4, 2), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="widths must be > 0, got 0 and 3"):
        LinearCKA(0, 3)
