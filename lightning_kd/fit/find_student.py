"""Which part of a user's own module is the student."""

from lightning.pytorch import LightningModule
from torch import nn


def find_student(pl_module: LightningModule, name: str | None) -> nn.Module:
    """Return the student in a module of the user's own.

    Args:
        pl_module: The module.
        name: Dotted name of the student in it, ``""`` for the module itself; ``None`` for the only child that has
            parameters.

    Raises:
        ValueError: If there is no module of that name, or not exactly one child with parameters.
    """
    if name is not None:
        try:
            return pl_module.get_submodule(name)
        except AttributeError:
            known = [name for name, _ in pl_module.named_modules() if name]
            raise ValueError(
                f"{type(pl_module).__name__} has no module {name!r} to be the student. "
                f"It has: {', '.join(known[:20]) or 'none'}."
            ) from None
    children = {name: child for name, child in pl_module.named_children() if any(True for _ in child.parameters())}
    if len(children) != 1:
        raise ValueError(
            f"{type(pl_module).__name__} has {len(children)} children with parameters "
            f"({', '.join(children) or 'none'}); name the student: "
            "DistillationCallback(..., student='name'), or student='' if the module itself is the network."
        )
    return next(iter(children.values()))
