"""Multi-level logit distillation (MLKD): every sample, the likeness of samples and that of classes, softened often."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from lightning_kd.capture.heads import Head
from lightning_kd.losses.checks import check_not_negative, check_positive
from lightning_kd.losses.logits.base import LogitLoss, check_logits, check_several
from lightning_kd.losses.logits.kd import kd_loss
from lightning_kd.losses.tensors import add_up, exact_if_small, upcast_alike, wide
from lightning_kd.schedules import Scalar


def mlkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance: float = 1.0,
    batch: float = 1.0,
    classes: float = 1.0,
) -> Tensor:
    r"""Distance of probabilities, of the samples' likeness and of the classes', at several temperatures (MLKD).

    .. math::
        L = \sum_T \Big( \frac{\alpha\, T^2}{N} \sum_n \mathrm{KL}(p^t_n \,\|\, p^s_n)
            + \frac{\beta}{N} \lVert P_t P_t^\top - P_s P_s^\top \rVert^2
            + \frac{\gamma}{C} \lVert P_t^\top P_t - P_s^\top P_s \rVert^2 \Big), \qquad
        p = \mathrm{softmax}(z / T)

    with the probabilities of :math:`N` samples, or samples times positions of a dense prediction, and :math:`C`
    classes as the rows of :math:`P`; :math:`\alpha, \beta, \gamma` are ``instance``, ``batch`` and ``classes``, all
    1 in the paper. The class level adds over the samples, so it grows with the square of :math:`N`.

    Follows the functions ``kd_loss``, ``bc_loss`` and ``cc_loss`` of the authors' code. Their whole recipe shows each
    image in a weak and a strong augmentation. On the weak view it takes half of this loss: its mask, of the samples
    or classes of which the teacher is no surer than of the median, multiplies means and so chooses no sample. (With
    odd numbers the share is a little more than half.) It adds KD at temperatures 4, 3 and 5 on the strong view, and
    at 2 and 6 once more on the weak one. Views and shares are the caller's to give.

    Shape:
        - student_logits, teacher_logits: :math:`(B, C)`, or :math:`(B, C, H, W)` and more positions; equal shapes.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student_logits: Unnormalised class scores to train.
        teacher_logits: Unnormalised class scores to imitate; no gradient reaches them.
        temperatures: Softenings of both distributions, each > 0, no unit; the losses at each are added. Published
            recipes use 2, 3, 4, 5 and 6, on ImageNet 1 in the place of 4.
        instance: Factor of the divergence of each sample, >= 0.
        batch: Factor of the likeness of samples with one another, >= 0; it needs several samples to say much.
        classes: Factor of the likeness of classes with one another, >= 0.

    Raises:
        ValueError: If the shapes differ or have no class axis, there is no temperature, one is not positive, or a
            factor is negative.

    Example:
        >>> student = torch.tensor([[0.0, 0.0]])  # (1/2, 1/2)
        >>> teacher = torch.tensor([[1.0986, 0.0]])  # (3/4, 1/4)
        >>> mlkd_loss(student, teacher, temperatures=[1.0], instance=0.0, classes=0.0)  # (10/16 - 8/16)^2
        tensor(0.0156)
        >>> mlkd_loss(student, teacher, temperatures=[1.0], instance=0.0, batch=0.0)  # (5, -1, -1, -3) / 16: 36/256/2
        tensor(0.0703)
        >>> mlkd_loss(student, teacher, temperatures=[1.0])  # the divergence is .1308
        tensor(0.2167)

    Reference:
        Jin, Wang & Lin, "Multi-Level Logit Distillation", CVPR 2023.
    """
    _check_options("mlkd_loss", temperatures, instance, batch, classes)
    check_logits("mlkd_loss", student_logits, teacher_logits)
    check_several("mlkd_loss", student_logits)
    student, teacher = upcast_alike(student_logits, teacher_logits.detach())
    if student.numel() == 0:
        return student.sum() * 0.0
    divergences = [instance * kd_loss(student, teacher, temperature=temperature) for temperature in temperatures]
    likeness = exact_if_small(
        _likeness(student, teacher, temperatures, batch, classes),
        1.0,
        max(temperatures),
        lambda: _likeness(wide(student), wide(teacher), temperatures, batch, classes),
    )
    return add_up([*divergences, likeness])


@final
class MLKDLoss(LogitLoss):
    """Match each sample's probabilities, how alike the samples are, and how alike the classes (multi-level, MLKD).

    Best for classifiers that train for long on strong augmentation, with KD at several temperatures at once. Needs
    neither layers nor labels. It says nothing about the layers in between. The class level grows with the square of
    the number of samples, and of positions: lower ``classes`` for large batches and for dense predictions.

    The authors train on a weak and a strong view of each image. That is the user's data: this loss compares what one
    call of both networks returns, see ``mlkd_loss``.

    Args:
        temperatures: Softenings of both distributions, each > 0, no unit; the losses at each are added. Published
            recipes use 2, 3, 4, 5 and 6, on ImageNet 1 in the place of 4.
        instance: Factor of the divergence of each sample, >= 0.
        batch: Factor of the likeness of samples with one another, >= 0; it needs several samples to say much.
        classes: Factor of the likeness of classes with one another, >= 0.
        gather: Whether the loss compares the samples of all processes, and its gradient is that of one process with the
            whole batch; if not, it compares each process's own, and the gradient is the mean of the processes'.
        head: Which of several outputs of both networks to compare, by name or number; by default the one that the task
            reads.
        teacher_head: Which of several outputs of the teacher, if it has another name there.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 0.9 beside a task weight of 0.1, on
            ImageNet 0.5 beside 0.5.

    Raises:
        ValueError: If there is no temperature, one is not positive, or a factor is negative or not finite.
    """

    relational = True
    takes_one_logit = False

    output_kind = "classes"

    def __init__(
        self,
        temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
        instance: Scalar = 1.0,
        batch: Scalar = 1.0,
        classes: Scalar = 1.0,
        *,
        gather: bool = True,
        head: Head = None,
        teacher_head: Head = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(head=head, teacher_head=teacher_head, weight=weight)
        _check_options("MLKDLoss", temperatures, instance, batch, classes)
        self.temperatures = list(temperatures)
        self.instance = instance
        self.batch = batch
        self.classes = classes
        self.gather = gather

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Compute the unweighted loss of a batch of logits, see ``mlkd_loss``."""
        return mlkd_loss(
            student_logits,
            teacher_logits,
            temperatures=self.temperatures,
            instance=self.now(self.instance),
            batch=self.now(self.batch),
            classes=self.now(self.classes),
        )


def _likeness(student: Tensor, teacher: Tensor, temperatures: Sequence[float], batch: float, classes: float) -> Tensor:
    """Return the batch level and the class level, added up over the temperatures."""
    values = []
    with torch.autocast(device_type=student.device.type, enabled=False):
        for temperature in temperatures:
            own, its = (_probabilities(logits, temperature) for logits in (student, teacher))
            values.append(batch / own.shape[0] * _squares(own, its) + classes / own.shape[1] * _squares(own.T, its.T))
    return add_up(values)


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    probabilities = (logits / temperature).softmax(dim=1)
    return probabilities if logits.ndim == 2 else probabilities.movedim(1, -1).flatten(0, -2)


def _squares(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the squared norm of :math:`A A^\top - B B^\top` for two matrices A and B.

    With :math:`D = A - B` and :math:`S = A + B` it is half of :math:`D S^\top` plus its transpose, which loses no
    digits to a difference of two near numbers. Of a matrix with more rows than columns, such as the positions of
    maps, the norm is taken without a product of rows with rows.
    """
    difference, total = student - teacher, student + teacher
    if student.shape[0] <= student.shape[1]:
        product = difference @ total.T
        return ((product + product.T) / 2).square().sum()
    product = total.T @ difference
    return ((total.T @ total) * (difference.T @ difference) + product * product.T).sum() / 2


def _check_options(
    function: str, temperatures: Sequence[float], instance: Scalar, batch: Scalar, classes: Scalar
) -> None:
    if not temperatures:
        raise ValueError(f"{function}: expected at least one of temperatures, got none.")
    for temperature in temperatures:
        check_positive(function, temperatures=temperature)
    check_not_negative(function, instance=instance, batch=batch, classes=classes)
