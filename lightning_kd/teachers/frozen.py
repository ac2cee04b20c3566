"""The frozen teacher: in eval mode, without gradients, and invisible to checkpoints, optimizers and copies."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


class FrozenTeacher:
    """Holds a teacher outside the module registry, frozen and in eval mode.

    Because the holder is a plain object, the module that owns it neither saves, optimizes, broadcasts nor averages
    the teacher, and ``train()`` or ``unfreeze()`` on the owner do not reach it. Copies of the holder share the
    teacher.

    Args:
        module: The teacher; its parameters stop requiring gradients here.
        dtype: Format that the teacher computes in; by default whatever its owner is converted to.

    Example:
        >>> teacher = FrozenTeacher(nn.Linear(2, 1))
        >>> teacher(torch.ones(1, 2)).requires_grad, teacher.module.training
        (False, False)
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        self.module = module.requires_grad_(False).eval()
        self.dtype = dtype
        self.ready = True
        """Whether it has something to teach; losses that need a teacher wait until then."""
        if dtype is not None:
            self.module.to(dtype)

    def __deepcopy__(self, memo: dict[int, object]) -> "FrozenTeacher":
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the teacher without gradients; floating inputs are cast if it has a format of its own."""
        if self.module.training:
            self.module.eval()
        if self.dtype is not None:
            args, kwargs = tree_map_only(Tensor, self._cast, (args, kwargs))
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the owner's move to a device or format, but keep the teacher's own format if it has one."""
        self.module._apply(fn if self.dtype is None else lambda t: fn(t).to(t.dtype))

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor
