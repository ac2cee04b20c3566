"""Where the outputs of networks that predict numbers hold those of one sample at one position."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from lightning_kd.capture.followed import Followed
from lightning_kd.engine.masks import Masks
from lightning_kd.losses.base import DistillationLoss, Shape
from lightning_kd.losses.logits.regression import RegressionKDLoss


def note_axis(loss: DistillationLoss, raw: Tensor, runs: Followed | None) -> None:
    """Tell a loss of numbers on which axis the layer that makes an output puts them.

    Args:
        loss: Any loss.
        raw: An output that it reads, as its network returned it.
        runs: The calls of the modules of that network, ``None`` if they were not followed.
    """
    if isinstance(loss, RegressionKDLoss) and runs is not None:
        known = runs.known_axis(raw)
        if known is not None:
            loss.known_axes.add(known)


def settle_numbers(
    losses: Iterable[tuple[str, DistillationLoss]], masks: Masks, shapes: Mapping[str, Mapping[str, Shape]]
) -> None:
    """Settle for each loss of numbers which axis holds those of one sample at one position.

    Args:
        losses: The losses by name, to which :func:`note_axis` has told what is known.
        masks: The masks of the first samples.
        shapes: The shapes of what the losses read of each role.

    Raises:
        ValueError: If a loss needs to know and nothing tells; names the part and the remedy.
    """
    for name, loss in losses:
        if isinstance(loss, RegressionKDLoss):
            own, _ = loss.logit_shapes(shapes["student"], shapes["teacher"])
            try:
                if masks.of_tokens(loss) is None:  # else the check of the mask has done so
                    loss.settle_axis(own, None)
            except ValueError as error:
                raise ValueError(f"Part {name!r}: {error}") from None
            finally:
                loss.known_axes.clear()  # those of another network count in another run
