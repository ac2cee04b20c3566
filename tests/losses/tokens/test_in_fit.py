"""Losses of tokens in a fit, through both doors: batches as collators give them, windows, and several processes."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.functional import attention_matrix_loss, hidden_state_loss, qkv_relation_loss, token_kd_loss
from lightning_kd.losses import (
    AttentionMatrixLoss,
    DistillationLoss,
    HiddenStateLoss,
    HybridLoss,
    QKVRelationLoss,
    TokenKDLoss,
)
from lightning_kd.schedules import LinearSchedule
from tests import support
from tests.support import processes

VOCABULARY, LENGTH = 11, 6


class Attention(nn.Module):
    """Causal attention of two heads, whose scores and projections are outputs of modules."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.scores, self.shares = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() & mask.bool()[:, None, None]
        scores = self.scores((q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -1e4))
        return (self.shares(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2)


class TinyForCausalLM(nn.Module):
    """A language model as Hugging Face's are called."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.attention = Attention(width)
        self.block = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embedding(input_ids)
        x = x + self.attention(x, mask)
        return SimpleNamespace(logits=self.head(x + self.block(x)))


def texts(*lengths: int, seed: int = 0) -> dict[str, Tensor]:
    """Texts of these lengths, padded on the left, whose first token is a prompt."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (len(lengths), LENGTH), generator=generator)
    mask = torch.stack([torch.arange(LENGTH) >= LENGTH - length for length in lengths])
    first = mask & (mask.cumsum(1) == 1)
    labels = ids.masked_fill(~mask | first, -100)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def networks() -> tuple[TinyForCausalLM, TinyForCausalLM]:
    student, teacher = (support.seeded(lambda width=width: TinyForCausalLM(width), width) for width in (4, 8))
    return student.double(), teacher.double()


def made(losses: list[DistillationLoss], *, lr: float = 0.5) -> DistillationModule:
    student, teacher = networks()
    return DistillationModule(student, teacher, losses, optimizer=partial(torch.optim.SGD, lr=lr))


def fit(module: DistillationModule, batches: list[object], **options: object) -> None:
    loader = DataLoader(batches, batch_size=None)
    support.trainer(max_epochs=1, limit_val_batches=0, **options).fit(module, loader, loader)


def logits(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    student, teacher = networks()
    inputs = batch["input_ids"], batch["attention_mask"]
    return student(*inputs).logits, teacher(*inputs).logits.detach()


def after_a_step(losses: list[DistillationLoss], *batches: object, **options: object) -> dict[str, Tensor]:
    module = made(losses)
    fit(module, list(batches), **options)
    return module.student.state_dict()


def by_hand(loss: Tensor, student: nn.Module) -> dict[str, Tensor]:
    loss.backward()
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
    return student.state_dict()


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    start = networks()[0].state_dict()
    assert any(not torch.equal(ours[name], start[name]) for name in ours)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=tolerance)


BATCH = texts(6, 3, 2)


def expected(batch: dict[str, Tensor], **options: object) -> dict[str, Tensor]:
    student, teacher = networks()
    inputs = batch["input_ids"], batch["attention_mask"]
    ours, theirs = student(*inputs).logits, teacher(*inputs).logits
    loss = token_kd_loss(ours, theirs, labels=batch["labels"], mask=batch["attention_mask"], shift=True, **options)
    return by_hand(loss, student)


def test_a_batch_of_a_collator_is_read_as_it_is() -> None:
    same(after_a_step([TokenKDLoss("jsd", beta=0.3)], BATCH), expected(BATCH, divergence="jsd", beta=0.3))


def test_a_batch_of_two_tensors_is_read_as_it_is() -> None:
    whole = texts(6, 6, 6)
    same(after_a_step([TokenKDLoss()], (whole["input_ids"], whole["labels"])), expected(whole))


def test_without_labels_the_mask_decides() -> None:
    student, teacher = networks()
    inputs = BATCH["input_ids"], BATCH["attention_mask"]
    loss = token_kd_loss(student(*inputs).logits, teacher(*inputs).logits, mask=inputs[1], shift=True)
    unlabelled = {name: value for name, value in BATCH.items() if name != "labels"}
    same(after_a_step([TokenKDLoss()], unlabelled), by_hand(loss, student))


def test_the_cross_entropy_of_the_labels_is_a_part_of_the_loss() -> None:
    student, teacher = networks()
    ours, theirs = (net(BATCH["input_ids"], BATCH["attention_mask"]).logits for net in (student, teacher))
    labels, mask = BATCH["labels"], BATCH["attention_mask"]
    kd = token_kd_loss(ours, theirs, labels=labels, mask=mask, shift=True)
    task = F.cross_entropy(ours[:, :-1].flatten(0, 1), labels[:, 1:].flatten())  # prompts are no targets
    module = made([TokenKDLoss(cross_entropy=0.5)])
    fit(module, [BATCH])
    same(module.student.state_dict(), by_hand(kd + 0.5 * task, student))
    means = module.run.log.epoch_means
    assert means["token_kd"] == pytest.approx((kd + 0.5 * task).item(), rel=1e-6)
    assert means["token_kd/cross_entropy"] == pytest.approx(task.item(), rel=1e-6)


@pytest.mark.parametrize("with_fabric", [False, True])
def test_a_loop_of_the_users_own_needs_no_trainer(with_fabric: bool) -> None:
    module = made([TokenKDLoss()])
    module.prepare(BATCH)
    optimizer = module.configure_optimizers()
    model = module
    if with_fabric:
        model, optimizer = Fabric(accelerator="cpu", devices=1).setup(module, optimizer)
    model.training_step(BATCH, 0).backward()
    optimizer.step()
    same(module.student.state_dict(), expected(BATCH))


class UsersModule(support.UserModule):
    """A module whose step takes a dictionary."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return 0.0 * self.net(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def test_the_callback_trains_alike() -> None:
    student, teacher = networks()
    door = DistillationCallback(teacher, [TokenKDLoss()])
    loader = DataLoader([BATCH], batch_size=None)
    support.trainer(max_epochs=1, callbacks=[door], limit_val_batches=0).fit(UsersModule(student), loader, loader)
    same(student.state_dict(), expected(BATCH))


# --- what stands inside ----------------------------------------------------------------------------------------------


def caught(network: nn.Module, batch: dict[str, Tensor], *layers: str) -> list[Tensor]:
    found: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(layer).register_forward_hook(
            lambda _, __, value, layer=layer: found.update({layer: value})
        )
        for layer in layers
    ]
    network(batch["input_ids"], batch["attention_mask"])
    for handle in handles:
        handle.remove()
    return [found[layer] for layer in layers]


QKV = ["attention.query", "attention.key", "attention.value"]


@pytest.mark.parametrize("kind", ["scores", "scores_kl", "probabilities", "probabilities_kl"])
def test_attention_is_read_without_padding(kind: str) -> None:
    student, teacher = networks()
    layer = "attention.scores" if kind.startswith("scores") else "attention.shares"
    (ours,), (theirs,) = (caught(net, BATCH, layer) for net in (student, teacher))
    loss = attention_matrix_loss(ours, theirs, kind=kind, mask=BATCH["attention_mask"])
    same(after_a_step([AttentionMatrixLoss(layer, layer, kind=kind)], BATCH), by_hand(loss, student))


def test_relations_are_read_without_padding() -> None:
    student, teacher = networks()
    ours, theirs = (caught(net, BATCH, *QKV) for net in (student, teacher))
    options = {"relation_heads": 2, "relations": {"QQ": 0.5, "KK": 0.25, "VV": 1.0}}
    loss = qkv_relation_loss(ours, theirs, mask=BATCH["attention_mask"], **options)
    same(after_a_step([QKVRelationLoss(QKV, QKV, **options)], BATCH), by_hand(loss, student))


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_hidden_states_are_read_without_padding(kind: str) -> None:
    student, teacher = (net.float() for net in networks())
    optimizer = partial(torch.optim.SGD, lr=0.0)
    module = DistillationModule(student, teacher, [HiddenStateLoss("block", "block", kind=kind)], optimizer=optimizer)
    fit(module, [BATCH])
    (projector,) = module.losses["hidden_state"].projectors
    (ours,), (theirs,) = (caught(net, BATCH, "block") for net in (student, teacher))
    value = hidden_state_loss(projector(ours), theirs, kind=kind, mask=BATCH["attention_mask"])
    assert module.run.log.epoch_means["hidden_state"] == pytest.approx(value.item(), rel=1e-5)


def test_a_checkpoint_is_read_before_the_networks_are_seen(tmp_path: Path) -> None:
    module = made([TokenKDLoss("jsd", beta=0.3, temperature=2.0)])
    loader = DataLoader([BATCH] * 2, batch_size=None)
    trainer = support.trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(module, loader, loader)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    student, teacher = networks()
    again = DistillationModule.load_from_checkpoint(tmp_path / "one.ckpt", student=student, teacher=teacher)
    assert repr(again.losses["token_kd"]) == repr(module.losses["token_kd"])
    for one in (module, again):
        one.make_optimizer = partial(torch.optim.SGD, lr=0.5)
        fit(one, [BATCH])
    same(again.student.state_dict(), module.student.state_dict(), 1e-12)


def test_unequal_heads_are_refused_at_set_up() -> None:
    module = made([AttentionMatrixLoss("block", "block")])
    with pytest.raises(ValueError, match=r"expected attention \(B, H, T, T\)"):
        fit(module, [BATCH])


def test_the_mean_of_an_epoch_is_that_of_its_tokens() -> None:
    student, teacher = networks()
    batches = [{name: value[rows] for name, value in BATCH.items()} for rows in (slice(0, 1), slice(1, 3))]
    optimizer = partial(torch.optim.SGD, lr=0.0)
    module = DistillationModule(student, teacher, [TokenKDLoss(cross_entropy=0.5)], optimizer=optimizer)
    fit(module, list(batches))
    ours, theirs = logits(BATCH)
    labels, mask = BATCH["labels"], BATCH["attention_mask"]
    task = F.cross_entropy(ours[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()
    kd = token_kd_loss(ours, theirs, labels=labels, mask=mask, shift=True).item()
    means = module.run.log.epoch_means
    assert means["token_kd/cross_entropy"] == pytest.approx(task, rel=1e-6)
    assert means["token_kd"] == pytest.approx(kd + 0.5 * task, rel=1e-6)


# --- one mean over all tokens ----------------------------------------------------------------------------------------


def losses_of_tokens(form: str) -> list[DistillationLoss]:
    one = TokenKDLoss("reverse_kl", cross_entropy=0.5)
    return {
        "one": [one],
        "two": [one, TokenKDLoss(weight=2.0)],
        "hybrid": [HybridLoss([one, TokenKDLoss(weight=2.0)])],
    }[form]


@pytest.mark.parametrize("form", ["one", "two", "hybrid"])
def test_a_batch_is_its_micro_batches(form: str) -> None:
    parts = [{name: value[rows] for name, value in BATCH.items()} for rows in (slice(0, 1), slice(1, 3))]
    whole = after_a_step(losses_of_tokens(form), BATCH)
    same(after_a_step(losses_of_tokens(form), *parts, accumulate_grad_batches=2), whole, 1e-7)


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_window_takes_a_task_that_is_a_mean_over_the_same_labels(weight: float) -> None:
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([1, -100, -100, 0, 2, 3])
    found = []
    for parts, window in (([slice(0, 6)], 1), ([slice(0, 3), slice(3, 6)], 2)):
        student, teacher = (support.seeded(lambda: nn.Linear(3, 4), seed) for seed in (1, 2))
        optimizer = partial(torch.optim.SGD, lr=0.5)
        task = nn.CrossEntropyLoss()
        losses = [TokenKDLoss(weight=LinearSchedule(weight, 1.0, length=2))]
        module = DistillationModule(student, teacher, losses, task_loss=task, optimizer=optimizer)
        fit(module, [(x[rows], y[rows]) for rows in parts], accumulate_grad_batches=window)
        found.append(student.weight)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)


def test_a_window_that_is_cut_short_is_a_mean_too() -> None:
    parts = [{name: value[i : i + 1] for name, value in BATCH.items()} for i in range(3)]
    whole = after_a_step(losses_of_tokens("one"), BATCH)
    same(after_a_step(losses_of_tokens("one"), *parts, accumulate_grad_batches=4), whole, 1e-7)


def test_a_window_with_a_task_of_its_own_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_kd.engine.window.rank_zero_info", said.append)
    student, teacher = networks()
    door = DistillationCallback(teacher, [TokenKDLoss()])
    trainer = support.trainer(max_epochs=1, callbacks=[door], accumulate_grad_batches=2, limit_val_batches=0)
    loader = DataLoader([BATCH] * 4, batch_size=None)
    trainer.fit(UsersModule(student), loader, loader)
    assert len(said) == 1
    assert "mean of its micro-batches' means" in said[0]


def micro_batches() -> list[dict[str, Tensor]]:
    """Micro-batches of unequal lengths, the longest first, for which a weight by tokens makes the most difference."""
    return [texts(6, 6), texts(2, 3, seed=1), texts(3, 2, seed=2)]


def token_means(student: nn.Module, teacher: nn.Module) -> list[Tensor]:
    found = []
    for batch in micro_batches():
        inputs, labels = (batch["input_ids"], batch["attention_mask"]), batch["labels"]
        ours, theirs = student(*inputs).logits, teacher(*inputs).logits.detach()
        found.append(token_kd_loss(ours, theirs, labels=labels, mask=batch["attention_mask"].bool(), shift=True))
    return found


class Regularised(DistillationModule):
    """Adds a term of its own to the loss."""

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 0.1 * self.student.head.weight.square().sum()


class Halved(DistillationModule):
    """Returns a multiple of the loss, which is no other term."""

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) / 2


def trained_by(kind: type[DistillationModule]) -> nn.Module:
    student, teacher = networks()
    module = kind(student, teacher, [TokenKDLoss(shift=True)], optimizer=partial(torch.optim.SGD, lr=0.5))
    fit(module, micro_batches(), accumulate_grad_batches=3)
    return student


def test_a_term_that_a_subclass_adds_is_not_weighed_by_tokens() -> None:
    student, teacher = networks()
    mean = sum(token_means(student, teacher)) / 3
    expected = by_hand(mean + 0.1 * student.head.weight.square().sum(), student)
    with pytest.warns(UserWarning, match="training_step adds a term to the loss of tokens"):
        found = trained_by(Regularised)
    same(found.state_dict(), expected)


def test_a_subclass_may_return_a_multiple() -> None:
    student, teacher = networks()
    counts = [(batch["labels"][:, 1:] != -100).sum() for batch in micro_batches()]
    weighed = sum(mean * count for mean, count in zip(token_means(student, teacher), counts, strict=True))
    same(trained_by(Halved).state_dict(), by_hand(weighed / sum(counts) / 2, student))


def test_the_value_of_a_micro_batch_is_its_mean() -> None:
    """What callbacks read; only the gradient has the weight of the tokens."""
    read: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: object, pl_module: object, outputs: object, *args: object) -> None:
            assert isinstance(outputs, dict)
            read.append(3 * float(outputs["loss"]))  # Lightning divides by the number of micro-batches

    fit(made([TokenKDLoss(shift=True)]), micro_batches(), accumulate_grad_batches=3, callbacks=[Watch()])
    torch.testing.assert_close(read, [mean.item() for mean in token_means(*networks())])


def work(rank: int, folder: Path) -> None:
    with processes.process_group(rank, folder / "init", limit=120):
        student, teacher = networks()
        batch = {name: value[slice(0, 1) if rank == 0 else slice(1, 3)] for name, value in BATCH.items()}
        ours, theirs = (net(batch["input_ids"], batch["attention_mask"]).logits for net in (student, teacher))
        loss = TokenKDLoss("reverse_kl", shift=True, cross_entropy=0.5)
        value = loss(ours, theirs.detach(), target=batch["labels"], mask=batch["attention_mask"])
        value.backward()
    torch.save((value.detach(), [p.grad for p in student.parameters()]), folder / str(rank))


def test_a_batch_is_that_of_two_processes(tmp_path: Path) -> None:
    processes.spawned(work, tmp_path, limit=120)
    student, teacher = networks()
    ours, theirs = (net(BATCH["input_ids"], BATCH["attention_mask"]).logits for net in (student, teacher))
    loss = TokenKDLoss("reverse_kl", shift=True, cross_entropy=0.5)
    whole = loss(ours, theirs.detach(), target=BATCH["labels"], mask=BATCH["attention_mask"])
    whole.backward()
    (value, gradients), (other, others) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    torch.testing.assert_close((value + other) / 2, whole.detach(), rtol=1e-6, atol=0)
    for parameter, one, two in zip(student.parameters(), gradients, others, strict=True):
        torch.testing.assert_close((one + two) / 2, parameter.grad, rtol=1e-6, atol=1e-9)  # as DDP averages


def test_a_loop_without_a_trainer() -> None:
    module = made([TokenKDLoss()])
    module.prepare(BATCH)
    optimizer = module.configure_optimizers()
    module.set_moment(0)
    module.training_step(BATCH, 0).backward()
    optimizer.step()
    same(module.student.state_dict(), expected(BATCH))
