"""Whether the attention that losses read is that of samples, not of windows, and stays so in every step."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_kd.capture.attention import part_and_block
from lightning_kd.capture.attention_matrix import MASKED
from lightning_kd.capture.axes import Axes
from lightning_kd.capture.call import Call
from lightning_kd.capture.heads import is_module
from lightning_kd.capture.multihead import Multihead
from lightning_kd.capture.networks import original, plain_name
from lightning_kd.capture.seen import batch_of
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.tokens.attention import AttentionMatrixLoss
from lightning_kd.losses.tokens.blocks import no_attention


def check_attention(student: Call, teacher: object, network: nn.Module | None, target: Any) -> None:
    """Check that what was read of attention at set-up is that of samples, and can be read in every step.

    Args:
        student: What the student was called with, and what was read of it.
        teacher: The same of the teacher, or an answer of another kind, which has nothing to check.
        network: The teacher's network, ``None`` if there is none to call.
        target: The target of the batch, which tells the axis of the samples.

    Raises:
        ValueError: If its rows are windows of samples, or the teacher will leave out padding by nested tensors.
    """
    _check_rows("student", student, target)
    if isinstance(teacher, Call):
        _check_rows("teacher", teacher, target)
        if network is not None:
            _check_packs_no_tokens(network, teacher)


def check_returns_attention(loss: DistillationLoss, known: Mapping[str, Mapping[str, Axes]]) -> None:
    """Check that modules which are named for the attention that they return do not return features.

    Args:
        loss: The loss.
        known: What the axes of the layers of each role mean.

    Raises:
        ValueError: If a convolution, a linear layer or a norm has made the channels of an output of four axes.
    """
    if not isinstance(loss, AttentionMatrixLoss):
        return
    for role, layers in (("student", loss.student_layers), ("teacher", loss.teacher_layers)):
        for name in filter(is_module, layers):
            axes = known[role].get(name)
            if axes is not None and len(axes.shape) == 4 and axes.channels is not None:
                raise ValueError(
                    f"AttentionMatrixLoss: expected attention (B, H, T, T), got features {axes.shape} of the {role}, "
                    f"with the channels on axis {axes.channels}. Its {no_attention(name)}"
                )


def check_same_order(loss: DistillationLoss, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> None:
    """Check that both attentions of a pair see later tokens, or that neither does.

    Args:
        loss: The loss.
        student: What was read of the student's layers.
        teacher: What was read of the teacher's.

    Raises:
        ValueError: If one is causal and the other is not, so that what one attends to has no score in the other.
    """
    if not isinstance(loss, AttentionMatrixLoss) or "scores" not in loss.parts:
        return
    for ours, theirs in zip(loss.student_layers, loss.teacher_layers, strict=True):
        causal = [_is_causal(student.get(ours)), _is_causal(teacher.get(theirs))]
        if None not in causal and causal[0] != causal[1]:
            one, other = ("student", "teacher") if causal[0] else ("teacher", "student")
            raise ValueError(
                f"AttentionMatrixLoss: the {one}'s attention is causal, and the {other}'s is not ({ours!r} and "
                f"{theirs!r}), so the {other}'s scores of later tokens have nothing to be compared with. Compare "
                "hidden states by HiddenStateLoss."
            )


def _is_causal(scores: Any) -> bool | None:
    """Return whether no query has a score for a later key, ``None`` if there are none to tell."""
    if not isinstance(scores, Tensor) or scores.ndim != 4 or scores.shape[2] != scores.shape[3] or scores.is_meta:
        return None
    if scores.shape[2] < 2 or not scores.numel():
        return None
    later = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
    return bool((scores[..., later] <= MASKED / 2).all())


def _check_rows(role: str, call: Call, target: Any) -> None:
    """Raise a ``ValueError`` if the attention of a block has several rows for each sample."""
    found = batch_of(call.args, call.kwargs, target)
    for block, count in _rows(call.features).items():
        if block not in call.attended or not call.attended[block].of_samples:
            continue
        if found is not None and found[0] and count != found[0] and count % found[0] == 0:
            raise ValueError(
                f"The {role}'s {block!r} has attention of {count} rows for {found[0]} samples, as in windows that are "
                "put into the batch, so its tokens are not those of a sample. Name a block that attends over the whole "
                "sample, or compare hidden states by HiddenStateLoss, or maps by ATLoss."
            )


def _check_packs_no_tokens(network: nn.Module, call: Call) -> None:
    """Raise a ``ValueError`` if a teacher's encoder of torch will leave out padding, which hides its attention.

    It makes nested tensors in eval mode where it is given a mask of padding alone. At set-up, where its operations are
    looked at, it does not.
    """
    padded = [
        block
        for block, attended in call.attended.items()
        if isinstance(attended, Multihead) and attended.masks[0] is not None and attended.masks[1] is None
    ]
    modules = {plain_name(name): module for name, module in original(network).named_modules(remove_duplicate=False)}
    for block in padded:
        for name, encoder in modules.items():
            packs = isinstance(encoder, nn.TransformerEncoder) and getattr(encoder, "use_nested_tensor", False)
            if packs and modules[plain_name(block)] in encoder.modules():
                raise ValueError(
                    f"The teacher's {block!r} is called without the padded tokens, as nested tensors, by its "
                    f"nn.TransformerEncoder {name!r}, so its attention cannot be read. Set use_nested_tensor = False "
                    "on that encoder before the fit, as enable_nested_tensor=False does when it is made."
                )


def _rows(features: Mapping[str, Any]) -> dict[str, int]:
    """Return how many rows has what is read of each block's attention."""
    named = ((part_and_block(name), value) for name, value in features.items())
    return {place[1]: len(value) for place, value in named if place is not None}
