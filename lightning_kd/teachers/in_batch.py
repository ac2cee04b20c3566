"""A teacher whose answers lie in the batch: no network runs."""

from typing import Any, final

from torch import Tensor

from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import columns_of
from lightning_kd.losses.tokens.sparse import SparseLogits
from lightning_kd.teachers.base import Teacher


@final
class BatchTeacher(Teacher):
    """Reads the teacher's answers from columns of the batch, which somebody has stored; no network runs.

    The batch is a dictionary, or a dictionary with a target. Either a column holds the logits, for any loss of logits,
    or two hold a few tokens of each position, for ``TokenKDLoss``: their ids and their log-probabilities, normalised
    over the whole vocabulary, as ``SparseLogits.top_k`` gives them. Ids alone are draws out of the teacher's
    distribution, see ``SparseLogits.from_draws``. The student is not given these columns, unless its
    ``forward`` names them.

    Shape:
        - logits: :math:`(B, C)` or :math:`(B, T, V)`.
        - ids, log_probs: :math:`(B, T, K)`.

    Args:
        logits: Name of the column of logits.
        ids: Name of the column of token ids.
        log_probs: Name of the column of their log-probabilities.

    Raises:
        ValueError: If the names do not say one of these; in a call, if a column is not there, or is not of the rows
            that the student was called with.

    Example:
        >>> import torch
        >>> teacher = BatchTeacher(ids="teacher_ids", log_probs="teacher_log_probs")
        >>> kept = SparseLogits.top_k(torch.zeros(1, 2, 4), 3)
        >>> batch = {"input_ids": torch.ones(1, 2), "teacher_ids": kept.ids, "teacher_log_probs": kept.log_probs}
        >>> teacher.answer(batch, Call(kwargs={"input_ids": batch["input_ids"]})).output.shape
        torch.Size([1, 2, 3])
    """

    def __init__(self, logits: str | None = None, ids: str | None = None, log_probs: str | None = None) -> None:
        if (logits is None) == (ids is None) or (ids is None and log_probs is not None):
            raise ValueError(
                "BatchTeacher: expected logits='COLUMN', or ids='COLUMN' with log_probs='COLUMN', or ids alone for "
                f"draws; got logits={logits!r}, ids={ids!r} and log_probs={log_probs!r}."
            )
        self.logits = logits
        self.ids = ids
        self.log_probs = log_probs

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a batch that are read."""
        return tuple(name for name in (self.logits, self.ids, self.log_probs) if name is not None)

    def answer(self, batch: Any, call: Call) -> Call:
        """Return what the batch holds of the teacher."""
        read = [self._column(batch, call, name) for name in self.columns]
        if self.logits is not None:
            return Call(called=True, output=read[0])
        kept = SparseLogits.from_draws(read[0]) if self.log_probs is None else SparseLogits(read[0], read[1])
        return Call(called=True, output=kept)

    def _column(self, batch: Any, call: Call, name: str) -> Tensor:
        columns = columns_of(batch)
        value = None if columns is None else columns.get(name)
        if not isinstance(value, Tensor):
            given = type(batch).__name__ if columns is None else list(columns)
            raise ValueError(
                f"BatchTeacher reads the column {name!r} of the batch, which is a dictionary of tensors then, but the "
                f"batch has {given}."
            )
        if len(value) != call.rows():
            raise ValueError(
                f"BatchTeacher: the column {name!r} is of {len(value)} rows, but the student was called with "
                f"{call.rows()}."
            )
        return value
