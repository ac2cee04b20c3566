"""How alike two layers of any widths are, on the samples of one batch."""

import torch
from torch import Tensor


def cka(student: Tensor, teacher: Tensor) -> float:
    r"""Linear centred kernel alignment of two layers, debiased, computed from the products of samples.

    .. math::
        \mathrm{CKA} = \frac{H(K, L)}{\sqrt{H(K, K) \, H(L, L)}}, \qquad K = X X^\top, \; L = Y Y^\top

    with the unbiased estimate :math:`H` of HSIC (Song et al. 2012), which is about 0 for layers that have nothing in
    common, however wide they are beside the number of samples. It is the value of ``LinearCKA(debiased=True)``, which
    adds up products of features over many batches; those of samples are smaller where one batch has fewer samples than
    a layer has values.

    Shape:
        - student: :math:`(B, ...)`; teacher: :math:`(B, ...)`. The axes after the first are flattened.
        - Output: about 0 to 1, NaN for fewer than 4 samples or for a constant layer.

    Args:
        student: Features of the student's layer.
        teacher: Features of the teacher's, of the same samples.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
        >>> round(cka(x, 3 * x.flip(1)), 4)  # a rotation and another scale
        1.0

    Reference:
        Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, arXiv:1905.00414.
    """
    if len(student) != len(teacher) or len(student) < 4:
        return float("nan")
    k, ell = (_products(one) for one in (student, teacher))
    own, its = _hsic(k, k), _hsic(ell, ell)
    return _hsic(k, ell) / (own * its) ** 0.5 if own > 0 and its > 0 else float("nan")


def _products(features: Tensor) -> Tensor:
    rows = features.detach().flatten(1).to("cpu", torch.float64)
    rows = rows - rows.mean(0)
    products = rows @ rows.T
    return products.fill_diagonal_(0.0)


def _hsic(k: Tensor, ell: Tensor) -> float:
    n = len(k)
    value = (k * ell).sum() + k.sum() * ell.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ ell.sum(0)) / (n - 2)
    return float(value) / (n * (n - 3))
