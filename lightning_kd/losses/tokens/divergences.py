"""Divergences of two distributions over a vocabulary: value and gradient in closed form, one table for all losses.

A form takes rows of the log-probabilities of student and teacher, returns the value of each row, and writes the
gradient with respect to the student's logits over the student's rows. The teacher's rows are used up. The gradient is
computed together with the value, so that nothing else is kept for the backward pass.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_kd.losses.tensors import upcast, wide
from lightning_kd.schedules import Scalar, check_number, extremes

Divergence = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "symmetric_kl",
    "total_variation",
    "alpha_beta",
]
Form = Callable[[Tensor, Tensor], Tensor]
DEFAULTS = {"alpha": 0.1, "beta": 0.5, "ratio": 0.5}
_USED: Mapping[str, tuple[str, ...]] = {
    "forward_kl": (),
    "reverse_kl": (),
    "jsd": ("beta",),
    "skew_forward_kl": ("alpha",),
    "skew_reverse_kl": ("alpha",),
    "symmetric_kl": ("ratio",),
    "total_variation": (),
    "alpha_beta": ("alpha", "beta"),
}
_HIGH_TEMPERATURE = 16.0
_REACH = 80.0
"""Log-ratios beyond are cut off where a mixture has lost its smaller part long before: e^80 fits into float32."""


def check_settings(function: str, divergence: str, alpha: Scalar, beta: Scalar, ratio: Scalar) -> None:
    """Raise a ``ValueError`` unless the divergence exists, and its settings are in range and have an effect."""
    if divergence not in get_args(Divergence):
        raise ValueError(
            f"{function}: expected divergence to be one of {list(get_args(Divergence))}, got {divergence!r}."
        )
    given: dict[str, Scalar] = {"alpha": alpha, "beta": beta, "ratio": ratio}
    for name, value in given.items():
        check_number(function, name, value)
        if name not in _USED[divergence] and value != DEFAULTS[name]:
            users = [other for other, names in _USED.items() if name in names]
            raise ValueError(
                f"{function}: {name}={value} has no effect on divergence={divergence!r}; leave {name} out, or use "
                f"{' or '.join(users)}."
            )
    if divergence == "jsd":
        _check_inside(function, "beta", beta, "near 0 and 1 the value goes to 0; use forward_kl or reverse_kl")
    elif divergence.startswith("skew"):
        _check_inside(function, "alpha", alpha, f"0 would be {divergence.removeprefix('skew_')}, and 1 no loss at all")
    elif divergence == "symmetric_kl" and not all(0.0 <= value <= 1.0 for value in extremes(ratio)):
        raise ValueError(f"{function}: expected 0 <= ratio <= 1, got {ratio}.")
    elif divergence == "alpha_beta" and not all(math.isfinite(v) for s in (alpha, beta) for v in extremes(s)):
        raise ValueError(f"{function}: expected finite alpha and beta, got {alpha} and {beta}.")


def closed_form(divergence: str, alpha: float, beta: float, ratio: float) -> Form:
    """Return the form of a divergence with its settings."""
    if divergence == "jsd":
        return partial(_jsd, beta=beta)
    if divergence == "symmetric_kl":
        return partial(_symmetric_kl, ratio=ratio)
    if divergence == "alpha_beta":
        return partial(_alpha_beta, alpha=alpha, beta=beta)
    if divergence in ("skew_forward_kl", "skew_reverse_kl"):
        return partial(_skew_forward_kl if divergence == "skew_forward_kl" else _skew_reverse_kl, alpha=alpha)
    return {"forward_kl": _forward_kl, "reverse_kl": _reverse_kl, "total_variation": _total_variation}[divergence]


def precise(logits: Tensor, temperature: float) -> Tensor:
    """Return logits in the format in which their divergence is computed: at least float32.

    A divergence shrinks with the square of the temperature. From 16 on, near a match, float32 would give the rounding
    of the logarithms and not the divergence, so it is computed in float64.
    """
    return wide(logits) if temperature >= _HIGH_TEMPERATURE else upcast(logits)


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Return the log-softmax of new rows of logits; a logit of -inf gives a large negative number, not -inf.

    The largest logit is subtracted before anything is rounded, as ``log_softmax`` does.
    """
    scaled = logits if temperature == 1.0 else logits / temperature
    return floor(torch.log_softmax(scaled, dim=-1))


def settled(values: Tensor) -> Tensor:
    """Return values >= 0, which rounding may bring below, and infinite where only the cut of :func:`floor` is not."""
    return values.clamp_min(0.0).masked_fill(values.abs() > torch.finfo(values.dtype).max ** 0.75, float("inf"))


def floor(log_probabilities: Tensor) -> Tensor:
    """Cut off in place at a number of which a few can be added without overflow, and whose exponential is 0."""
    return log_probabilities.clamp_(min=torch.finfo(log_probabilities.dtype).min / 4)


def _forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    p = teacher.exp()
    values = teacher.sub_(student).mul_(p).sum(-1)
    student.exp_().sub_(p)
    return values


def _reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    torch.sub(student, teacher, out=teacher)
    q = student.exp_()
    values = (q * teacher).sum(-1)
    q.mul_(teacher.sub_(values.unsqueeze(-1)))
    return values


def _symmetric_kl(student: Tensor, teacher: Tensor, ratio: float) -> Tensor:
    p = teacher.exp()
    torch.sub(student, teacher, out=teacher)
    q = student.exp_()
    reverse = (q * teacher).sum(-1)
    values = (1 - ratio) * reverse - ratio * (p * teacher).sum(-1)
    teacher.sub_(reverse.unsqueeze(-1)).mul_(1 - ratio).add_(ratio)
    q.mul_(teacher).sub_(p.mul_(ratio))
    return values


def _total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    q = student.exp_()
    torch.sub(q, teacher.exp_(), out=teacher)
    values = teacher.abs().sum(-1) / 2
    _project(q, teacher.sign_().div_(2))
    return values


def _jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    p = teacher.exp()
    ratio = teacher.sub_(student).clamp_(-_REACH, _REACH)
    q = student.exp_()
    mixture = ratio.exp().mul_(beta).add_(1 - beta).log_()  # log(m / q)
    of_student = (q * mixture).sum(-1)
    values = beta * ratio.sub_(mixture).mul_(p).sum(-1) - (1 - beta) * of_student
    q.mul_(mixture.sub_(of_student.unsqueeze(-1)).mul_(beta - 1))
    return values


def _skew_forward_kl(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    p = teacher.exp()
    ratio = teacher.sub_(student).clamp_(-_REACH, _REACH)
    q = student.exp_()
    mixture = ratio.exp().mul_(alpha).add_(1 - alpha)  # m / q
    share = (p / mixture).mul_(1 - alpha)
    values = ratio.sub_(mixture.log_()).mul_(p).sum(-1)
    q.mul_(share.sum(-1, keepdim=True)).sub_(share)
    return values


def _skew_reverse_kl(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    mixture = teacher.sub_(student).clamp_(-_REACH, _REACH).exp_().mul_(1 - alpha).add_(alpha)  # m / q
    q = student.exp_()
    slope = mixture.reciprocal().mul_(-alpha)
    values = -(q * mixture.log_()).sum(-1)
    _project(q, slope.sub_(mixture))
    return values


def _alpha_beta(student: Tensor, teacher: Tensor, alpha: float, beta: float) -> Tensor:
    # With E(x) = (e^(x r) - 1) / x, r = log p - log q, and its limit r at x = 0, the divergence is the sum of
    # q^(a+b) (E(a+b) - E(a)) / b, and its slope in log q is -q^(a+b) E(a). So every limit is that of E or of 1/b.
    whole = alpha + beta
    ratio = teacher - student
    weight = _power(whole * student)
    rise = _rise(alpha, ratio, weight, alpha * teacher + beta * student)
    if beta == 0.0:
        # the derivative of E at a: (r e^(a r) - E(a)) / a, and r^2 / 2 at a = 0
        limit = weight * ratio.square() / 2 if alpha == 0.0 else (ratio * _power(alpha * teacher) - rise) / alpha
        values = limit.sum(-1)
    else:
        values = (_rise(whole, ratio, weight, whole * teacher) - rise).sum(-1) / beta
    q = student.exp_()
    total = rise.sum(-1, keepdim=True)
    q.mul_(total).sub_(rise)
    return values


def _rise(power: float, ratio: Tensor, weight: Tensor, exponent: Tensor) -> Tensor:
    """Return w E(x) for w = e^(exponent - x r), with all digits near r = 0 and without overflow far from it."""
    if power == 0.0:
        return weight * ratio
    step = power * ratio
    near = weight * torch.expm1(step.clamp(-1.0, 1.0))
    return torch.where(step.abs() < 1.0, near, _power(exponent) - weight) / power


def _power(exponent: Tensor) -> Tensor:
    largest = math.log(torch.finfo(exponent.dtype).max) / 2.2  # the sum over a vocabulary is to stay finite
    return exponent.clamp(max=largest).exp_()


def _project(q: Tensor, slope: Tensor) -> None:
    """Write q (f - <q, f>) over q: the gradient in the logits of a value whose slope in log q is q f."""
    q.mul_(slope.sub_((q * slope).sum(-1, keepdim=True)))


def _check_inside(function: str, name: str, value: Scalar, why: str) -> None:
    if not all(0.0 < extreme < 1.0 for extreme in extremes(value)):
        raise ValueError(f"{function}: expected 0 < {name} < 1, got {value}: {why}.")
