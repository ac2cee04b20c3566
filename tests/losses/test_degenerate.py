"""What every formula does with input at the edge: nothing, zeros, huge numbers, other types, a second derivative."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from lightning_kd import functional as f
from lightning_kd.losses.tokens.divergences import Divergence
from tests.losses.case import Case, random
from tests.losses.cases import HELPERS
from tests.losses.test_conformance import _component, _gradients, _value, exported_functions, of

Formula = Callable[[Tensor, Tensor], Tensor]
MAP, ROWS, LOGITS = (4, 3, 4, 4), (6, 5), (6, 5)
TOKENS, HEADS = (6, 5), (4, 2, 3, 3)


def ids(x: Tensor) -> Tensor:
    return torch.arange(len(x)) % 5


def banks(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    contrast = torch.arange(len(x) * 4).reshape(len(x), 4) % 9
    return random(9, 5, seed=7).to(x.dtype), random(9, 5, seed=8).to(x.dtype), contrast


def by_divergence(name: Divergence) -> Formula:
    return lambda s, t: f.token_kd_loss(s, t, divergence=name)


FORMULAS: dict[str, tuple[tuple[int, ...], Formula]] = {
    "ab_loss": (MAP, f.ab_loss),
    "attention_transfer_loss": (MAP, f.attention_transfer_loss),
    "attention_transfer_loss of p=1/2": (MAP, lambda s, t: f.attention_transfer_loss(s, t, p=0.5)),
    "attention_transfer_loss of p=4": (MAP, lambda s, t: f.attention_transfer_loss(s, t, p=4.0)),
    "byot_loss": (LOGITS, lambda s, t: f.byot_loss(s, s, t, t, ids(s))),
    "cwd_loss": (MAP, f.cwd_loss),
    "factor_transfer_loss": (MAP, f.factor_transfer_loss),
    "factor_transfer_loss of repdistiller": (MAP, lambda s, t: f.factor_transfer_loss(s, t, variant="repdistiller")),
    "fsp_loss": (MAP, lambda s, t: f.fsp_loss(s, s, t, t)),
    "embedding_loss": (ROWS, f.embedding_loss),
    "embedding_loss, normalised": (ROWS, lambda s, t: f.embedding_loss(s, t, kind="mse", normalize=True)),
    "hcl_loss": (MAP, f.hcl_loss),
    "hint_loss": (MAP, f.hint_loss),
    "kdsvd_loss": (MAP, lambda s, t: f.kdsvd_loss(s, s[:, :2], t, t[:, :2])),
    "mgd_loss": (MAP, f.mgd_loss),
    "nst_loss": (MAP, f.nst_loss),
    "nst_loss of few positions": ((4, 6, 2, 2), f.nst_loss),
    "nst_loss, linear": (MAP, lambda s, t: f.nst_loss(s, t, kernel="linear")),
    "nst_loss, gaussian": (MAP, lambda s, t: f.nst_loss(s, t, kernel="gaussian")),
    "ofd_loss": (MAP, lambda s, t: f.ofd_loss(s, t, -torch.ones(3, dtype=s.dtype))),
    "pkd_loss": (MAP, f.pkd_loss),
    "srd_loss": (ROWS, f.srd_loss),
    "vid_loss": (MAP, lambda s, t: f.vid_loss(s, t, torch.zeros(3, dtype=s.dtype))),
    "ctkd_loss": (LOGITS, lambda s, t: f.ctkd_loss(s, t, torch.zeros(1))),
    "dist_loss": (LOGITS, f.dist_loss),
    "dkd_loss": (LOGITS, lambda s, t: f.dkd_loss(s, t, ids(s))),
    "kd_loss": (LOGITS, f.kd_loss),
    "kd_loss, standardised": (LOGITS, lambda s, t: f.kd_loss(s, t, standardize=True)),
    "mlkd_loss": (LOGITS, f.mlkd_loss),
    "mlkd_loss of few samples": ((3, 5), f.mlkd_loss),
    "mutual_learning_loss": (LOGITS, lambda s, t: f.mutual_learning_loss([s, t.detach()], ids(s))),
    "nkd_loss": (LOGITS, lambda s, t: f.nkd_loss(s, t, ids(s))),
    "wsld_loss": (LOGITS, lambda s, t: f.wsld_loss(s, t, ids(s))),
    "tfkd_loss": (LOGITS, lambda s, _: f.tfkd_loss(s, ids(s))),
    "kd_loss of one logit": ((6, 1), f.kd_loss),
    "multi_label_kd_loss": (LOGITS, f.multi_label_kd_loss),
    "regression_kd_loss": (LOGITS, f.regression_kd_loss),
    "cc_loss": (ROWS, f.cc_loss),
    "cc_loss, bilinear": (ROWS, lambda s, t: f.cc_loss(s, t, kernel="bilinear")),
    "cc_loss of repdistiller": (ROWS, lambda s, t: f.cc_loss(s, t, variant="repdistiller")),
    "info_nce_loss": (ROWS, lambda s, t: f.info_nce_loss(s, t, temperature=0.5, symmetric=True)),
    "triplet_loss": (ROWS, lambda s, t: f.triplet_loss(s, t, margin=3.0)),
    "crd_loss": (ROWS, lambda s, t: f.crd_loss(s, t, *banks(s))),
    "ickd_loss": (MAP, f.ickd_loss),
    "mmd_loss": (ROWS, f.mmd_loss),
    "moment_matching_loss": (ROWS, f.moment_matching_loss),
    "pkt_loss": (ROWS, f.pkt_loss),
    "rkd_loss": (ROWS, f.rkd_loss),
    "similarity_preserving_loss": (ROWS, f.similarity_preserving_loss),
    **{f"token_kd_loss, {name}": (TOKENS, by_divergence(name)) for name in get_args(Divergence)},
    "uld_loss": (TOKENS, lambda s, t: f.uld_loss(s, t, ids(s), ids(s))),
    "hidden_state_loss": (ROWS, f.hidden_state_loss),
    "hidden_state_loss, cosine": (ROWS, lambda s, t: f.hidden_state_loss(s, t, kind="cosine")),
    "attention_matrix_loss": (HEADS, f.attention_matrix_loss),
    "attention_matrix_loss of scores": (HEADS, lambda s, t: f.attention_matrix_loss(s, t, kind="scores_kl")),
    "qkv_relation_loss": (
        (4, 3, 4),
        lambda s, t: f.qkv_relation_loss([s] * 3, [t] * 3, relation_heads=2, relations={"QQ": 1.0, "KV": 2.0}),
    ),
}
LONE = {"fsp_matrix", "hybrid_loss"}
"""Functions that compare no student with a teacher themselves."""
SCALE_FREE = (
    "attention_transfer_loss",
    "attention_transfer_loss of p=4",
    "factor_transfer_loss",
    "factor_transfer_loss of repdistiller",
    "nst_loss",
    "nst_loss, linear",
    "nst_loss, gaussian",
    "pkd_loss",
    "kdsvd_loss",
    "kd_loss, standardised",
    "cc_loss",
    "info_nce_loss",
    "triplet_loss",
    "ickd_loss",
    "mmd_loss",
    "pkt_loss",
    "rkd_loss",
    "similarity_preserving_loss",
)


def pair(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    shape = FORMULAS[name][0]
    return random(*shape, seed=1).to(dtype).requires_grad_(), random(*shape, seed=2).to(dtype)


def gradient(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    value = FORMULAS[name][1](student, teacher)
    (found,) = torch.autograd.grad(value, student)
    return value.detach(), found


def test_every_formula_is_here() -> None:
    known = {name.split(" ")[0].rstrip(",") for name in FORMULAS}
    assert {one.__name__ for one in exported_functions()} - known - LONE - HELPERS == set()


# --- nothing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMULAS)
def test_a_batch_without_samples_costs_nothing(name: str) -> None:
    student, teacher = (one.detach()[:0] for one in pair(name))
    value, found = gradient(name, student.requires_grad_(), teacher)
    assert value.shape == ()
    assert value.item() == 0.0
    assert found.shape == student.shape


# --- zeros -----------------------------------------------------------------------------------------------------------


def die(tensor: Tensor, how: str) -> Tensor:
    """Return the tensor with zeros in one sample, in one channel or everywhere."""
    tensor = tensor.detach().clone()
    {"sample": tensor[1], "channel": tensor[:, -1], "all": tensor}[how].zero_()
    return tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("how", ["sample", "channel", "all"])
@pytest.mark.parametrize("name", FORMULAS)
def test_zeros_have_a_gradient_of_ordinary_size(name: str, how: str, dtype: torch.dtype) -> None:
    student, teacher = pair(name, dtype)
    _, ordinary = gradient(name, student, teacher)
    value, found = gradient(name, die(student, how).requires_grad_(), teacher)
    assert value.isfinite()
    assert found.isfinite().all()
    assert found.norm() <= 50 * ordinary.norm()
    value, found = gradient(name, student, die(teacher, how))
    assert value.isfinite()
    assert found.norm() <= 50 * ordinary.norm()


@of(lambda case: all(one.ndim > 1 for one in case.inputs().students))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("how", ["sample", "channel", "all"])
def test_a_loss_stands_zeros_of_the_student(case: Case, how: str, dtype: torch.dtype) -> None:
    component, inputs = _component(case, dtype)
    ordinary = max(one.norm().item() for one in _gradients(component, inputs))
    component, inputs = _component(case, dtype)
    dead = [die(one, how) for one in inputs.students]
    inputs = replace(inputs, student=dead if isinstance(inputs.student, list) else dead[0]).fresh()
    found = max(one.norm().item() for one in _gradients(component, inputs))
    # where every input is 0, a batch normalisation of the loss's own divides by the square root of 1e-5
    assert found <= (2e4 if how == "all" and case.batch_statistics else 300) * ordinary
    assert _value(component, inputs).isfinite()


def test_equal_directions_are_equal_at_any_length() -> None:
    """By hand: (3, 4) against (6, 8) is a match, whatever the other sample is."""
    teacher = torch.tensor([[6.0, 8.0], [1.0, 0.0]])
    student = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    value = f.info_nce_loss(student, teacher, temperature=1.0)
    # rows of cosines (1, 3/5) and (0, 0)
    expected = (torch.log1p(torch.tensor(-0.4).exp()) + torch.log(torch.tensor(2.0))) / 2
    torch.testing.assert_close(value, expected)
    (slope,) = torch.autograd.grad(value, student)
    # for the sample of zeros that is not stretched: half of the mean of (3/5, 4/5) and (1, 0), less (1, 0)
    torch.testing.assert_close(slope[1], torch.tensor([0.8 - 1.0, 0.4]) / 2)


# --- huge numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2.0**20, 2.0**34, 2.0**66])
@pytest.mark.parametrize("name", SCALE_FREE)
def test_squares_that_overflow_make_no_match(name: str, scale: float) -> None:
    student, teacher = (one.detach() for one in pair(name, torch.float32))
    exact, slope = gradient(name, student.double().requires_grad_(), teacher.double())
    value, found = gradient(name, (student * scale).requires_grad_(), teacher * scale)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(found.double() * scale, slope, rtol=1e-3, atol=1e-3 * slope.abs().max().item())


@pytest.mark.parametrize("scale", [1e3, 1.5e4])
@pytest.mark.parametrize("name", SCALE_FREE)
def test_large_half_numbers_make_no_match(name: str, scale: float) -> None:
    student, teacher = ((one.detach() * scale).half() for one in pair(name))
    exact = FORMULAS[name][1](student.double(), teacher.double())
    value = FORMULAS[name][1](student, teacher)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("name", ["attention_transfer_loss", "ickd_loss", "similarity_preserving_loss"])
def test_one_huge_sample_leaves_the_others_their_say(name: str) -> None:
    student, teacher = (one.detach() for one in pair(name, torch.float32))
    student[0] *= 2.0**40
    value = FORMULAS[name][1](student, teacher)
    torch.testing.assert_close(value.double(), FORMULAS[name][1](student.double(), teacher.double()), rtol=1e-4, atol=0)


# --- near a match ----------------------------------------------------------------------------------------------------

TEMPERED: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "kd": lambda s, t, temperature: f.kd_loss(s, t, temperature=temperature),
    "kd by sample": lambda s, t, temperature: f.kd_loss(s, t, temperature=torch.full((len(s),), temperature)),
    "kd standardised": lambda s, t, temperature: f.kd_loss(s, t, temperature=temperature, standardize=True),
    "kd of one logit": lambda s, t, temperature: f.kd_loss(s[:, :1], t[:, :1], temperature=temperature),
    "multi-label": lambda s, t, temperature: f.multi_label_kd_loss(s, t, temperature=temperature),
    "dkd": lambda s, t, temperature: f.dkd_loss(s, t, ids(s), temperature=temperature),
    "dist": lambda s, t, temperature: f.dist_loss(s, t, temperature=temperature),
    "mlkd": lambda s, t, temperature: f.mlkd_loss(s, t, temperatures=[temperature]),
    "mlkd, likeness": lambda s, t, temperature: f.mlkd_loss(s, t, temperatures=[temperature], instance=0.0),
    "nkd": lambda s, t, temperature: f.nkd_loss(s, t, ids(s), temperature=temperature),
    "wsld": lambda s, t, temperature: f.wsld_loss(s, t, ids(s), temperature=temperature),
    "mutual": lambda s, t, temperature: f.mutual_learning_loss([s, t], temperature=temperature),
    "byot": lambda s, t, temperature: f.byot_loss(s, s, t, s, ids(s), temperature=temperature, alpha=1.0),
    "tfkd": lambda s, t, temperature: f.tfkd_loss((s - t) / 100, ids(s), temperature=temperature),
}


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0, 100.0, 300.0])
@pytest.mark.parametrize("name", TEMPERED)
@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3])
def test_float32_is_right_near_a_match(name: str, temperature: float, gap: float) -> None:
    for seed in range(5):
        teacher = random(64, 100, seed=seed).float()
        student = (teacher + gap * random(64, 100, seed=10 + seed).float()).requires_grad_()
        value = TEMPERED[name](student, teacher, temperature)
        exact = TEMPERED[name](student.detach().double(), teacher.double(), temperature)
        assert value.item() >= 0.0
        assert value.item() == pytest.approx(exact.item(), rel=1e-4 if temperature >= 10 else 2e-3)
        (slope,) = torch.autograd.grad(value, student)
        assert slope.any()


@of(lambda case: case.nonnegative)
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 30.0])
def test_is_never_negative_in_float32(case: Case, scale: float) -> None:
    component, inputs = _component(case, torch.float32)
    assert _value(component, inputs.map(lambda t: t * scale)).item() >= -1e-7 * (case.loss.__name__ == "PKTLoss")


# --- a second derivative ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rkd_loss", "nst_loss", "nst_loss of few positions", "crd_loss"])
def test_a_gradient_that_is_a_constant_is_refused_twice(name: str) -> None:
    student, teacher = pair(name)
    value = FORMULAS[name][1](student, teacher)
    with pytest.raises(RuntimeError, match=rf"{name.split(' ')[0]}.*differentiated again.*create_graph"):
        torch.autograd.grad(value, student, create_graph=True)


@pytest.mark.parametrize(
    "name", ["kd_loss", "hint_loss", "nst_loss, linear", "ickd_loss", "similarity_preserving_loss"]
)
def test_other_gradients_are_differentiated_again(name: str) -> None:
    student, teacher = pair(name)
    assert torch.autograd.gradgradcheck(lambda s: FORMULAS[name][1](s, teacher), student)


# --- other types -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in FORMULAS if name not in ("byot_loss", "crd_loss")])
def test_a_teacher_of_another_format_is_taken(name: str, dtype: torch.dtype) -> None:
    student, teacher = pair(name, torch.float32)
    teacher = teacher.to(dtype)
    value, found = gradient(name, student, teacher)
    expected = FORMULAS[name][1](student.detach().double(), teacher.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-6)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("name", FORMULAS)
def test_complex_features_are_refused_in_words(name: str) -> None:
    student, teacher = (one.detach().to(torch.complex64) for one in pair(name))
    with pytest.raises(ValueError, match=r"real numbers, got a tensor of type torch\.complex64"):
        FORMULAS[name][1](student, teacher)


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    student, teacher = pair("kd_loss")
    for loss in (
        lambda y: f.dkd_loss(student, teacher, y),
        lambda y: f.nkd_loss(student, teacher, y),
        lambda y: f.wsld_loss(student, teacher, y),
        lambda y: f.tfkd_loss(student, y),
        lambda y: f.mutual_learning_loss([student, teacher], y),
        lambda y: f.byot_loss(student, student, teacher, teacher, y),
    ):
        torch.testing.assert_close(loss(ids(student).to(dtype)), loss(ids(student)), rtol=0.0, atol=0.0)
