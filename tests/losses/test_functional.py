"""The flat namespace of formulas."""

import inspect

from lightning_kd import functional
from lightning_kd.losses import SparseLogits


def test_every_public_name_is_a_formula_that_ends_in_a_tensor() -> None:
    public = {name: thing for name, thing in vars(functional).items() if name.isidentifier() and name[0] != "_"}
    assert {"kd_loss", "hint_loss"} <= set(public)
    assert public.pop("SparseLogits") is SparseLogits  # what a formula takes in the place of a teacher's logits
    for name, thing in public.items():
        assert inspect.isfunction(thing)
        assert thing.__name__ == name
        assert thing.__module__.startswith("lightning_kd.losses.")
        assert "Tensor" in str(inspect.signature(thing).return_annotation)
