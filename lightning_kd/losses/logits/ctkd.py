"""Curriculum temperature (CTKD): a temperature that learns to make the student's task harder, slowly at first."""

from typing import final

import torch
from torch import Tensor, nn

from lightning_kd.capture.heads import Head
from lightning_kd.losses.checks import check_not_negative
from lightning_kd.losses.logits.base import LogitLoss, check_logits, check_several
from lightning_kd.losses.logits.kd import kd_loss
from lightning_kd.losses.tensors import upcast
from lightning_kd.schedules import CosineSchedule, Moment, Scalar, Unit, check_constants, check_unit, check_whole


def ctkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    raw_temperature: Tensor,
    *,
    low: float = 1.0,
    high: float = 21.0,
    reversal: float = 1.0,
) -> Tensor:
    r"""Divergence from the teacher at a learned temperature, which is trained to make it larger (CTKD).

    .. math::
        L = \frac{T^2}{N} \sum_{n} \sum_{c} p^t_{nc} \log \frac{p^t_{nc}}{p^s_{nc}}, \qquad
        p = \mathrm{softmax}(z / T), \quad T = \mathrm{low} + (\mathrm{high} - \mathrm{low})\, \sigma(\theta)

    over the :math:`N` samples, or samples times positions of a dense prediction, with the learned :math:`\theta`. The
    student goes down this loss and the temperature climbs it, which may take it up or down: the gradient that reaches
    :math:`\theta` is :math:`-\lambda\, \partial L / \partial \theta`, with :math:`\lambda` the ``reversal``.

    Paper and authors' code agree: their ``t_start`` is ``low``, and their ``t_end`` is ``high - low``.

    Shape:
        - student_logits, teacher_logits: :math:`(B, C)`, or :math:`(B, C, H, W)` and more positions; equal shapes.
        - raw_temperature: :math:`(1)`, or :math:`(B)` with one for each sample.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student_logits: Unnormalised class scores to train.
        teacher_logits: Unnormalised class scores to imitate; no gradient reaches them.
        raw_temperature: The learned :math:`\theta`, any real number: one for all samples, or one for each, which a
            network of yours may compute.
        low: Lowest temperature, > 0. Published recipes use 1.
        high: Highest temperature, > ``low``. Published recipes use 21.
        reversal: By what the gradient of the temperature is multiplied, beside the turn of its sign, >= 0.

    Raises:
        ValueError: If the shapes differ or have no class axis, the temperature is neither one number nor one for each
            sample, not 0 < ``low`` < ``high``, or ``reversal`` is negative.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> theta = torch.tensor([0.0], requires_grad=True)
        >>> loss = ctkd_loss(student, teacher, theta, high=3.0, reversal=0.5)  # T = 2, as in the example of kd_loss
        >>> loss.backward()
        >>> loss.detach(), theta.grad  # a step down this gradient raises the temperature, and with it the loss
        (tensor(0.4438), tensor([-0.0126]))

    Reference:
        Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023, arXiv:2211.16231.
    """
    _check_range("ctkd_loss", low, high)
    check_not_negative("ctkd_loss", reversal=reversal)
    check_logits("ctkd_loss", student_logits, teacher_logits)
    check_several("ctkd_loss", student_logits)
    rows = len(student_logits)
    if raw_temperature.shape not in ((), (1,), (rows,)):
        raise ValueError(
            "ctkd_loss: expected raw_temperature to be one number, or one for each sample, got shape "
            f"{tuple(raw_temperature.shape)} for logits {tuple(student_logits.shape)}."
        )
    temperature = _temperature(_reversed(upcast(raw_temperature), reversal), low, high)
    return kd_loss(student_logits, teacher_logits, temperature=temperature.expand(rows))


@final
class CTKDLoss(LogitLoss):
    """Imitate the teacher at a temperature that learns to make it harder (curriculum temperature, CTKD).

    Best in the place of ``KDLoss`` where nobody wants to tune the temperature: one number for all samples, trained by
    the optimizer of the student, but against it. How strongly it is trained grows over the first epochs, so that the
    student begins with what is easy. The temperature is logged beside the loss. It is a parameter of the loss: it is
    saved, and resumes. An optimizer's weight decay pulls it towards the middle of its range, as in the published
    recipes.

    The authors' other form, a temperature for each sample, is not here: its network is not in their repository. The
    function ``ctkd_loss`` takes such temperatures from a network of yours.

    Args:
        low: Lowest temperature, > 0. Published recipes use 1.
        high: Highest temperature, > ``low``. Published recipes use 21.
        reversal: By what the gradient of the temperature is multiplied, beside the turn of its sign, >= 0.
        length: Number of epochs or steps in which the reversal grows from 0 to this, along half a cosine wave, >= 1.
            The first has a share of it already. Published recipes use 10 epochs, on ImageNet 5.
        unit: Whether to count epochs or optimizer steps, those of all optimizers together, as Lightning does.
        head: Which of several outputs of both networks to compare, by name or number; by default the one that the task
            reads.
        teacher_head: Which of several outputs of the teacher, if it has another name there.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 0.9 beside a task weight of 0.1, on
            ImageNet 1 beside 1.

    Raises:
        ValueError: If not 0 < ``low`` < ``high``, ``reversal`` or the weight is negative or not finite, ``length`` is
            not a whole number >= 1, or the unit is unknown.
    """

    takes_one_logit = False

    output_kind = "classes"

    def __init__(
        self,
        low: float = 1.0,
        high: float = 21.0,
        reversal: float = 1.0,
        length: int = 10,
        unit: Unit = "epoch",
        *,
        head: Head = None,
        teacher_head: Head = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(head=head, teacher_head=teacher_head, weight=weight)
        _check_range("CTKDLoss", low, high)
        check_not_negative("CTKDLoss", reversal=reversal)
        check_whole("CTKDLoss", "length", length, 1)
        check_unit("CTKDLoss", unit)
        self.low = low
        self.high = high
        self.reversal = reversal
        self.length = length
        self.unit: Unit = unit
        self.growth = CosineSchedule(0.0, reversal, length=length, unit=unit)
        self.raw_temperature = nn.Parameter(torch.ones(1))  # T = 15.6 of 1 to 21, where the authors' begins

    @property
    def temperature(self) -> Tensor:
        """The temperature at this moment, without a gradient."""
        return _temperature(upcast(self.raw_temperature.detach()), self.low, self.high).squeeze(0)

    @property
    def reversal_now(self) -> float:
        """By what the gradient of the temperature is multiplied at this moment, beside the turn of its sign."""
        return self.growth.at(Moment(step=self.moment.step + 1, epoch=self.moment.epoch + 1))

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Compute the unweighted loss of a batch of logits, see ``ctkd_loss``."""
        self.details = {"temperature": self.temperature}
        return ctkd_loss(
            student_logits,
            teacher_logits,
            self.raw_temperature,
            low=self.low,
            high=self.high,
            reversal=self.reversal_now,
        )


def _temperature(raw: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * raw.sigmoid()


def _reversed(value: Tensor, factor: float) -> Tensor:
    """Return the value itself, whose gradient is multiplied by a negative factor."""
    return value.detach() - factor * (value - value.detach())


def _check_range(function: str, low: float, high: float) -> None:
    check_constants(function, low=low, high=high)
    if not 0.0 < low < high < float("inf"):
        raise ValueError(f"{function}: expected 0 < low < high, got low {low} and high {high}.")
