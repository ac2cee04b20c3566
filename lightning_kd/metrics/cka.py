"""How alike two layers are, whatever their widths."""

from typing import Any

import torch
from torch import Tensor

from lightning_kd.metrics.counts import Sums

_STATES = {
    "rows": (),
    "student_sum": ("s",),
    "teacher_sum": ("t",),
    "student_gram": ("s", "s"),
    "teacher_gram": ("t", "t"),
    "cross": ("s", "t"),
}
"""Sums over the samples, and their axes: the features of the student's (s) and of the teacher's layer (t)."""
_NORMS = {
    "student_norms": (),
    "teacher_norms": (),
    "student_norms_squared": (),
    "teacher_norms_squared": (),
    "norms_product": (),
    "student_by_its_norm": ("s",),
    "teacher_by_its_norm": ("t",),
    "student_by_teacher_norm": ("s",),
    "teacher_by_student_norm": ("t",),
}
"""Further sums, over squared lengths of the samples' features, which the debiased value needs."""


class LinearCKA(Sums):
    r"""Linear centred kernel alignment (CKA) of a layer of the student and one of the teacher.

    With the features of all samples as rows of :math:`X` and :math:`Y`, less their means,

    .. math::
        \mathrm{CKA} = \frac{\lVert Y^\top X \rVert_F^2}{\lVert X^\top X \rVert_F \lVert Y^\top Y \rVert_F}

    It is 1 for features that are equal up to rotation and scale. The matrices are added up batch by batch, so the value
    is that of the whole data set, whatever the batches are; it is no mean over batches.

    The value above is the paper's, which is biased: with fewer samples than features it is near 1 for features that
    have nothing in common. ``debiased=True`` puts the unbiased estimate of HSIC (Song et al. 2012) in place of each of
    the three terms. That needs 4 samples, is about 0 for features that have nothing in common, and may be negative.

    Args:
        student_features: Width of the student's layer.
        teacher_features: Width of the teacher's.
        debiased: Whether to use the unbiased estimate.

    Shape:
        - student: :math:`(N, D_S)`; teacher: :math:`(N, D_T)`. Average or flatten the other axes before.

    Raises:
        ValueError: If a width is not positive.

    Example:
        >>> metric = LinearCKA(2, 1)
        >>> metric.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0], [-1.0]]))
        >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.tensor([[0.0], [0.0]]))
        >>> metric.compute()  # 4 / (sqrt(8) * 2)
        tensor(0.7071, dtype=torch.float64)

    Reference:
        Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, arXiv:1905.00414;
        Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021, arXiv:2010.15327 (debiased).
    """

    higher_is_better = True
    rows: Tensor

    def __init__(self, student_features: int, teacher_features: int, *, debiased: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if student_features < 1 or teacher_features < 1:
            raise ValueError(f"LinearCKA: widths must be > 0, got {student_features} and {teacher_features}.")
        self.debiased = debiased
        self.widths = {"s": student_features, "t": teacher_features}
        for name, axes in (_STATES | _NORMS if debiased else _STATES).items():
            zeros = torch.zeros([self.widths[axis] for axis in axes], dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Count one batch.

        Args:
            student: Features of the student's layer.
            teacher: Features of the teacher's, of the same samples.

        Raises:
            ValueError: If the shapes are others than were announced.
        """
        widths = (self.widths["s"], self.widths["t"])
        if student.ndim != 2 or teacher.ndim != 2 or (student.shape[1], teacher.shape[1]) != widths:
            raise ValueError(
                f"LinearCKA: expected features (N, {widths[0]}) and (N, {widths[1]}), got {tuple(student.shape)} and "
                f"{tuple(teacher.shape)}; average or flatten other axes before."
            )
        if len(student) != len(teacher):
            raise ValueError(f"LinearCKA: {len(student)} and {len(teacher)} samples do not belong together.")
        wide = self.rows.dtype
        x, y = student.detach().to(wide), teacher.detach().to(wide)
        added = {
            "rows": torch.tensor(len(x), dtype=wide, device=x.device),
            "student_sum": x.sum(0),
            "teacher_sum": y.sum(0),
            "student_gram": x.T @ x,
            "teacher_gram": y.T @ y,
            "cross": x.T @ y,
        }
        if self.debiased:
            p, q = x.square().sum(1), y.square().sum(1)
            added |= {
                "student_norms": p.sum(),
                "teacher_norms": q.sum(),
                "student_norms_squared": p @ p,
                "teacher_norms_squared": q @ q,
                "norms_product": p @ q,
                "student_by_its_norm": p @ x,
                "teacher_by_its_norm": q @ y,
                "student_by_teacher_norm": q @ x,
                "teacher_by_student_norm": p @ y,
            }
        for name, value in added.items():
            setattr(self, name, getattr(self, name) + value)

    def compute(self) -> Tensor:
        """Return the alignment over everything counted so far; NaN without two samples (four, if debiased)."""
        hsic = self._unbiased if self.debiased else self._centred
        between, own, its = hsic("s", "t"), hsic("s", "s"), hsic("t", "t")
        enough = self._sum("rows") >= (4 if self.debiased else 2)
        known = enough & (own > 0) & (its > 0)
        return torch.where(known, between / (own.clamp_min(0) * its.clamp_min(0)).sqrt(), torch.nan)

    def _sum(self, name: str) -> Tensor:
        value: Tensor = getattr(self, name)
        return value

    def _of(self, a: str, b: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums of two layers' features, and of the products of the features."""
        names = {"s": "student", "t": "teacher"}
        products = self._sum("cross") if a != b else self._sum(f"{names[a]}_gram")
        return self._sum(f"{names[a]}_sum"), self._sum(f"{names[b]}_sum"), products

    def _centred(self, a: str, b: str) -> Tensor:
        """Return the squared norm of the centred features' products, which is HSIC up to a factor."""
        first, second, products = self._of(a, b)
        return (products - torch.outer(first, second) / self._sum("rows")).square().sum()

    def _unbiased(self, a: str, b: str) -> Tensor:
        """Return the unbiased estimate of HSIC.

        With the kernels ``K = X X^T`` and ``L = Y Y^T`` less their diagonals it is
        ``(tr(K L) + sum(K) sum(L) / ((n-1)(n-2)) - 2 sum(K L) / (n-2)) / (n (n-3))``.
        """
        n = self._sum("rows")
        first, second, products = self._of(a, b)
        names = {"s": "student", "t": "teacher"}
        if a == b:
            both = self._sum(f"{names[a]}_norms_squared")
            by_other = other_by = self._sum(f"{names[a]}_by_its_norm")
        else:
            both = self._sum("norms_product")
            by_other, other_by = self._sum("student_by_teacher_norm"), self._sum("teacher_by_student_norm")
        trace = products.square().sum() - both
        whole_first = first @ first - self._sum(f"{names[a]}_norms")
        whole_second = second @ second - self._sum(f"{names[b]}_norms")
        whole = first @ products @ second - first @ by_other - second @ other_by + both
        value = trace + whole_first * whole_second / ((n - 1) * (n - 2)) - 2 * whole / (n - 2)
        return value / (n * (n - 3))
