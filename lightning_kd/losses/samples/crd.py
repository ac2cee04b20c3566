"""Contrastive representation distillation (CRD): find a sample's own row among thousands, in memory banks."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, final

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.distributed.gather import gather, is_distributed
from lightning_kd.losses.base import DistillationLoss, Layout, Shape, StepTensors
from lightning_kd.losses.checks import check_positive
from lightning_kd.losses.older import own_part
from lightning_kd.losses.samples.crd_blocks import check_shapes, log_sums, normalizers_of, one_side
from lightning_kd.losses.samples.crd_draw import check_options, class_of_each_row, draw_positions, with_replacement
from lightning_kd.losses.samples.crd_split import (
    MARK,
    Part,
    check_processes,
    crd_loss_of_parts,
    log_sums_of_parts,
    take_shapes,
    world,
)
from lightning_kd.losses.samples.embedding import embeddings
from lightning_kd.losses.samples.rows import RowWatch
from lightning_kd.losses.tensors import upcast
from lightning_kd.schedules import Scalar

BankType = Literal["float32", "float16", "bfloat16"]
BANK_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NegativesFrom = Literal["other_classes", "any"]


def crd_loss(
    student: Tensor,
    teacher: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    contrast_index: Tensor,
    *,
    log_normalizers: Tensor | None = None,
    temperature: float = 0.07,
) -> Tensor:
    r"""Noise contrast of each sample's own row with :math:`K` others in the bank of the other network (CRD).

    .. math::
        L = \frac{1}{B} \sum_b \Big( \ell(s_b, M^t, Z_s) + \ell(t_b, M^s, Z_t) \Big), \quad
        \ell(v, M, Z) = -\log \frac{P_0}{P_0 + c + \epsilon} - \sum_{k=1}^{K} \log \frac{c}{P_k + c + \epsilon}, \quad
        P_k = \frac{\exp(\langle M_{i_k}, v \rangle / \tau)}{Z}

    with :math:`c = K / n` for banks of :math:`n` rows, :math:`i_0` the sample's own row and
    :math:`\epsilon = 10^{-7}`. Follows the authors' code (RepDistiller); the paper's Eq. 18 has neither :math:`Z` nor
    :math:`\epsilon`. It is computed with logarithms, so that it is finite at any temperature.

    The gradient is computed along with the value, in blocks: the banks may be overwritten before ``backward``, and the
    :math:`B (K + 1)` vectors that are compared are never in memory at once.

    Shape:
        - student, teacher: :math:`(B, d)`; banks: :math:`(n, d)`; contrast_index: :math:`(B, K + 1)`, integers.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Embeddings of the student, of length one.
        teacher: Embeddings of the teacher, of length one. They come out of a trained layer, so a gradient reaches
            them; detach what that layer reads.
        student_bank: Remembered embedding of the student for each row of the data set.
        teacher_bank: Remembered embedding of the teacher for each row of the data set.
        contrast_index: Rows of the banks to compare each sample with, the sample's own in column 0.
        log_normalizers: Logarithms of :math:`Z_s` and :math:`Z_t`, shape (2,); by default those of this batch: the
            mean of the exponentials, times :math:`n`.
        temperature: Divides the similarities, > 0.

    Raises:
        ValueError: If shapes do not fit together, or the temperature is not positive.

    Example:
        >>> one, bank = torch.tensor([[1.0]]), torch.tensor([[1.0], [-1.0]])
        >>> rows, zero = torch.tensor([[0, 1]]), torch.zeros(2)
        >>> crd_loss(one, one, bank, bank, rows, log_normalizers=zero, temperature=1.0)
        tensor(1.4406)

        Each side is ln((e + 1/2) / e) + ln((1/e + 1/2) / (1/2)) = 0.1689 + 0.5514.

    Reference:
        Tian, Krishnan & Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699.
    """
    check_positive("crd_loss", temperature=temperature)
    check_shapes(student, teacher, student_bank, teacher_bank, contrast_index)
    contrast_index = contrast_index.long()
    student, teacher = _suited(student, teacher_bank), _suited(teacher, student_bank)
    if len(student) == 0:
        return (student.sum() + teacher.sum()) * 0.0
    with torch.autocast(device_type=student.device.type, enabled=False):
        if log_normalizers is None:
            sums = log_sums(student, teacher, student_bank, teacher_bank, contrast_index, temperature)
            log_normalizers = normalizers_of(sums, len(student_bank), contrast_index.shape[1])
        return one_side(student, teacher_bank, contrast_index, log_normalizers[0], temperature) + one_side(
            teacher, student_bank, contrast_index, log_normalizers[1], temperature
        )


@final
class CRDLoss(DistillationLoss):
    """Make the student tell samples apart as the teacher does (contrastive representation distillation, CRD).

    A linear layer on each side, both trained, embeds the features on a sphere. Two banks remember the embeddings of
    all rows of the data set; each sample is compared with its own row and with ``negatives`` others in the bank of the
    other network, then its rows move towards the new embeddings. Banks and normalisers are part of the state; they
    stay in float32 whatever the precision of the module, and are equal in all processes unless ``gather`` is false:
    every process writes the rows of all, and if two hold the same row (a distributed sampler fills up its last batch
    so) that of the first counts. They change in training only.

    Best for features before the logits, with many classes; of the published methods the one that gains most over soft
    targets alone. The batch must tell each sample's row (see ``Indexed``), every row once a batch. Costs two banks of
    rows times ``dim`` numbers.

    Negatives are drawn uniformly from torch's random numbers: without replacement as long as there are enough rows, as
    in RepDistiller, else with it; never the sample's own row. A checkpoint of the time when they were always drawn with
    replacement goes on so. A row whose class id is negative counts as a class of its own.

    Args:
        student: Dotted name of the student layer to read; by default the last features before the logits.
        teacher: Dotted name of the teacher layer to read.
        dim: Width of the embeddings, >= 1.
        negatives: Rows to compare each sample with beside its own, >= 1.
        temperature: Divides the similarities, > 0.
        momentum: Part of a remembered embedding that stays when its row is seen, in [0, 1).
        bank_dtype: Format of the banks. The 16-bit ones halve their memory and their part of a checkpoint, and round
            a remembered embedding to 3 or 2 digits; with a momentum near 1 a row would then no longer move.
        negatives_from: Whether negatives are rows of other classes, or any rows, of which some may be positives.
        split_banks: Whether each of several processes holds its part of the rows of both banks alone, which divides
            their memory by the number of processes. Loss and gradient are those of whole banks. A step then sends, and
            each process holds, ``negatives + 1`` numbers for each sample of all processes, twice, and compares the
            samples of all. A fit goes on from a checkpoint with as many processes as have written it.
        gather: Whether the banks remember the samples of all processes, and the gradient is that of one process with
            the whole batch; if not, each process's remember its own, and the gradient is the mean of the processes'.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 0.8.

    Raises:
        ValueError: If a number is out of its range, the layers do not pair up, or the weight is negative or not finite.
    """

    reads = "embedding"
    needs_index = True
    compares_positions = False
    masking = "mean"
    replicated_buffers = (
        "student_bank",
        "teacher_bank",
        "log_normalizers",
        "row_classes",
        "sorted_classes",
        "rows_by_class",
        "draw_rule",
        MARK,
    )

    facts_of_data = ("num_samples", "_smallest_class", "_largest_class", "row_classes")

    _repeats_only_if_it_must: ClassVar[bool] = True

    student_bank: Tensor
    teacher_bank: Tensor
    log_normalizers: Tensor
    row_classes: Tensor
    sorted_classes: Tensor
    rows_by_class: Tensor
    draw_rule: Tensor
    split_over: Tensor

    def __init__(
        self,
        student: str | None = None,
        teacher: str | None = None,
        *,
        dim: int = 128,
        negatives: int = 16384,
        temperature: Scalar = 0.07,
        momentum: float = 0.5,
        bank_dtype: BankType = "float32",
        negatives_from: NegativesFrom = "other_classes",
        split_banks: bool = False,
        gather: bool = True,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_positive("CRDLoss", temperature=temperature)
        check_options(dim, negatives, momentum, negatives_from)
        if split_banks and not gather:
            raise ValueError("CRDLoss: split_banks=True is for banks that remember the samples of all: gather=True.")
        self.dim = dim
        self.negatives = negatives
        self.temperature = temperature
        if bank_dtype not in BANK_TYPES:
            raise ValueError(f"CRDLoss: expected bank_dtype {' or '.join(map(repr, BANK_TYPES))}, got {bank_dtype!r}.")
        self.momentum = momentum
        self.bank_dtype: BankType = bank_dtype
        self.negatives_from: NegativesFrom = negatives_from
        self.split_banks = split_banks
        self.gather = gather
        self.num_samples = 0
        self._calibrated = False
        self._began = False
        self._smallest_class = self._largest_class = 0
        self._watch = RowWatch()
        self._split_over = 1

    @property
    def _part(self) -> Part | None:
        return Part.of_this_process(self.num_samples) if self.split_banks and world() > 1 else None

    @property
    def local_buffers(self) -> tuple[str, ...]:
        """Banks, if they are split; and normalisers too, if they remember the samples of their own process only."""
        if self.split_banks:
            return "student_bank", "teacher_bank"
        return () if self.gather else ("student_bank", "teacher_bank", "log_normalizers")

    def set_dataset(self, num_samples: int, targets: Tensor | None) -> None:
        """Learn how many rows to remember, and their classes; what is remembered of other data is forgotten.

        Args:
            num_samples: Number of rows, so that every index is below it.
            targets: Class id of every row, ``None`` if the data set has none.

        Raises:
            ValueError: If there are no rows, or classes are needed and not there.
        """
        if num_samples < 1:
            raise ValueError(f"CRDLoss: expected a data set with at least one row, got {num_samples}.")
        self.num_samples = num_samples
        if "student_bank" in self._buffers:  # of other data
            self._begin_banks()
        if self.negatives_from == "any":
            return
        classes = class_of_each_row(targets, num_samples)
        before = self._buffers.get("student_bank")
        device = None if before is None else before.device
        self.register_buffer("row_classes", classes.to(device))
        self._derive()

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Make the embeddings and the banks.

        Args:
            student_shapes: Shape of the named student layer.
            teacher_shapes: Shape of the named teacher layer.

        Raises:
            RuntimeError: If the data set is not known yet.
            ValueError: If features have no axis beside the batch, or several layers are named.
        """
        if not self.num_samples:
            raise RuntimeError("CRDLoss: the data set is not known yet; call set_dataset(num_samples, targets) first.")
        self.student_embedding, self.teacher_embedding = embeddings(self, student_shapes, teacher_shapes, self.dim)
        self._begin_banks()
        if "row_classes" in self._buffers:
            self._derive()

    def _begin_banks(self) -> None:
        before = self._buffers.get("student_bank")
        device = None if before is None else before.device
        bound = 1.0 / math.sqrt(self.dim / 3)
        for name in ("student_bank", "teacher_bank"):
            bank = torch.empty(self.num_samples, self.dim, dtype=torch.float32).uniform_(-bound, bound)
            bank = bank if self._part is None else self._part.cut(bank)
            self.register_buffer(name, bank.to(device, BANK_TYPES[self.bank_dtype]))
        self.register_buffer("log_normalizers", torch.full((2,), math.nan, dtype=torch.float32, device=device))
        if self._repeats_only_if_it_must:  # a checkpoint without it is older
            self.register_buffer("draw_rule", torch.ones((), dtype=torch.uint8, device=device))
        if self.split_banks:
            self.register_buffer(MARK, torch.tensor(world(), device=device))
            self._split_over = world()
        self._calibrated = self._began = False

    def draw(self, index: Tensor) -> Tensor:
        """Draw the rows to compare each sample with.

        Args:
            index: Row of each sample in the data set, shape (B,).

        Returns:
            Rows of shape (B, 1 + negatives), the sample's own in column 0.
        """
        own_row = index.unsqueeze(1)
        if self.negatives_from == "any":
            if "draw_rule" not in self._buffers:
                drawn = torch.randint(self.num_samples, (len(index), self.negatives), device=index.device)
                return torch.cat((own_row, drawn), dim=1)
            if self.num_samples < 2:
                raise ValueError("CRDLoss: the data set has a single row, so there are no others to compare it with.")
            others = self.num_samples - 1
            drawn = draw_positions(torch.full_like(own_row, others), self.negatives, others, others)
            return torch.cat((own_row, drawn + (drawn >= own_row)), dim=1)
        if self._largest_class == self.num_samples:
            raise ValueError(
                "CRDLoss: all rows of the data set are of one class, so there are no negatives of other classes; "
                "choose negatives_from='any'."
            )
        own = self.row_classes[index]
        first = torch.searchsorted(self.sorted_classes, own).unsqueeze(1)
        count = torch.searchsorted(self.sorted_classes, own, right=True).unsqueeze(1) - first
        if "draw_rule" not in self._buffers:
            drawn = with_replacement(self.num_samples - count, self.negatives)
        else:
            fewest, most = (self.num_samples - size for size in (self._largest_class, self._smallest_class))
            drawn = draw_positions(self.num_samples - count, self.negatives, fewest, most)
        drawn += (drawn >= first) * count
        return torch.cat((own_row, self.rows_by_class[drawn]), dim=1)

    def evaluate(self, step: StepTensors) -> Tensor:
        """Return the loss of a step, in training after a look whether its labels are those of its rows."""
        if self.training and step.index is not None and step.target is not None:
            self._watch.note_labels(self._buffers.get("row_classes"), step.index, step.target)
        return super().evaluate(step)

    def forward(
        self, student: Tensor, teacher: Tensor, *, index: Tensor, contrast_index: Tensor | None = None
    ) -> Tensor:
        """Compute the unweighted loss of one pair of features, and in training bring the banks up to date.

        Args:
            student: Features of the student.
            teacher: Features of the teacher.
            index: Row of each sample in the data set, shape (B,).
            contrast_index: Rows to compare each sample with, its own in column 0; drawn if not given.
        """
        if "student_bank" not in self._buffers:
            raise RuntimeError("CRDLoss: not built yet; call set_dataset, then build.")
        index = self._checked(index, len(student))
        embedded_student, embedded_teacher = self.student_embedding(student), self.teacher_embedding(teacher.detach())
        learns = self.training and torch.is_grad_enabled()
        temperature = self.now(self.temperature)
        if learns and self.split_banks:
            check_processes(self._split_over)
        if contrast_index is None:
            contrast_index = self.draw(index)
        if learns and not self._calibrated:
            self._calibrate(embedded_student.detach(), embedded_teacher.detach(), contrast_index, temperature)
        banks = self.student_bank, self.teacher_bank
        normalizers = self.log_normalizers if self._calibrated else None
        embedded = embedded_student, embedded_teacher
        compare = crd_loss if self._part is None else partial(crd_loss_of_parts, part=self._part)
        value = compare(*embedded, *banks, contrast_index, log_normalizers=normalizers, temperature=temperature)
        if learns:
            self._remember(embedded_student.detach(), embedded_teacher.detach(), index)
        return value

    @torch.no_grad()
    def _calibrate(self, student: Tensor, teacher: Tensor, contrast_index: Tensor, temperature: float) -> None:
        """Fix the normalisers by the first batch, gathered or not, of processes that begin with the same banks."""
        if is_distributed() and not (self._began or self.split_banks):
            for bank in (self.student_bank, self.teacher_bank):
                dist.broadcast(bank.view(torch.uint8), src=0)  # some backends know no 16-bit numbers
        self._began = True  # a process whose first batch is empty calls this again, when the others do not broadcast
        student, teacher = _suited(student, self.teacher_bank), _suited(teacher, self.student_bank)
        sums_of = log_sums if self._part is None else partial(log_sums_of_parts, part=self._part)
        sums = sums_of(student, teacher, self.student_bank, self.teacher_bank, contrast_index, temperature)
        sums = gather(sums) if self.gather else sums
        if len(sums):
            self.log_normalizers.copy_(normalizers_of(sums, self.num_samples, contrast_index.shape[1]))
            self._calibrated = True

    @torch.no_grad()
    def _remember(self, student: Tensor, teacher: Tensor, index: Tensor) -> None:
        """Move the rows of the samples, gathered in every process alike or not, towards their new embeddings."""
        both = torch.cat((student, teacher), dim=1)
        if self.gather:
            index, both = gather(index), gather(both)
        if self._part is not None:
            index, both = self._part.keep(index, both)
        first = _first_of_equals(index)
        for bank, new in ((self.student_bank, both[:, : self.dim]), (self.teacher_bank, both[:, self.dim :])):
            exact = torch.promote_types(bank.dtype, torch.float32)
            moved = bank[index].to(exact) * self.momentum + new.to(exact) * (1.0 - self.momentum)
            bank.index_copy_(0, index, F.normalize(moved, dim=1)[first].to(bank.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CRDLoss":
        banks = {name: self._buffers.get(name) for name in ("student_bank", "teacher_bank")}
        super()._apply(fn, recurse)
        for name, bank in banks.items():
            now = self._buffers.get(name)
            if self.bank_dtype != "float32" and bank is not None and now is not None and now.dtype != bank.dtype:
                self._buffers[name] = bank.to(now.device)  # a 16-bit bank stays as it is in any module
        return self

    def _checked(self, index: Tensor, size: int) -> Tensor:
        """Return the index as int64, after a check for which a device need not wait."""
        if index.shape != (size,) or index.is_floating_point():
            raise ValueError(
                f"CRDLoss: expected one row index for each of {size} samples, got {index.dtype} of shape "
                f"{tuple(index.shape)}."
            )
        index = index.to(self.student_bank.device, torch.long)
        if torch.compiler.is_compiling():
            return index
        outside = ((index < 0) | (index >= self.num_samples)).any()
        twice = (_first_of_equals(index) != torch.arange(size, device=index.device)).any()
        if self._watch.must_look(outside, twice, free=index.device.type == "cpu"):
            self._watch.look(self.num_samples)
        return index if index.device.type == "cpu" else index.clamp(0, self.num_samples - 1)

    def _derive(self) -> None:
        """Compute again what depends on the buffers."""
        if "row_classes" in self._buffers and not self.row_classes.is_meta:
            ordered, rows = torch.sort(self.row_classes, stable=True)
            self.register_buffer("sorted_classes", ordered, persistent=False)
            self.register_buffer("rows_by_class", rows, persistent=False)
            sizes = ordered.unique_consecutive(return_counts=True)[1]
            self._smallest_class, self._largest_class = int(sizes.min()), int(sizes.max())
        if "log_normalizers" in self._buffers and not self.log_normalizers.is_meta:
            self._calibrated = bool(self.log_normalizers.isfinite().all())
            self._split_over = int(self.split_over) if MARK in self._buffers else 0

    def suit(self, saved: Mapping[str, Tensor]) -> None:
        """Go on drawing with replacement, if the checkpoint is of the time when all rows were drawn so.

        Args:
            saved: State of the loss in the checkpoint.
        """
        if "student_bank" in saved and "draw_rule" not in saved:
            self._buffers.pop("draw_rule", None)
        take_shapes(self._buffers, saved, self.split_banks)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # torch 2.10 to 2.14 have hooks before a load, but only this method for what follows it in a module by itself
        self.suit(own_part(state_dict, prefix))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._derive()


def _first_of_equals(index: Tensor) -> Tensor:
    """Return for each element the position of the first that equals it."""
    return (index.unsqueeze(1) == index).byte().argmax(dim=1) if len(index) else index


def _suited(embedding: Tensor, bank: Tensor) -> Tensor:
    return upcast(embedding).to(torch.promote_types(bank.dtype, torch.float32))
