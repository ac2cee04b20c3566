"""Factor transfer (FT): make the student's features explain the teacher's, both in words learned for the purpose."""

from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses.base import Layers, Layout, Shape, StepTensors
from lightning_kd.losses.checks import check_maps, check_positive, check_same_batch
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.stage import Stage
from lightning_kd.losses.tensors import (
    add_up,
    can_look,
    in_range,
    is_empty,
    nonzero,
    pool_to_smaller,
    unit,
    upcast,
    upcast_alike,
    zero_of,
)
from lightning_kd.schedules import Scalar, Unit, check_constants

Variant = Literal["authors", "repdistiller"]
_LONGEST = 2.0**40  # a longer factor is scaled, lest its squares overflow
_SHORTEST = 1e-12  # below this length a factor is not brought to length one


def factor_transfer_loss(
    student_factor: Tensor, teacher_factor: Tensor, *, variant: Variant = "authors", p1: float = 2.0, p2: float = 1.0
) -> Tensor:
    r"""Mean absolute distance between two factors, each of length one (FT).

    .. math::
        L = \frac{1}{BCHW} \sum_{b,c,n} \left| \frac{s_{bcn}}{\lVert s_b \rVert_2} -
        \frac{t_{bcn}}{\lVert t_b \rVert_2} \right|

    Follows the authors' code. RepDistiller's (``variant="repdistiller"``) pools the channels as attention transfer
    does, so that their number may differ:

    .. math::
        L = \frac{1}{BHW} \sum_{b,n} \left| \hat q(s)_{bn} - \hat q(t)_{bn} \right|^{p_2}, \qquad
        q(f)_{bn} = \frac{1}{C} \sum_c f_{bcn}^{p_1}, \quad \hat q = q / \lVert q \rVert_2

    Of two factors of unequal height or width, the larger is average-pooled to the smaller, each axis for itself.

    Shape:
        - student_factor: :math:`(B, C, H_S, W_S)`, teacher_factor: :math:`(B, C, H_T, W_T)`.
        - Output: scalar :math:`()`, in :math:`[0, 2/\sqrt{CHW}]` for the authors' variant.

    Args:
        student_factor: The student's features as translated, to train.
        teacher_factor: The teacher's features as paraphrased; no gradient reaches them.
        variant: Whose code to follow: the authors' or RepDistiller's.
        p1: Exponent of the factor in RepDistiller's variant, a whole number >= 1; an odd one keeps the sign.
        p2: Exponent of the distance in RepDistiller's variant, >= 1.

    Raises:
        ValueError: If a factor is not 4-D, batch sizes or channels do not match, an exponent is out of its range, or
            one is given that the variant does not use.

    Example:
        >>> student, teacher = torch.tensor([[[[3.0, -4.0]]]]), torch.tensor([[[[8.0, 6.0]]]])
        >>> factor_transfer_loss(student, teacher)  # (.6, -.8) against (.8, .6): (.2 + 1.4) / 2
        tensor(0.8000)
        >>> factor_transfer_loss(student, teacher, variant="repdistiller", p1=1.0, p2=2.0)  # (.04 + 1.96) / 2
        tensor(1.0000)

    Reference:
        Kim, Park & Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
        arXiv:1802.04977.
    """
    _check_variant("factor_transfer_loss", variant, p1, p2)
    check_maps("factor_transfer_loss", tuple(student_factor.shape), tuple(teacher_factor.shape))
    check_same_batch("factor_transfer_loss", student_factor, teacher_factor)
    if variant == "authors" and student_factor.shape[1] != teacher_factor.shape[1]:
        raise ValueError(
            f"factor_transfer_loss: expected as many channels, got student {tuple(student_factor.shape)} and teacher "
            f"{tuple(teacher_factor.shape)}; translate the student to the teacher's number, or use "
            "variant='repdistiller'."
        )
    if student_factor.numel() == 0:
        return upcast(student_factor).sum() * 0.0
    with torch.autocast(device_type=student_factor.device.type, enabled=False):
        student, teacher = pool_to_smaller(*upcast_alike(student_factor, teacher_factor.detach()))
        if variant == "authors":
            return _distance_of_directions(student.flatten(1), teacher.flatten(1))
        student_direction, teacher_direction = _pooled_direction(student, p1), _pooled_direction(teacher, p1)
        if p2 == 1.0:
            return F.l1_loss(student_direction, teacher_direction)
        return (student_direction - teacher_direction).abs().pow(p2).mean()


@final
class FTLoss(LayerPairLoss):
    """Make the student's features explain the teacher's, both in learned words (factor transfer, FT).

    Best for pairs of different architecture. A paraphraser, an autoencoder of three convolutions and three transposed
    ones, first learns to compress the teacher's map; then it is frozen, and a translator of three convolutions with
    batch normalisation learns, along with the student, to give the same factor. It costs the first stage and both
    networks' parameters. The losses of several pairs are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default its last feature map.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        rate: Channels of the factor over those of the teacher's map, > 0. The authors use 0.5 to 4.
        variant: Whose code to follow: the authors' or RepDistiller's.
        p1: Exponent of the factor in RepDistiller's variant, a whole number >= 1; an odd one keeps the sign.
        p2: Exponent of the distance in RepDistiller's variant, >= 1.
        stage_length: Epochs or steps of the first stage, >= 0; None is a tenth of the run, 0 leaves it out: the
            paraphraser is then used as it is, random unless its weights are loaded into ``paraphrasers``. Published
            recipes take 30 epochs of 240.
        stage_unit: Whether ``stage_length`` counts epochs or optimizer steps.
        stage_lr: Learning rate of the first stage, > 0; by default the optimizer's.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 1000, and 200 with RepDistiller's
            variant.

    Raises:
        ValueError: If a number is out of its range or has no effect, or the layers do not pair up.
    """

    reads = "map"
    needs_maps = True
    in_a_plane = True
    per_pair = ("paraphrasers", "translators")

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        rate: float = 0.5,
        variant: Variant = "authors",
        p1: float = 2.0,
        p2: float = 1.0,
        stage_length: int | None = None,
        stage_unit: Unit = "epoch",
        stage_lr: float | None = None,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_positive("FTLoss", rate=rate)
        _check_variant("FTLoss", variant, p1, p2)
        self.rate = rate
        self.variant: Variant = variant
        self.p1, self.p2 = p1, p2
        self.stage_length = stage_length
        self.stage_unit: Unit = stage_unit
        self.stage_lr = stage_lr
        stage = Stage(stage_length, stage_unit, runs_student=False, lr=stage_lr)
        self.stage = stage if stage_length != 0 else None
        self.paraphrasers = nn.ModuleList()
        self.translators = nn.ModuleList()

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module, nn.Module]:
        """Make the paraphraser and the translator of one pair."""
        channels = teacher[1]
        factor = max(1, int(channels * self.rate))
        return Paraphraser(channels, factor), Translator(student[1], factor)

    def evaluate_stage(self, step: StepTensors) -> Tensor:
        """Return the mean squared error of the paraphrasers' reconstruction of the teacher's features."""
        read = self.read_layers("teacher", step)
        features = [read] if isinstance(read, Tensor) else read
        return add_up([_reconstruction_error(p, f) for p, f in zip(self.paraphrasers, features, strict=True)])

    def compare(self, student: Tensor, teacher: Tensor, paraphraser: nn.Module, translator: nn.Module) -> Tensor:
        """Compute the unweighted loss of one pair of maps, see ``factor_transfer_loss``; the paraphraser is frozen."""
        with torch.no_grad():
            factor = paraphraser(teacher)
        # Batch normalisation would stretch what rounding leaves of a map of zeros, and its gradient by 316 a layer.
        translated = torch.where(student.detach().any(), translator(student), 0.0)
        return factor_transfer_loss(translated, factor, variant=self.variant, p1=self.p1, p2=self.p2)


@final
class Paraphraser(nn.Module):
    """Autoencoder that compresses a teacher's map to a factor.

    Its weights have the same names and shapes as in RepDistiller's code.

    Args:
        channels: Channels of the teacher's map, >= 1.
        factor_channels: Channels of the factor, >= 1.
    """

    def __init__(self, channels: int, factor_channels: int) -> None:
        super().__init__()
        widths = [(channels, channels), (channels, factor_channels), (factor_channels, factor_channels)]
        self.encoder = _stack([nn.Conv2d(*one, 3, padding=1) for one in widths], norm=False)
        mirrored = [(to, of) for of, to in reversed(widths)]
        self.decoder = _stack([nn.ConvTranspose2d(*one, 3, padding=1) for one in mirrored], norm=False)

    def forward(self, teacher: Tensor) -> Tensor:
        """Return the factor of a map (B, C, H, W), whose format may be another than the weights'."""
        factor: Tensor = self.encoder(teacher.to(next(self.parameters()).dtype))
        return factor

    def reconstruct(self, teacher: Tensor) -> Tensor:
        """Return the map as it can be read from its factor."""
        features: Tensor = self.decoder(self(teacher))
        return features


@final
class Translator(nn.Module):
    """Network that turns a student's map into the teacher's factor.

    Its weights have the same names and shapes as in RepDistiller's code.

    Args:
        channels: Channels of the student's map, >= 1.
        factor_channels: Channels of the factor, >= 1.
    """

    def __init__(self, channels: int, factor_channels: int) -> None:
        super().__init__()
        widths = [(channels, channels), (channels, factor_channels), (factor_channels, factor_channels)]
        self.encoder = _stack([nn.Conv2d(*one, 3, padding=1) for one in widths], norm=True)

    def forward(self, student: Tensor) -> Tensor:
        """Return the factor of a map (B, C, H, W)."""
        factor: Tensor = self.encoder(student)
        return factor


def _stack(convolutions: list[nn.Conv2d] | list[nn.ConvTranspose2d], *, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for convolution in convolutions:
        normalisation = nn.BatchNorm2d(convolution.out_channels) if norm else nn.Identity()
        layers += [convolution, normalisation, nn.LeakyReLU(0.1, inplace=True)]
    return nn.Sequential(*layers)


def _reconstruction_error(paraphraser: nn.Module, teacher: Tensor) -> Tensor:
    assert isinstance(paraphraser, Paraphraser)
    teacher = teacher.detach()
    again = paraphraser.reconstruct(teacher)
    return zero_of(again) if is_empty(again) else F.mse_loss(upcast(again), upcast(teacher))


def _distance_of_directions(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of ``|s/|s| - t/|t||``, of which only the signs are kept for the gradient.

    The difference is that of ``s - t``, with ``s`` brought near the length of ``t`` by a power of two, which is exact:
    near a match single precision would else lose its sign.
    """
    length, teacher_length = _lengths(student, teacher)
    if not can_look(length) or not max(length.amax().item(), teacher_length.amax().item()) <= _LONGEST:
        student, teacher = (in_range(one, 2, dim=(1,)) for one in (student, teacher))
        length, teacher_length = _lengths(student, teacher)
    missing = torch.minimum(length.detach(), teacher_length) <= _SHORTEST
    length = nonzero(length, _SHORTEST)
    with torch.no_grad():
        teacher_length = nonzero(teacher_length, _SHORTEST)
        scale = torch.exp2(torch.log2(teacher_length / length).round())
        scaled_length = length * scale
        difference = (student * scale).sub_(teacher)
        excess = torch.linalg.vecdot(difference, teacher) * 2 + torch.linalg.vecdot(difference, difference)
        excess = excess.unsqueeze(1) / (scaled_length + teacher_length)  # |s| - |t|
        excess = torch.where(missing, scaled_length - teacher_length, excess)
        difference.addcmul_(teacher, excess / teacher_length, value=-1)
        value = (difference.abs().sum(dim=1, keepdim=True) / scaled_length).sum()
        signs = difference.sign_()
    slope = (torch.linalg.vecdot(signs, student).unsqueeze(1) / length).sum()
    total: Tensor = value + (slope - slope.detach())
    return total / student.numel()


def _lengths(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    first, second = (torch.linalg.vector_norm(one, dim=1, keepdim=True) for one in (student, teacher))
    return first, second


def _pooled_direction(factor: Tensor, p: float) -> Tensor:
    factor = in_range(factor, 2 * int(p), dim=(1, 2, 3))
    powers = factor.square() if p == 2.0 else factor.pow(p)
    return unit(powers.mean(dim=1).flatten(1), dim=1)


def _check_variant(function: str, variant: str, p1: float, p2: float) -> None:
    if variant not in ("authors", "repdistiller"):
        raise ValueError(f"{function}: expected variant 'authors' or 'repdistiller', got {variant!r}.")
    check_constants(function, p1=p1, p2=p2)
    if p1 < 1 or p1 != round(p1) or p2 < 1:
        raise ValueError(f"{function}: expected a whole number p1 >= 1 and p2 >= 1, got {p1} and {p2}.")
    if variant == "authors" and (p1, p2) != (2.0, 1.0):
        raise ValueError(f"{function}: p1 and p2 have no effect on the authors' variant; use variant='repdistiller'.")
