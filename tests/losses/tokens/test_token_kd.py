"""Token distillation: the numbers of others' code, the laws of the divergences, and their edges."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lightning_kd.functional import SparseLogits, kd_loss, token_kd_loss
from lightning_kd.losses import TokenKDLoss
from lightning_kd.losses.base import LOGITS, StepTensors
from tests.losses.case import random
from tests.losses.golden import TOKENS, Golden, check_golden, golden

DIVERGENCES = (
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl"},
    {"divergence": "jsd", "beta": 0.3},
    {"divergence": "skew_forward_kl", "alpha": 0.2},
    {"divergence": "skew_reverse_kl", "alpha": 0.2},
    {"divergence": "symmetric_kl", "ratio": 0.7},
    {"divergence": "total_variation"},
    {"divergence": "alpha_beta", "alpha": 0.4, "beta": 0.9},
)
DENSE = ("fkl", "rkl", "jsd", "skew_fkl", "skew_rkl", "tvd", "symmetric", "ab")
ALL = pytest.mark.parametrize("options", DIVERGENCES, ids=lambda options: options["divergence"])


def records(*names: str) -> list[Golden]:
    return [record for name in names for record in golden(name, folder=TOKENS)]


@pytest.mark.parametrize("record", records(*(f"token_{name}" for name in DENSE)), ids=str)
def test_the_divergences_equal_the_code_of_others(record: Golden) -> None:
    known = {"divergence", "alpha", "beta", "ratio", "temperature", "temperature_squared", "shift", "denominator"}
    options = {name: value for name, value in record.hyper.items() if name in known}
    check_golden(record, lambda s, t, more: token_kd_loss(s[0], t[0], labels=more["labels"], **options))


@pytest.mark.parametrize(
    ("record", "divergence"),
    [
        pytest.param(record, divergence, id=str(record))
        for name, divergence in (("kl", "forward_kl"), ("jsd", "jsd"), ("tvd", "total_variation"))
        for record in records(f"sparse_{name}")
    ],
)
def test_a_few_tokens_of_the_teacher_equal_the_code_of_others(record: Golden, divergence: str) -> None:
    options = {name: record.hyper[name] for name in ("missing", "temperature")}

    def formula(s: list[Tensor], t: list[Tensor], more: dict[str, Tensor]) -> Tensor:
        sparse = SparseLogits(more["ids"], t[0])
        return token_kd_loss(s[0], sparse, labels=more["labels"], divergence=divergence, **options)

    check_golden(record, formula)


# --- by independent formulas -----------------------------------------------------------------------------------------


def naive(p: Tensor, q: Tensor, divergence: str, alpha: float = 0.1, beta: float = 0.5, ratio: float = 0.5) -> Tensor:
    """The formulas as papers write them, in probabilities; differentiated by autograd."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    mixture = beta * p + (1 - beta) * q
    powers = {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(p, mixture) + (1 - beta) * kl(q, mixture),
        "skew_forward_kl": lambda: kl(p, alpha * p + (1 - alpha) * q),
        "skew_reverse_kl": lambda: kl(q, (1 - alpha) * p + alpha * q),
        "symmetric_kl": lambda: ratio * kl(p, q) + (1 - ratio) * kl(q, p),
        "total_variation": lambda: (p - q).abs().sum(-1) / 2,
        "alpha_beta": lambda: (
            (
                alpha * p ** (alpha + beta) / (alpha + beta)
                + beta * q ** (alpha + beta) / (alpha + beta)
                - p**alpha * q**beta
            ).sum(-1)
            / (alpha * beta)
        ),
    }
    return powers[divergence]()


@ALL
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_value_and_gradient_are_those_of_the_formula(options: dict[str, object], temperature: float) -> None:
    student, teacher = random(3, 4, 9, seed=1).mul_(3).requires_grad_(), random(3, 4, 9, seed=2).mul_(3)
    labels = torch.randint(0, 9, (3, 4), generator=torch.Generator().manual_seed(0))
    labels[0, :2] = labels[2] = -100
    ours = token_kd_loss(student, teacher, labels=labels, temperature=temperature, **options)
    (gradient,) = torch.autograd.grad(ours, student)
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    expected = naive(p, q, **options)[labels != -100].mean()
    (its,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, its, rtol=1e-11, atol=1e-14)


@ALL
def test_many_rows_are_worked_on_in_blocks_alike(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = random(7, 11, seed=1).requires_grad_(), random(7, 11, seed=2)
    whole = token_kd_loss(student, teacher, **options)
    (gradient,) = torch.autograd.grad(whole, student)
    for cache in (11, 22, 34, 76):
        monkeypatch.setattr("lightning_kd.losses.tokens.dense._CACHE", cache)
        blocks = token_kd_loss(student, teacher, **options)
        (its,) = torch.autograd.grad(blocks, student)
        torch.testing.assert_close(blocks, whole, rtol=1e-14, atol=0)
        assert torch.equal(its, gradient)


@ALL
def test_equal_logits_cost_nothing(options: dict[str, object]) -> None:
    student = random(2, 3, 5, seed=1).requires_grad_()
    value = token_kd_loss(student, student.detach().clone(), **options)
    value.backward()
    assert abs(value.item()) <= 1e-15
    assert student.grad is not None
    assert student.grad.abs().max() <= 1e-15


def test_the_forward_kl_of_one_position_is_that_of_kd() -> None:
    student, teacher = random(6, 5, seed=1), random(6, 5, seed=2)
    ours = token_kd_loss(student, teacher, temperature=3.0, temperature_squared=True)
    torch.testing.assert_close(ours, kd_loss(student, teacher, temperature=3.0))


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.7), (0.7, 0.0), (0.6, -0.6), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_the_limits_of_alpha_beta_are_those_of_its_formula(alpha: float, beta: float) -> None:
    student, teacher = random(4, 6, seed=1).requires_grad_(), random(4, 6, seed=2)
    limit = token_kd_loss(student, teacher, divergence="alpha_beta", alpha=alpha, beta=beta)
    (slope,) = torch.autograd.grad(limit, student)
    p, q = teacher.softmax(-1), student.softmax(-1)
    near = naive(p, q, "alpha_beta", alpha + 1e-5, beta + 1.3e-5).mean()
    (its,) = torch.autograd.grad(near, student)
    torch.testing.assert_close(limit, near, rtol=1e-3, atol=0)
    torch.testing.assert_close(slope, its, rtol=1e-3, atol=1e-4)


def test_alpha_beta_with_a_single_one_is_a_kl() -> None:
    student, teacher = random(4, 6, seed=1), random(4, 6, seed=2)
    for (alpha, beta), other in (((1.0, 0.0), "forward_kl"), ((0.0, 1.0), "reverse_kl")):
        ours = token_kd_loss(student, teacher, divergence="alpha_beta", alpha=alpha, beta=beta)
        torch.testing.assert_close(ours, token_kd_loss(student, teacher, divergence=other), rtol=1e-12, atol=0)


# --- which tokens count ----------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("shift", [False, True])
def test_what_stands_at_positions_that_do_not_count_makes_no_difference(
    options: dict[str, object], poison: float, shift: bool
) -> None:
    student, teacher = random(2, 5, 4, seed=1), random(2, 5, 4, seed=2)
    labels = torch.tensor([[-100, 1, 2, -100, -100], [-100, -100, 3, 0, -100]])
    counts = torch.zeros(2, 5, dtype=torch.bool)
    counts[:, : 4 if shift else 5] = (labels != -100)[:, 1 if shift else 0 :]
    found = []
    for bad in (0.0, poison):
        logits = [torch.where(counts.unsqueeze(-1), z, bad).requires_grad_() for z in (student, teacher)]
        value = token_kd_loss(*logits, labels=labels, shift=shift, **options)
        value.backward()
        assert logits[1].grad is None
        found.append((value, logits[0].grad))
    (value, gradient), (its, other) = found
    assert torch.equal(value, its)
    assert torch.equal(gradient, other)
    assert not gradient[~counts].any()
    assert value > 0


@pytest.mark.parametrize("shift", [False, True])
def test_padding_left_or_right_is_the_row_alone(shift: bool) -> None:
    student, teacher = random(1, 4, 6, seed=1), random(1, 4, 6, seed=2)
    labels = torch.tensor([[2, 3, 1, 5]])
    alone = token_kd_loss(student, teacher, labels=labels, shift=shift)
    for side in ((2, 0), (0, 2)):
        padded = [torch.nn.functional.pad(z, (0, 0, *side), value=7.0) for z in (student, teacher)]
        ids = torch.nn.functional.pad(labels, side, value=0)  # an id, so that the mask alone must tell
        mask = torch.nn.functional.pad(torch.ones(1, 4), side)
        assert torch.equal(token_kd_loss(*padded, labels=ids, mask=mask, shift=shift), alone)
        assert torch.equal(token_kd_loss(*padded, mask=mask.long(), shift=shift), alone)


def test_the_token_after_left_padding_is_no_target() -> None:
    # Positions 0 and 1 are padding, so only 2 and 3 predict a token: 3 and 4.
    student, teacher = random(1, 5, 6, seed=1), random(1, 5, 6, seed=2)
    labels, mask = torch.tensor([[-100, -100, 1, 2, 3]]), torch.tensor([[0, 0, 1, 1, 1]])
    expected = token_kd_loss(student[:, 2:4], teacher[:, 2:4])
    torch.testing.assert_close(token_kd_loss(student, teacher, labels=labels, mask=mask, shift=True), expected)


def test_a_padding_token_that_ends_a_text_is_learnt_if_its_label_says_so() -> None:
    student, teacher = random(1, 4, 6, seed=1), random(1, 4, 6, seed=2)
    end = 5  # the id of the end, and of padding
    labels, mask = torch.tensor([[1, 2, end, -100]]), torch.tensor([[1, 1, 1, 0]])
    expected = token_kd_loss(student[:, :2], teacher[:, :2])
    torch.testing.assert_close(token_kd_loss(student, teacher, labels=labels, mask=mask, shift=True), expected)


def test_another_mark_for_what_is_no_target() -> None:
    student, teacher = random(1, 3, 6, seed=1), random(1, 3, 6, seed=2)
    ours = token_kd_loss(student, teacher, labels=torch.tensor([[0, 4, 0]]), ignore_index=0)
    torch.testing.assert_close(ours, token_kd_loss(student[:, 1], teacher[:, 1]))


@ALL
def test_nothing_to_learn_is_zero_with_a_graph(options: dict[str, object]) -> None:
    student = random(2, 3, 4, seed=1).requires_grad_()
    for logits, labels in ((student, torch.full((2, 3), -100)), (student[:0], torch.zeros(0, 3, dtype=torch.long))):
        value = token_kd_loss(logits, random(*logits.shape, seed=2), labels=labels, **options)
        value.backward()
        assert value.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()


def test_a_sequence_of_one_token_predicts_nothing_if_shifted() -> None:
    student = random(2, 1, 4, seed=1).requires_grad_()
    value = token_kd_loss(student, random(2, 1, 4, seed=2), shift=True)
    value.backward()
    assert value.item() == 0.0


def test_a_given_denominator_divides_the_sum() -> None:
    student, teacher = random(2, 3, 4, seed=1), random(2, 3, 4, seed=2)
    mean = token_kd_loss(student, teacher)
    for six in (6, 6.0, torch.tensor(6)):
        torch.testing.assert_close(token_kd_loss(student, teacher, denominator=six), mean)
    torch.testing.assert_close(token_kd_loss(student, teacher, denominator=3), 2 * mean)


# --- extremes --------------------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_large_logits_stay_finite(options: dict[str, object], dtype: torch.dtype) -> None:
    student, teacher = (random(4, 50, seed=seed).sign().mul(1e4).to(dtype) for seed in (1, 2))
    student.requires_grad_()
    value = token_kd_loss(student, teacher, **options)
    value.backward()
    assert value.isfinite()
    assert value.dtype == torch.float32
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("exponents", [(2.0, -0.5), (0.5, -0.5), (-0.3, 0.6), (0.0, 0.0)])
def test_large_logits_stay_finite_with_negative_exponents(exponents: tuple[float, float]) -> None:
    student, teacher = (random(4, 50, seed=seed).sign().mul(1e4).float() for seed in (1, 2))
    student.requires_grad_()
    alpha, beta = exponents
    value = token_kd_loss(student, teacher, divergence="alpha_beta", alpha=alpha, beta=beta)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@ALL
def test_a_column_that_is_closed_in_both_networks_adds_nothing(options: dict[str, object]) -> None:
    student, teacher = random(3, 6, seed=1), random(3, 6, seed=2)
    expected = token_kd_loss(student, teacher, **options)
    closed = [torch.cat([z, torch.full((3, 2), -math.inf)], 1) for z in (student, teacher)]
    closed[0].requires_grad_()
    value = token_kd_loss(*closed, **options)
    value.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert closed[0].grad is not None
    assert not closed[0].grad[:, 6:].any()
    assert closed[0].grad.isfinite().all()


@ALL
def test_autocast_changes_nothing(options: dict[str, object]) -> None:
    student, teacher = random(3, 600, seed=1).float(), random(3, 600, seed=2).float()
    expected = token_kd_loss(student, teacher, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(token_kd_loss(student, teacher, **options), expected)


def test_the_gradient_cannot_be_differentiated_again() -> None:
    student = random(2, 3, seed=1).requires_grad_()
    value = token_kd_loss(student, random(2, 3, seed=2))
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(value, student, create_graph=True)


# --- a few tokens of the teacher -------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("missing", ["renormalize", "tail", "renormalize_both"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_tokens_are_whole_logits(options: dict[str, object], missing: str, temperature: float) -> None:
    student, teacher = random(2, 3, 7, seed=1).requires_grad_(), random(2, 3, 7, seed=2)
    sparse = SparseLogits.top_k(teacher, 7)
    found = [
        token_kd_loss(student, t, temperature=temperature, **m, **options)
        for t, m in ((teacher, {}), (sparse, {"missing": missing}))
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-13)
    gradients = [torch.autograd.grad(one, student)[0] for one in found]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)


@ALL
@pytest.mark.parametrize("missing", ["tail", "renormalize_both"])
def test_the_gradient_of_a_few_tokens_is_the_slope(options: dict[str, object], missing: str) -> None:
    student = random(2, 9, seed=1).requires_grad_()
    sparse = SparseLogits.top_k(random(2, 9, seed=2), 3)
    assert torch.autograd.gradcheck(lambda s: token_kd_loss(s, sparse, missing=missing, **options), (student,))


def test_the_gradient_of_renormalised_tokens_is_the_slope() -> None:
    student = random(2, 9, seed=1).requires_grad_()
    sparse = SparseLogits.top_k(random(2, 9, seed=2), 3)
    for options in DIVERGENCES:
        if options["divergence"] not in ("reverse_kl", "symmetric_kl", "alpha_beta"):
            assert torch.autograd.gradcheck(lambda s, o=options: token_kd_loss(s, sparse, **o), (student,))


@pytest.mark.parametrize("divergence", ["reverse_kl", "symmetric_kl", "alpha_beta"])
def test_no_mass_where_the_student_has_some_is_refused(divergence: str) -> None:
    sparse = SparseLogits.top_k(random(2, 9, seed=2), 3)
    with pytest.raises(ValueError, match="missing='tail'"):
        token_kd_loss(random(2, 9, seed=1), sparse, divergence=divergence)


def test_draws_have_in_the_mean_the_gradient_of_the_whole_distribution() -> None:
    student, teacher = random(1, 6, seed=1).requires_grad_(), random(1, 6, seed=2)
    (expected,) = torch.autograd.grad(token_kd_loss(student, teacher), student)
    draws = torch.multinomial(teacher.softmax(-1), 40000, replacement=True, generator=torch.Generator().manual_seed(0))
    several = SparseLogits.from_draws(draws.reshape(2000, 20))
    value = token_kd_loss(student.expand(2000, 6), several)
    (found,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
    assert value > 0


def test_draws_are_counted() -> None:
    sparse = SparseLogits.from_draws(torch.tensor([[3, 1, 3, 3]]))
    assert sparse.ids.tolist() == [[1, 3, 3, 3]]
    torch.testing.assert_close(sparse.log_probs.exp(), torch.tensor([[0.25, 0.75, 0.0, 0.0]]))
    # p = (1/4 of token 1, 3/4 of token 3) against a fourth each: 3/4 ln 3
    value = token_kd_loss(torch.zeros(1, 4), sparse)
    assert value.item() == pytest.approx(0.75 * math.log(3.0), rel=1e-6)
    for wrong in ({"divergence": "jsd"}, {"missing": "tail"}, {"temperature": 2.0}):
        with pytest.raises(ValueError, match="draws"):
            token_kd_loss(torch.zeros(1, 4), sparse, **wrong)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"divergence": "kl"}, "forward_kl"),
        ({"alpha": 0.3}, "alpha=0.3 has no effect on divergence='forward_kl'.*skew_forward_kl"),
        ({"divergence": "jsd", "ratio": 0.1}, "ratio=0.1 has no effect"),
        ({"divergence": "total_variation", "beta": 0.1}, "beta=0.1 has no effect"),
        ({"divergence": "jsd", "beta": 0.0}, "forward_kl or reverse_kl"),
        ({"divergence": "jsd", "beta": 1.0}, "forward_kl or reverse_kl"),
        ({"divergence": "skew_forward_kl", "alpha": 0.0}, "0 would be forward_kl"),
        ({"divergence": "skew_reverse_kl", "alpha": 1.0}, "no loss at all"),
        ({"divergence": "symmetric_kl", "ratio": 1.1}, "0 <= ratio <= 1"),
        ({"divergence": "alpha_beta", "alpha": math.nan}, "finite alpha"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"ignore_index": 0}, "ignore_index=0 has no effect without labels"),
        ({"missing": "tail"}, "missing='tail' has no effect on whole logits"),
        ({"labels": torch.zeros(2, 4, dtype=torch.long)}, r"labels of shape \(2, 3\).*\(2, 4\)"),
        ({"labels": torch.zeros(2, 3)}, "token ids, got torch.float32"),
        ({"mask": torch.zeros(3, 2)}, r"mask of shape \(2, 3\).*\(3, 2\)"),
    ],
)
def test_a_setting_out_of_range_or_without_effect_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"token_kd_loss.*{words}"):
        token_kd_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), **options)


def test_other_shapes_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="vocabularies differ; use uld_loss"):
        token_kd_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="the same tokens"):
        token_kd_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"shift=True needs logits \(B, T, V\)"):
        token_kd_loss(torch.zeros(3, 4), torch.zeros(3, 4), shift=True)
    with pytest.raises(ValueError, match="one shape"):
        SparseLogits(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 4))


# --- the component ---------------------------------------------------------------------------------------------------


def test_a_longer_vocabulary_is_cut_off_if_asked() -> None:
    student, teacher = random(2, 3, 4, seed=1), random(2, 3, 6, seed=2)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(2, 3, 6\).*vocab='truncate'.*ULDLoss"):
        TokenKDLoss(shift=False).build({LOGITS: (2, 3, 4)}, {LOGITS: (2, 3, 6)})
    cut = TokenKDLoss(shift=False, vocab="truncate")
    cut.build({LOGITS: (2, 3, 4)}, {LOGITS: (2, 3, 6)})
    torch.testing.assert_close(cut(student, teacher), token_kd_loss(student, teacher[..., :4]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": "all"}, "expected tokens to be one of"),
        ({"tokens": "mask", "ignore_index": 0}, "ignore_index=0 has no effect with tokens='mask'"),
        ({"tokens": "mask", "cross_entropy": 0.5}, "give the door a task_loss instead"),
    ],
    ids=str,
)
def test_an_option_of_the_tokens_that_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"TokenKDLoss: .*{words}"):
        TokenKDLoss(**options)


def test_all_that_is_no_padding_cannot_count_where_the_mask_is_of_other_tokens() -> None:
    class ForConditionalGeneration(torch.nn.Module):
        config = SimpleNamespace(is_encoder_decoder=True)

    with pytest.raises(ValueError, match=r"counts the tokens of attention_mask.*labels decide"):
        TokenKDLoss(tokens="mask", shift=False).see_networks(ForConditionalGeneration(), None)


def test_an_order_that_is_not_known_is_asked_for() -> None:
    loss = TokenKDLoss()
    loss.see_networks(torch.nn.Linear(3, 4), None)
    with pytest.raises(ValueError, match=r"TokenKDLoss\(shift=True\) for a causal"):
        loss.build({LOGITS: (2, 3, 4)}, {LOGITS: (2, 3, 4)})


class TinyForCausalLM(torch.nn.Module):
    pass


class TinyForMaskedLM(torch.nn.Module):
    pass


def test_the_order_is_found_by_the_class_and_told(caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = random(2, 3, 4, seed=1), random(2, 3, 4, seed=2)
    for network, shift in ((TinyForCausalLM(), True), (TinyForMaskedLM(), False)):
        loss = TokenKDLoss()
        loss.see_networks(network, None)
        torch.testing.assert_close(loss(student, teacher), token_kd_loss(student, teacher, shift=shift))
    with pytest.raises(ValueError, match="TinyForCausalLM and TinyForMaskedLM one predicts the next"):
        TokenKDLoss().see_networks(TinyForCausalLM(), TinyForMaskedLM())


def test_the_mask_of_an_encoder_says_nothing_of_the_decoder() -> None:
    class Seq2Seq(torch.nn.Module):
        config = type("Config", (), {"is_encoder_decoder": True})

    student, teacher = random(2, 3, 4, seed=1), random(2, 3, 4, seed=2)
    loss = TokenKDLoss()
    loss.see_networks(Seq2Seq(), None)
    labels = torch.tensor([[1, 2, -100], [3, -100, -100]])
    value = loss.evaluate(StepTensors(student, teacher, target=labels, mask=torch.zeros(2, 7, dtype=torch.bool)))
    torch.testing.assert_close(value, token_kd_loss(student, teacher, labels=labels))
