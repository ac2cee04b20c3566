"""The order of a feature's axes, and how a feature is brought to the one order that the losses read.

The losses read ``(B, C)``, tokens ``(B, N, C)``, or maps ``(B, C, H, W)``, with the batch first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from lightning_kd.capture.seen import grid_of

LayoutName = Literal["NC", "NCL", "NLC", "LNC", "NCHW", "NHWC", "NCDHW", "NDHWC"]
"""Names of the axes in order: N the batch, C the channels, L the positions of a sequence, D, H and W those of space."""
LAYOUTS: tuple[str, ...] = get_args(LayoutName)


@dataclass(frozen=True, slots=True)
class View:
    """How the value of a layer is brought to the order that a loss reads.

    Args:
        order: The axes of the value, one of ``LAYOUTS``.
        windows: How many windows of a sample stand one after another along the batch axis; 1 without windows.
        prefix: How many class and register tokens stand before the tokens of the image.
        grid: Height and width of the patches that the tokens stand for, ``None`` if they stand for no image.
        as_map: Whether tokens are read as a map: the patches of an image, or positions in one column.
        text: Whether the value holds tokens that are no patches of an image, of which a mask may say which are padding.
        pooled: Whether the mean of a sample's tokens is read, (B, C).

    Example:
        >>> import torch
        >>> View("NHWC")(torch.zeros(2, 7, 7, 12)).shape
        torch.Size([2, 12, 7, 7])
        >>> View("NLC", prefix=1, grid=(7, 7), as_map=True)(torch.zeros(2, 50, 12)).shape
        torch.Size([2, 12, 7, 7])
    """

    order: str
    windows: int = 1
    prefix: int = 0
    grid: tuple[int, int] | None = None
    as_map: bool = False
    text: bool = False
    pooled: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the value is read as it is."""
        return self.order in ("NC", "NLC", "NCHW") and self.windows == 1 and not (self.as_map or self.text)

    @property
    def depends_on_size(self) -> bool:
        """Whether the size of the images decides how the value is read."""
        return self.windows > 1 or self.grid is not None

    def fitted(self, shape: Sequence[int], samples: int, image: tuple[int, int] | None) -> "View":
        """Return the view for images of another size: with other windows a sample, and another grid of patches.

        Args:
            shape: The shape of the value.
            samples: How many samples it is of.
            image: Height and width of the images, ``None`` if they are not known.

        Raises:
            ValueError: If the rows are not as many windows for each sample, or the tokens no patches of the images.

        Example:
            >>> View("NLC", windows=4).fitted((12, 49, 8), 2, None).windows
            6
            >>> View("NLC", prefix=1, grid=(4, 4)).fitted((2, 9, 8), 2, (16, 32)).grid
            (2, 4)
        """
        view = self
        if self.windows > 1 and samples:
            windows, rest = divmod(shape[0], samples)
            if rest or not windows:
                raise ValueError(f"its {shape[0]} rows are not as many windows for each of {samples} samples.")
            view = replace(view, windows=windows)
        if self.grid is not None and image is not None:
            tokens = shape[self.order.index("L")] - self.prefix
            grid = grid_of(tokens, image)
            if grid is None:
                raise ValueError(
                    f"its {tokens} tokens are read as the patches of an image, but images of {image[0]} x {image[1]} "
                    "have no square patches so many. Give images of one shape, or name a layer that returns a map."
                )
            view = replace(view, grid=grid)
        return view

    def __call__(self, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the value in the order that a loss reads.

        Args:
            value: What the layer returned.
            mask: Which tokens (B, N) count for a mean; all by default.
        """
        if self.pooled:
            tokens = self._tokens(value)
            if mask is None or mask.ndim == 1:  # a mask of samples says nothing of tokens
                return tokens.mean(dim=1)
            kept = tokens.masked_fill(~mask.unsqueeze(2), 0.0)
            return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)
        if self.order == "NC":
            return value if self.windows == 1 else value.unflatten(0, (-1, self.windows))
        if len(self.order) == 3:
            return self._tokens(value)
        channels_first = value if self.order[1] == "C" else value.movedim(-1, 1)
        if self.windows > 1:
            channels_first = channels_first.unflatten(0, (-1, self.windows)).transpose(1, 2)
        # windows, and depth, are joined to the height: the losses compare position by position
        return channels_first if channels_first.ndim == 4 else channels_first.flatten(2, -2)

    def of_mask(self, mask: Tensor, rows: int) -> Tensor:
        """Return a mask of the tokens of each sample, where one has a row for each window, as of multiple choice.

        Args:
            mask: Which tokens count, (B, N) or (B * windows, N / windows), or which samples (B,).
            rows: The size of the value's batch axis, B * windows.

        Example:
            >>> import torch
            >>> View("NLC", windows=2).of_mask(torch.tensor([[1, 1], [1, 0]]), rows=2)
            tensor([[1, 1, 1, 0]])
        """
        if self.windows == 1 or mask.ndim == 1 or len(mask) != rows:
            return mask
        joined: Tensor = mask.unflatten(0, (-1, self.windows)).flatten(1, 2)
        return joined

    def _tokens(self, value: Tensor) -> Tensor:
        if self.order == "LNC":
            value = value.transpose(0, 1)
        elif self.order == "NCL":
            value = value.transpose(1, 2)
        if self.windows > 1:
            value = value.unflatten(0, (-1, self.windows)).flatten(1, 2)
        if not self.as_map:
            return value
        patches = value[:, self.prefix :].transpose(1, 2)
        return patches.unsqueeze(3) if self.grid is None else patches.unflatten(2, self.grid)


def batch_axis(order: str) -> int:
    """Return the number of the batch axis of a layout."""
    return order.index("N")
