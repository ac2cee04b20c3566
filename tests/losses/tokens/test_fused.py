"""Fused token distillation: exact against whole logits, for every divergence, head, chunk and way of keeping."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.functional import token_kd_loss
from lightning_kd.losses.tokens.fused import fused_sum
from lightning_kd.losses.tokens.heads import Aim, Head, Tail
from tests.losses.case import random
from tests.losses.golden import TOKENS, Golden, check_golden, golden

TOKEN_ROWS, STUDENT, TEACHER, VOCABULARY = (2, 7), 6, 9, 23
AIMS = (
    Aim(),
    Aim("reverse_kl", temperature=2.0, factor=4.0),
    Aim("jsd", beta=0.1),
    Aim("skew_forward_kl", alpha=0.3, temperature=1.5),
    Aim("skew_reverse_kl", alpha=0.3),
    Aim("symmetric_kl", ratio=0.2, cross_entropy=0.5),
    Aim("total_variation", temperature=2.0),
    Aim("alpha_beta", alpha=0.3, beta=0.6, cross_entropy=2.0, temperature=2.0),
)
LABELS = torch.randint(0, VOCABULARY, TOKEN_ROWS, generator=torch.Generator().manual_seed(0))
LABELS[0, :3] = LABELS[1, 5] = -100
COUNTS = LABELS != -100


class Transform(nn.Module):
    """The head of BERT: a linear layer, an activation and a norm before the vocabulary."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.decoder = nn.Linear(width, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(F.gelu(self.dense(x))))


class LowRank(nn.Module):
    """A frozen head with an adapter beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, VOCABULARY).requires_grad_(False)
        self.down, self.up = nn.Linear(width, 2, bias=False), nn.Linear(2, VOCABULARY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def seeded(make: type[nn.Module], *args: int, seed: int = 0, **options: bool) -> nn.Module:
    torch.manual_seed(seed)
    return make(*args, **options).double()


def heads(kind: str) -> tuple[Head, Head]:
    if kind == "transform":
        modules = [seeded(Transform, STUDENT), seeded(Transform, TEACHER, seed=1)]
    elif kind == "adapter":
        modules = [seeded(LowRank, STUDENT), seeded(nn.Linear, TEACHER, VOCABULARY, seed=1)]
    else:
        bias = kind != "plain"
        modules = [seeded(nn.Linear, width, VOCABULARY, bias=bias, seed=width) for width in (STUDENT, TEACHER)]
    tails = {
        "capped": (Tail(cap=1.5), Tail(scale=2.0, cap=3.0)),
        "scaled": (Tail(scale=0.3), Tail(scale=1.7)),
        "all": (Tail(0.6, 1.5, random(VOCABULARY, seed=7)), Tail(0.5, 2.0, random(VOCABULARY, seed=8))),
    }.get(kind, (Tail(), Tail()))
    return Head(modules[0], tails[0]), Head(modules[1], tails[1])


def whole(hidden: Tensor, head: Head) -> Tensor:
    """Logits as the models write them."""
    logits = head.module(hidden) * head.tail.scale
    if head.tail.cap is not None:
        logits = torch.tanh(logits / head.tail.cap) * head.tail.cap
    return logits if head.tail.bias is None else logits + head.tail.bias


def expected(student: Tensor, teacher: Tensor, both: tuple[Head, Head], aim: Aim) -> Tensor:
    ours, theirs = whole(student, both[0]), whole(teacher, both[1])
    used = {"jsd": ("beta",), "symmetric_kl": ("ratio",), "alpha_beta": ("alpha", "beta")}
    names = used.get(aim.divergence, ("alpha",) if aim.divergence.startswith("skew") else ())
    options = {name: getattr(aim, name) for name in names}
    kd = token_kd_loss(
        ours, theirs, labels=LABELS, denominator=1.0, divergence=aim.divergence, temperature=aim.temperature, **options
    )
    entropy = F.cross_entropy(ours.flatten(0, 1), LABELS.flatten(), reduction="sum")
    return aim.factor * kd + aim.cross_entropy * entropy


def gradients(loss: Tensor, hidden: Tensor, module: nn.Module) -> list[Tensor]:
    trained = [p for p in module.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, [hidden, *trained]))


KINDS = ["plain", "bias", "capped", "scaled", "all", "transform", "adapter"]


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("aim", AIMS, ids=lambda aim: aim.divergence)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_that_of_whole_logits(kind: str, aim: Aim, memory: str) -> None:
    student, teacher = random(*TOKEN_ROWS, STUDENT, seed=1).requires_grad_(), random(*TOKEN_ROWS, TEACHER, seed=2)
    both = heads(kind)
    exact = expected(student, teacher, both, aim)
    slopes = gradients(3.0 * exact, student, both[0].module)
    for chunk in (None, 1, 4, 10):
        value, _ = fused_sum(student, teacher, both, aim, counts=COUNTS, labels=LABELS, memory=memory, chunk=chunk)
        torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-13)
        for ours, theirs in zip(gradients(3.0 * value, student, both[0].module), slopes, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=3e-13)


@pytest.mark.parametrize("record", golden("fused_jsd", folder=TOKENS), ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_it_equals_the_code_of_liger(record: Golden, chunk: int) -> None:
    beta, bias = record.hyper["beta"], record.hyper["bias"]
    name = {0: "forward_kl", 1: "reverse_kl"}.get(beta, "jsd")
    aim = Aim(name, beta=beta if name == "jsd" else 0.5, temperature=record.hyper["temperature"])

    def formula(s: list[Tensor], t: list[Tensor], more: dict[str, Tensor]) -> Tensor:
        counts, both, leaves = more["labels"] != -100, [], []
        for hidden, weight, offset in (s, t):
            module = nn.Linear(hidden.shape[1], len(weight), bias=bool(bias), dtype=hidden.dtype)
            module.weight.data = weight.detach()
            if bias:
                module.bias.data = offset.detach()
            both.append(Head(module))
            leaves.append((weight, offset))
        value, _ = fused_sum(s[0], t[0], (both[0], both[1]), aim, counts=counts, chunk=chunk)
        module = both[0].module
        # hand the gradients of the head on to the record's own arrays
        parts = [s[0], module.weight, *([module.bias] if bias else [])]
        slopes = torch.autograd.grad(value, parts)
        linear = sum((leaf * slope).sum() for leaf, slope in zip(s, slopes, strict=False))
        return (value.detach() + linear - linear.detach()) / counts.sum().clamp_min(1)

    check_golden(record, formula)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_hidden_states_that_do_not_count_make_no_difference(poison: float) -> None:
    both = heads("bias")
    found = []
    for bad in (0.0, poison):
        student, teacher = random(*TOKEN_ROWS, STUDENT, seed=1), random(*TOKEN_ROWS, TEACHER, seed=2)
        student[~COUNTS] = teacher[~COUNTS] = bad
        value, _ = fused_sum(student.requires_grad_(), teacher, both, AIMS[0], counts=COUNTS)
        found.append([value, *gradients(value, student, both[0].module)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["bias", "transform"])
@pytest.mark.parametrize("memory", ["save", "recompute"])
def test_nothing_to_learn_is_zero_with_a_graph(kind: str, memory: str) -> None:
    student, both = random(*TOKEN_ROWS, STUDENT, seed=1).requires_grad_(), heads(kind)
    nothing = torch.zeros(TOKEN_ROWS, dtype=torch.bool)
    value, _ = fused_sum(student, random(*TOKEN_ROWS, TEACHER, seed=2), both, AIMS[0], counts=nothing, memory=memory)
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("kind", ["plain", "transform"])
def test_a_head_that_is_frozen_gets_no_gradient(kind: str, memory: str) -> None:
    student, teacher = random(*TOKEN_ROWS, STUDENT, seed=1).requires_grad_(), random(*TOKEN_ROWS, TEACHER, seed=2)
    both = heads(kind)
    both[0].module.requires_grad_(False)
    (exact,) = torch.autograd.grad(expected(student, teacher, both, AIMS[0]), student)
    value, _ = fused_sum(student, teacher, both, AIMS[0], counts=COUNTS, memory=memory)
    (found,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-14)


def test_tied_weights_get_both_gradients() -> None:
    embedding, both = seeded(nn.Embedding, VOCABULARY, STUDENT), heads("plain")
    both[0].module.weight = embedding.weight
    teacher, ids = random(*TOKEN_ROWS, TEACHER, seed=2), LABELS.clamp_min(0)
    (exact,) = torch.autograd.grad(expected(embedding(ids), teacher, both, AIMS[0]), embedding.weight)
    value, _ = fused_sum(embedding(ids), teacher, both, AIMS[0], counts=COUNTS)
    (found,) = torch.autograd.grad(value, embedding.weight)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-14)


def test_a_second_backward_pass_is_refused() -> None:
    student, both = random(*TOKEN_ROWS, STUDENT, seed=1).requires_grad_(), heads("bias")
    value, _ = fused_sum(student, random(*TOKEN_ROWS, TEACHER, seed=2), both, AIMS[0])
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up by a backward pass"):
        value.backward()


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("kind", ["bias", "transform"])
def test_autocast_is_near_whole_logits(kind: str, memory: str) -> None:
    both = heads(kind)
    for head in both:
        head.module.float()
    student, teacher = random(*TOKEN_ROWS, STUDENT, seed=1).float(), random(*TOKEN_ROWS, TEACHER, seed=2).float()
    student.requires_grad_()
    exact = gradients(expected(student, teacher, both, AIMS[2]), student, both[0].module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, _ = fused_sum(student, teacher, both, AIMS[2], counts=COUNTS, memory=memory)
    assert value.dtype == torch.float32
    for ours, theirs in zip(gradients(value, student, both[0].module), exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() <= 0.03 * theirs.abs().max()


def test_heads_in_16_bit_train_in_16_bit() -> None:
    both = heads("bias")
    for head in both:
        head.module.bfloat16()
    student = random(*TOKEN_ROWS, STUDENT, seed=1).bfloat16().requires_grad_()
    value, _ = fused_sum(student, random(*TOKEN_ROWS, TEACHER, seed=2).bfloat16(), both, AIMS[0], counts=COUNTS)
    value.backward()
    assert value.dtype == torch.float32
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in both[0].module.parameters())


def test_a_head_with_hooks_is_called() -> None:
    seen: list[int] = []
    both = heads("bias")
    both[0].module.register_forward_hook(lambda *_: seen.append(1))
    hooked = Head(both[0].module), both[1]
    assert not hooked[0].is_plain
    assert both[1].is_plain
    fused_sum(random(8, STUDENT, seed=1), random(8, TEACHER, seed=2), hooked, AIMS[0], chunk=3)
    assert len(seen) == 3


@pytest.mark.parametrize("kind", ["plain", "all"])
@pytest.mark.parametrize("counts", [COUNTS, None], ids=["some", "all"])
def test_it_compiles_to_one_graph(kind: str, counts: Tensor | None) -> None:
    both, aim = heads(kind), AIMS[5]
    student, teacher = random(*TOKEN_ROWS, STUDENT, seed=1).requires_grad_(), random(*TOKEN_ROWS, TEACHER, seed=2)
    labels = LABELS.clamp_min(0)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return fused_sum(2.0 * student, teacher, both, aim, counts=counts, labels=labels, chunk=4)[0]

    expected_value = loss(student, teacher)
    slopes = gradients(3.0 * expected_value, student, both[0].module)
    torch.compiler.reset()
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(student, teacher)
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients(3.0 * value, student, both[0].module), slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
