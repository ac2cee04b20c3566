"""Probabilities are stored where the format keeps them, and refused where it does not, wherever the classes are."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_kd import cache
from lightning_kd.cache.items import Format
from lightning_kd.cache.rounding import check_rounding
from lightning_kd.capture.call import Call
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.losses.tokens.sparse import SparseLogits
from lightning_kd.teachers import CachedTeacher
from lightning_kd.teachers.cached import HEAD, LOGITS

SHAPES = {"(B, C)": ((12, 7), 1), "(B, T, V)": ((12, 4, 7), 2), "(B, C, H, W)": ((12, 7, 3, 2), 1)}
MAKE = {
    "logits": lambda x, axis: x,
    "probabilities": torch.softmax,
    "log_probabilities": torch.log_softmax,
}
REFUSED = {
    ("probabilities", "bfloat16"): "returns probabilities, which bfloat16 rounds by up to 0.4 %",
    ("log_probabilities", "bfloat16"): "returns logarithms of probabilities, which bfloat16 rounds by up to 0.4 %",
}


class Scores(nn.Module):
    """Returns its input, as scores of another kind."""

    def __init__(self, kind, axis):
        super().__init__()
        self.kind, self.axis = kind, axis
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return MAKE[self.kind](self.factor * x, self.axis)


def scores(shape, width=1.0):
    return width * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def write(folder, teacher, x, **options):
    return cache.write(teacher, TensorDataset(x), folder, **{"losses": [KDLoss()], "batch_size": 4, **options})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES)
def test_each_kind_is_stored_or_refused_alike_on_every_axis(shape, axis, kind, dtype, tmp_path):
    x, teacher = scores(shape), Scores(kind, axis)
    if (kind, dtype) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[kind, dtype]):
            write(tmp_path, teacher, x, dtype=dtype)
        assert not list(tmp_path.iterdir())
        return
    write(tmp_path, teacher, x, dtype=dtype)
    found = CachedTeacher(tmp_path).answer(None, Call(args=(x,))).output
    torch.testing.assert_close(found, MAKE[kind](x, axis), rtol=2.0**-8, atol=1e-6)


@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES)
def test_probabilities_that_would_become_0_are_refused_and_their_logarithms_stored(shape, axis, tmp_path):
    x = scores(shape, width=10.0)
    exact = torch.softmax(x[:4].double(), axis)
    share = (exact < 2.0**-25).double().mean()  # half of the smallest number above 0 in float16
    assert share > 0.05
    with pytest.raises(
        ValueError, match=rf"{float(share):.1%} of those on the first rows are 0 in float16.*below 6e-08"
    ):
        write(tmp_path, Scores("probabilities", axis), x, dtype="float16")
    write(tmp_path / "logs", Scores("log_probabilities", axis), x, dtype="float16")
    write(tmp_path / "wide", Scores("probabilities", axis), x, dtype="float32")
    found = CachedTeacher(tmp_path / "wide").answer(None, Call(args=(x,))).output
    assert bool((found > 0).all())


def test_where_no_loss_reads_the_scores_they_may_become_0(tmp_path):
    teacher = nn.Sequential(nn.Linear(7, 7), Scores("probabilities", 1))
    torch.nn.init.eye_(teacher[0].weight)
    x = scores((12, 7), width=10.0)
    write(tmp_path, teacher, x, losses=[HintLoss("0", "0")], dtype="float16")
    assert CachedTeacher(tmp_path).answer(None, Call(args=(x,))).output is not None


def tokens(kind, padding):
    """Scores (B, T, V) with something else at the padding, and the mask."""
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    values = MAKE[kind](scores((2, 4, 9)), 2)
    return values.masked_fill(~mask.unsqueeze(2), padding), mask


def checked(values, mask, dtype, name=LOGITS, **options):
    item = {"kind": "dense" if mask is None else "tokens", "side": "encoder"}
    check_rounding({name: values}, {name: item}, {"encoder": mask, "decoder": None}, Format(dtype, **options))


@pytest.mark.parametrize(
    ("padding", "has_mask"), [(7.0, True), (float("nan"), True), (0.0, False), (float("nan"), False)]
)
@pytest.mark.parametrize("kind", MAKE)
def test_padding_hides_nothing(kind, padding, has_mask):
    values, mask = tokens(kind, padding)
    refused = pytest.raises(ValueError, match="no longer add up to 1")
    with nullcontext() if kind == "logits" else refused:
        checked(values, mask if has_mask else None, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("options", [{"top_k": 3}, {"draws": 20}])
def test_few_tokens_of_probabilities_are_not_kept(options, dtype):
    mask = torch.ones(2, 4, dtype=torch.bool)
    values = torch.softmax(scores((2, 4, 9)), 2)
    # what would be kept is the softmax of a softmax
    wrong = SparseLogits.top_k(values, 9).log_probs.exp().max()
    assert wrong < 0.3 < values.max()
    with pytest.raises(ValueError, match="of which they would take the softmax once more"):
        checked(values, mask, dtype, **options)
    for kept in (values.log(), values.log() + 3.0):  # logits, whose softmax is taken as it should be
        checked(kept, mask, dtype, **options)


def test_another_output_that_a_loss_reads_is_looked_at_too():
    with pytest.raises(ValueError, match=f"{HEAD}aux: The teacher returns probabilities"):
        checked(torch.softmax(scores((4, 5)), 1), None, torch.bfloat16, name=f"{HEAD}aux")
    checked(torch.softmax(scores((4, 5)), 1), None, torch.bfloat16, name="layer:attention")


def test_what_rounding_hides_is_refused():
    even = torch.full((4, 50_000), 1 / 50_000)  # 0.00002002716064453125 in float16
    assert abs(float(even.half().double().sum(1)[0]) - 1) > 1e-3
    with pytest.raises(ValueError, match="which float16 rounds so that they no longer add up to 1"):
        checked(even, None, torch.float16)
    half = torch.softmax(scores((4, 5), width=3.0), 1).bfloat16()
    with pytest.raises(ValueError, match="Let the teacher compute in float32 and store so"):
        checked(half, None, torch.float32)


@pytest.mark.parametrize("values", [torch.empty(0, 3), torch.zeros(4, 3), torch.rand(5), torch.rand(4, 1)])
def test_what_has_no_classes_is_left_alone(values):
    checked(values, None, torch.bfloat16)
