"""The output layers inside the loss, in a fit: found by themselves, exact, and refused or left out with the reason."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import DistillationLoss, KDLoss, TokenKDLoss
from lightning_kd.losses.tokens import chunks as inside
from lightning_kd.losses.tokens.heads import Head
from tests import support
from tests.losses.tokens.test_in_fit import BATCH, TinyForCausalLM, UsersModule, same


class NamedHead(TinyForCausalLM):
    """A language model that names its output layer, as Hugging Face's do."""

    def get_output_embeddings(self) -> nn.Module:
        return self.head


class Capped(NamedHead):
    """A language model that bends its logits, as Gemma-2 does."""

    config = type("Config", (), {"final_logit_softcapping": 0.7, "is_encoder_decoder": False})

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        output = super().forward(*args, **kwargs)
        output.logits = 0.7 * torch.tanh(output.logits / 0.7)
        return output


class Bent(NamedHead):
    """A language model that does to its logits what nothing tells."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.sin()
        return output


class Normalised(NamedHead):
    """A language model whose output layer computes its weight anew in each call, and moves a state by it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        nn.utils.parametrizations.spectral_norm(self.head)


class Whole(NamedHead):
    """A language model that needs all of its logits."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 0.0 * torch.ones(1, 6, 1, dtype=output.logits.dtype)
        return output


def networks(kind: type[TinyForCausalLM] = NamedHead) -> list[TinyForCausalLM]:
    kind.__name__ = "NamedForCausalLM"
    return [support.seeded(lambda width=width: kind(width), width).double() for width in (4, 8)]


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens were worked on together inside a loss."""
    seen: list[int] = []
    write = inside.write_gradient

    def counted(student: Tensor, *others: object) -> Tensor:
        seen.append(len(student))
        return write(student, *others)

    monkeypatch.setattr(inside, "write_gradient", counted)
    return seen


def fitted(
    losses: list[DistillationLoss], kind: type[TinyForCausalLM] = NamedHead, **options: object
) -> DistillationModule:
    student, teacher = networks(kind)
    module = DistillationModule(student, teacher, losses, optimizer=partial(torch.optim.SGD, lr=0.5))
    loader = DataLoader([BATCH] * 2, batch_size=None)
    support.trainer(max_epochs=1, **{"limit_val_batches": 0, **options}).fit(module, loader, loader)
    return module


OPTIONS = {
    "kd": {},
    "jsd": {"divergence": "jsd", "beta": 0.3, "temperature": 2.0, "temperature_squared": True},
    "with labels": {"divergence": "reverse_kl", "cross_entropy": 0.5},
}


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("kind", [NamedHead, Capped])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_trains_as_whole_logits_do(
    options: dict[str, object], kind: type[TinyForCausalLM], memory: str, chunks: list[int]
) -> None:
    whole = fitted([TokenKDLoss(fused=False, **options)], kind)
    assert not chunks
    inside = fitted([TokenKDLoss(fused=True, memory=memory, **options)], kind)
    assert chunks == [8] * (4 if memory == "recompute" else 2)  # 5, 2 and 1 tokens predict another
    same(inside.student.state_dict(), whole.student.state_dict(), 1e-12)
    assert inside.run.log.epoch_means == pytest.approx(whole.run.log.epoch_means, rel=1e-6)


def test_a_plain_layer_is_multiplied_and_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("lightning_kd.losses.tokens.fused.CalledChunks")
    fitted([TokenKDLoss(fused=True)])


class InTraining(NamedHead):
    """A language model that does more with its logits in training: none of it shows in eval mode."""

    how = "dropout"

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        output = super().forward(*args, **kwargs)
        if self.training and self.how == "dropout":
            output.logits = nn.functional.dropout(output.logits, 0.5)
        if self.training and self.how == "in place":
            output.logits.mul_(2.0)
        if self.training and self.how == "several calls":
            output.logits = (output.logits + super().forward(*args, **kwargs).logits) / 2
        return output


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("how", ["dropout", "in place", "several calls"])
def test_what_a_network_does_with_its_logits_in_training_alone_is_refused(
    how: str, fused: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_kd.engine.fused_heads._SMALL", 1)
    monkeypatch.setattr(InTraining, "how", how)
    with pytest.raises(ValueError, match=r"The student has .* in this step.*TokenKDLoss\(fused=False\)"):
        fitted([TokenKDLoss(fused=fused)], InTraining)
    fitted([TokenKDLoss(fused=False)], InTraining)


class Banning(NamedHead):
    """A language model that may not say some words, from the second batch on."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        banned = kwargs.pop("banned", None)
        output = super().forward(*args, **kwargs)
        if banned is not None:
            output.logits = output.logits.masked_fill(banned.bool(), -1e4)
        return output


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_what_a_network_does_with_its_logits_in_later_batches_is_refused(role: str) -> None:
    nets = {"student": networks()[0], "teacher": networks()[1]}
    place = ["student", "teacher"].index(role)
    nets[role] = networks(Banning)[place]
    with torch.no_grad():
        vocabulary = nets["student"].head.weight.shape[0]
    banned = torch.arange(vocabulary) % 2 == 0
    module = DistillationModule(*nets.values(), [TokenKDLoss(fused=True)])
    loader = support.batches(BATCH, BATCH | {"banned": banned})
    with pytest.raises(ValueError, match=f"The {role} has changed its logits after its output layer"):
        support.fit(module, train=loader, max_epochs=1, limit_val_batches=0)


def test_two_losses_share_the_hidden_states(chunks: list[int]) -> None:
    whole, inside = (fitted([TokenKDLoss(fused=f), TokenKDLoss("jsd", fused=f, weight=2.0)]) for f in (False, True))
    assert chunks == [8] * 4
    same(inside.student.state_dict(), whole.student.state_dict(), 1e-12)


def test_an_evaluation_sees_whole_logits(chunks: list[int]) -> None:
    whole, inside = (fitted([TokenKDLoss(fused=f)], limit_val_batches=1) for f in (False, True))
    assert inside.run.results == pytest.approx(whole.run.results, rel=1e-6)
    assert inside.run.results


def test_nothing_is_left_in_the_networks(tmp_path: Path) -> None:
    module = fitted([TokenKDLoss(fused=True)])
    head = module.student.head
    assert Head(head).is_plain
    logits = module.student(BATCH["input_ids"]).logits
    assert logits.shape == (3, 6, 11)
    torch.save(module.student, tmp_path / "student.pt")
    copy.deepcopy(module)


def test_small_vocabularies_stay_whole_by_default(chunks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_kd.engine.fused_heads.rank_zero_info", said.append)
    fitted([TokenKDLoss()])
    assert not chunks
    assert not said
    monkeypatch.setattr("lightning_kd.engine.fused_heads._SMALL", 11)
    fitted([TokenKDLoss()])
    assert chunks == [8, 8]
    assert said == [line for line in said if "is fused with the output layers" in line]
    assert said


@pytest.mark.parametrize(
    ("losses", "kind", "words"),
    [
        ([TokenKDLoss], TinyForCausalLM, "no get_output_embeddings"),
        ([TokenKDLoss], Bent, "the student's output is another than that of its output layer"),
        ([TokenKDLoss], Whole, "does more with its logits"),
        ([TokenKDLoss], Normalised, "is computed anew in each call"),
        ([TokenKDLoss, partial(TokenKDLoss, fused=False)], NamedHead, "fused=False"),
    ],
)
def test_what_cannot_be_is_refused_or_left_out_with_the_reason(
    losses: list[type[TokenKDLoss]],
    kind: type[TinyForCausalLM],
    words: str,
    chunks: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, *others = losses
    with pytest.raises(ValueError, match=f"TokenKDLoss\\(fused=True\\) cannot be here: .*{words}"):
        fitted([first(fused=True), *(make() for make in others)], kind)
    said: list[str] = []
    monkeypatch.setattr("lightning_kd.engine.fused_heads.rank_zero_info", said.append)
    monkeypatch.setattr("lightning_kd.engine.fused_heads._SMALL", 11)
    fitted([first(), *(make() for make in others)], kind)
    assert not chunks
    (line,) = said
    assert words in line


def test_set_up_does_not_move_the_state_of_an_output_layer() -> None:
    student, teacher = networks(Normalised)[0], networks()[1]
    before = copy.deepcopy(student.state_dict())
    DistillationModule(student, teacher, [TokenKDLoss()]).prepare(BATCH)
    torch.testing.assert_close(student.state_dict(), before, rtol=0, atol=0)


class OverTokens(nn.Module):
    """A task's loss of the user's own, on scores of tokens."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def test_a_task_that_reads_whole_logits_names_the_other_way() -> None:
    student, teacher = networks()
    module = DistillationModule(student, teacher, [TokenKDLoss(fused=True)], task_loss=OverTokens())
    loader = DataLoader([BATCH], batch_size=None)
    with pytest.raises(ValueError, match=r"task_loss reads whole logits; give TokenKDLoss\(cross_entropy"):
        support.trainer(max_epochs=1).fit(module, loader, loader)


def test_the_callback_leaves_the_logits_to_the_step() -> None:
    student, teacher = networks()
    door = DistillationCallback(teacher, [TokenKDLoss(fused=True)])
    loader = DataLoader([BATCH], batch_size=None)
    with pytest.raises(ValueError, match="module's own step reads whole logits"):
        support.trainer(max_epochs=1, callbacks=[door]).fit(UsersModule(student), loader, loader)


def test_memory_without_effect_is_refused() -> None:
    with pytest.raises(ValueError, match="memory='recompute' has no effect with fused=False"):
        TokenKDLoss(fused=False, memory="recompute")
    with pytest.raises(ValueError, match="memory to be one of"):
        TokenKDLoss(memory="gradients")


def test_a_classifier_has_no_tokens_to_fuse() -> None:
    with pytest.raises(ValueError, match=r"cannot be here"):
        support.fit(support.module(losses=[TokenKDLoss(fused=True), KDLoss()], task_loss=None))
