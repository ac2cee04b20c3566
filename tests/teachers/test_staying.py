"""A teacher that is quantised, or placed on devices, stays where it is and in its format, through both doors."""

import pytest
import torch

from lightning_kd.teachers import FrozenTeacher
from tests import support


class Refusing(support.ConvNet):
    """As a network of bitsandbytes: ``.to`` raises."""

    def to(self, *args, **kwargs):
        raise ValueError("`.to` is not supported for `4-bit` or `8-bit` bitsandbytes models.")


class Marked(support.ConvNet):
    is_quantized = True


class Spread(support.ConvNet):
    hf_device_map = {"features": 0, "head": "cpu"}

    def to(self, *args, **kwargs):
        raise RuntimeError("You can't move a model that has some modules offloaded to cpu or disk.")


def made(kind):
    net = support.seeded(lambda: kind(8), 7)
    net.register_buffer("scale", torch.ones(2, dtype=torch.bfloat16))  # a format that a cast would change
    return net


@pytest.mark.parametrize("kind", [Refusing, Marked, Spread])
@pytest.mark.parametrize("door", ["module", "callback"])
def test_it_is_neither_moved_nor_cast(door, kind):
    teacher = made(kind)
    before, places = support.snapshot(teacher), {n: v.data_ptr() for n, v in teacher.state_dict().items()}
    net, callbacks = support.through(door, guide=teacher)
    support.fit(net, callbacks=callbacks)
    if door == "module":
        net.double()
    support.assert_unchanged(teacher, before)
    assert {n: v.data_ptr() for n, v in teacher.state_dict().items()} == places
    assert teacher.scale.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in teacher.parameters())


def test_an_ordinary_one_is_moved():
    class Own(support.ConvNet):
        def to(self, *args, **kwargs):  # as the models of Hugging Face, which look at the arguments first
            return super().to(*args, **kwargs)

    for kind in (Own, support.ConvNet):
        assert not FrozenTeacher(kind(2)).stays


def test_another_format_is_refused():
    with pytest.raises(ValueError, match="teacher_dtype cannot change the format of the teacher Refusing"):
        FrozenTeacher(made(Refusing), "bfloat16")
