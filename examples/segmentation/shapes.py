"""A synthetic data set for segmentation: shapes of five classes, drawn over one another on a noisy ground.

A class is told by its outline alone. Colours say nothing: a shape may be darker or brighter than what is around it.
"""

import math

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

SIZE = 64
CLASSES = ("ground", "disc", "square", "triangle", "cross", "ring")
MOST = 5
"""At most so many shapes are drawn in an image, one over the other."""


def shapes(count: int, seed: int) -> TensorDataset:
    """Draw images (count, 3, 64, 64) and the class of each of their pixels (count, 64, 64).

    Args:
        count: How many images, >= 1.
        seed: The same seed gives the same images.

    Example:
        >>> images, labels = shapes(8, seed=0).tensors
        >>> images.shape, labels.shape
        (torch.Size([8, 3, 64, 64]), torch.Size([8, 64, 64]))
        >>> int(labels.max()) < len(CLASSES)
        True
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [_draw(min(256, count - start), generator) for start in range(0, count, 256)]
    return TensorDataset(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))


def _draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    rows, columns = torch.meshgrid(*[torch.arange(SIZE, dtype=torch.float32)] * 2, indexing="ij")
    slope = uniform(-0.6, 0.6, 3, 2, 1, 1)
    images = (
        uniform(-0.5, 0.5, 3, 1, 1) + slope[:, :, 0] * (rows / SIZE - 0.5) + slope[:, :, 1] * (columns / SIZE - 0.5)
    )
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    for number in range(MOST):
        row, column = uniform(6, SIZE - 6, 1, 1), uniform(6, SIZE - 6, 1, 1)
        radius, angle = uniform(8, 16, 1, 1), uniform(0, 2 * math.pi, 1, 1)
        kind = torch.randint(1, len(CLASSES), (count, 1, 1), generator=generator)
        colour = uniform(-1.5, 1.5, 3, 1, 1)
        there = torch.rand(count, 1, 1, generator=generator) < (1.0 if number == 0 else 0.8)
        down, right = (rows - row) / radius, (columns - column) / radius
        x, y = right * angle.cos() + down * angle.sin(), down * angle.cos() - right * angle.sin()
        inside = _outlines(x, y).gather(1, (kind - 1)[:, None].expand(-1, -1, SIZE, SIZE)).squeeze(1) & there
        labels = torch.where(inside, kind, labels)
        images = torch.where(inside.unsqueeze(1), colour, images)
    noise = torch.randn(images.shape, generator=generator)
    return images + 0.2 * noise, labels


def _outlines(x: Tensor, y: Tensor) -> Tensor:
    """Which positions lie in a disc, square, triangle, cross and ring of radius 1, (count, 5, 64, 64)."""
    distance, wider, narrower = x.hypot(y), torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    triangle = (y > -0.6) & (y < 1.1 - math.sqrt(3.0) * x.abs())
    return torch.stack(
        [distance < 0.9, wider < 0.8, triangle, (wider < 1.0) & (narrower < 0.3), (distance < 1.0) & (distance > 0.5)],
        dim=1,
    )
