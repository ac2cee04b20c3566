"""Rows that hold several documents: what relates tokens to one another is to relate those of one document alone."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_kd.losses.base import StepTensors


def one_document_a_row(step: StepTensors) -> StepTensors:
    """Return a step whose rows of several documents are cut into one row for each, if there are such.

    A document begins where the positions do not grow. Tokens (B, T, C) become (D, L, C), and what relates them,
    (B, H, T, T), becomes (D, H, L, L), of D documents of at most L tokens; the mask says which there are.

    Args:
        step: What the losses read.
    """
    given, mask = step.position_ids, step.mask
    if given is None or given.ndim != 2 or given.shape[1] < 2:
        return step
    real = torch.ones_like(given, dtype=torch.bool)
    if mask is not None:
        real = real & (mask if mask.ndim == 2 else mask[:, None])
    begins = (given[:, 1:] <= given[:, :-1]) & real[:, 1:] & real[:, :-1]
    if not bool(begins.any()):
        return step
    return _cut(step, real, torch.nn.functional.pad(begins, (1, 0)).cumsum(1))


def _cut(step: StepTensors, real: Tensor, document: Tensor) -> StepTensors:
    rows, columns = real.nonzero(as_tuple=True)
    names = rows * real.shape[1] + document[rows, columns]
    _, which, lengths = names.unique_consecutive(return_inverse=True, return_counts=True)
    place = torch.arange(len(rows), device=rows.device) - (lengths.cumsum(0) - lengths)[which]
    size = (len(lengths), int(lengths.max()))
    column, row = rows.new_zeros(size), rows.new_zeros(size[0])
    mask = torch.zeros(size, dtype=torch.bool, device=rows.device)
    column[which, place], row[which], mask[which, place] = columns, rows, True
    tokens = real.shape[1]

    def cut(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: _of_documents(value, row, column, tokens) for name, value in features.items()}

    features = (cut(step.student_features), cut(step.teacher_features))
    return replace(step, student_features=features[0], teacher_features=features[1], mask=mask, position_ids=None)


def _of_documents(value: Tensor, row: Tensor, column: Tensor, tokens: int) -> Tensor:
    if value.ndim == 4 and value.shape[2:] == (tokens, tokens):
        return value[row[:, None, None], :, column[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
    if value.ndim == 3 and value.shape[1] == tokens:
        return value[row[:, None], column]
    return value
