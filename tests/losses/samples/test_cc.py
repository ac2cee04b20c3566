"""Correlation congruence: the numbers of two published codes, the kernels, and options that cannot be."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_kd.functional import cc_loss
from lightning_kd.losses import CCLoss
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("cc", ""), ids=str)
def test_the_variant_equals_repdistillers_code(record: Golden) -> None:
    component = CCLoss("a", "b", variant="repdistiller", dim=int(record.hyper["feat_dim"]))
    component.build({"a": record.arrays["s0"].shape}, {"b": record.arrays["t0"].shape})
    student_embedding, teacher_embedding = component.student_embeddings[0], component.teacher_embeddings[0]
    for layer, side in ((student_embedding, "s"), (teacher_embedding, "t")):
        layer.load_state_dict({n: record.arrays[f"param.embed_{side}.linear.{n}"] for n in ("weight", "bias")})
    named = {
        "embed_s": torch.nn.ModuleDict({"linear": student_embedding}),
        "embed_t": torch.nn.ModuleDict({"linear": teacher_embedding}),
    }
    check_golden(record, lambda s, t, _: component(s[0], t[0]), torch.nn.ModuleDict(named))


@pytest.mark.parametrize("record", golden("cc", "__torchdistill_bilinear", "__torchdistill_gaussian"), ids=str)
def test_the_kernels_are_those_of_torchdistill_which_takes_the_root(record: Golden) -> None:
    """Its loss is the root of the sum of squares, over the squared batch."""
    arrays = record.arrays
    student, teacher = (
        F.linear(arrays[f"{x}0"], *(arrays[f"param.embed_{x}.linear.{name}"] for name in ("weight", "bias")))
        for x in ("s", "t")
    )
    ours = cc_loss(student, teacher, kernel=record.suffix.removeprefix("__torchdistill_"))
    torch.testing.assert_close(ours.sqrt() / len(student), arrays["loss"].reshape(()))


def test_a_high_order_is_the_gaussian_kernel() -> None:
    student, teacher = random(5, 3, seed=1), random(5, 4, seed=2)
    kernels = [torch.exp(-0.7 * torch.cdist(d, d) ** 2) for d in (F.normalize(student), F.normalize(teacher))]
    expected = (kernels[0] - kernels[1]).square().mean()
    torch.testing.assert_close(cc_loss(student, teacher, gamma=0.7, order=25), expected)
    loops = [
        math.exp(-1.4) * sum(1.4**p / math.factorial(p) * (d @ d.T) ** p for p in range(4))
        for d in (F.normalize(student), F.normalize(teacher))
    ]
    torch.testing.assert_close(cc_loss(student, teacher, gamma=0.7, order=3), (loops[0] - loops[1]).square().mean())


def test_neighbours_of_a_single_sample_are_none() -> None:
    student = random(1, 3, seed=1).requires_grad_()
    loss = cc_loss(student, random(1, 3, seed=2), variant="repdistiller")
    loss.backward()
    assert loss == 0.0
    assert not student.grad.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variant": "authors"}, "expected variant 'paper' or 'repdistiller', got 'authors'"),
        ({"kernel": "cubic"}, "expected kernel 'gaussian' or 'bilinear', got 'cubic'"),
        ({"gamma": 0.0}, "expected gamma > 0, got 0"),
        ({"order": 0}, "expected a whole order >= 1, got 0"),
        ({"dim": 8}, "expected dim >= 1 with variant='repdistiller', got 8"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CCLoss("a", "b", **options)


@pytest.mark.parametrize("kernel", ["gaussian", "bilinear"])
@pytest.mark.parametrize("offset", [10.0, 100.0])
def test_float32_is_exact_for_a_tight_cluster_far_from_zero(offset: float, kernel: str) -> None:
    inputs = [tight(16, 32, seed=seed, offset=offset) for seed in (1, 2)]
    check_float32(lambda s, t: cc_loss(s, t, kernel=kernel), inputs)
