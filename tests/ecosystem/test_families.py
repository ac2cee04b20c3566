"""Every family through both doors and a configuration file: values and gradients by hand, of what the networks return.

The loss of the first step is that of the networks' plain outputs, and so is its gradient; padding, another order and
accumulation change neither.
"""

import copy
import math
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.commands.fit import run
from lightning_kd.losses import HiddenStateLoss, HintLoss, KDLoss, TokenKDLoss
from tests import support
from tests.ecosystem.families import FAMILIES, NARROW, WIDE, batch_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*loss_type.*")
SINGLE = {"mixtral", "gemma2"}
"""Whose own code runs in 32 bits only, or makes NaN at padding in 64."""
OF_CLASSES = [name for name in FAMILIES if FAMILIES[name].of_classes]
OF_TOKENS = [name for name in FAMILIES if name not in OF_CLASSES]
PADDED = [name for name in FAMILIES if FAMILIES[name].task != "image_classification"]
IN_A_FILE = ("bert, classes", "llama", "whisper", "deit")
"""The others are slow: a command line takes a second or two."""
RATE = 0.01


class Recorder(Callback):
    """Keeps the weights before the first step, and the gradients of it."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            every = {**module.state_dict(), **dict(module.named_parameters())}  # a callback's are not in the state
            self.before = {name: value.detach().clone() for name, value in every.items()}

    def on_train_batch_end(self, trainer, module, *_):  # after the module's own hooks, which divide by the tokens
        self.gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


class Theirs(LightningModule):
    """A plain module that calls its student itself."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def training_step(self, batch, batch_idx):
        return self.student(**batch).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


class Rows(LightningDataModule):
    """The batch of a family, by its name."""

    def __init__(self, family: str):
        super().__init__()
        self.family = family

    def train_dataloader(self):
        return support.batches(batch_of(self.family))

    val_dataloader = train_dataloader


def parts_of(name):
    """The losses as classes with options: those of the logits, and those of the last blocks and the ones before."""
    family = FAMILIES[name]
    blocks = [family.blocks.format(i) for i in (0, 1)]
    logits = (KDLoss, {"temperature": 2.0}) if family.of_classes else (TokenKDLoss, {})
    layers = HintLoss if family.task == "image_classification" else HiddenStateLoss
    return [logits, (layers, {"student": blocks, "teacher": blocks, "weight": 0.5})]


def losses_of(name):
    return [loss(**options) for loss, options in parts_of(name)]


def task_of(name):
    return torch.nn.CrossEntropyLoss() if FAMILIES[name].of_classes else "model"


def fit(name, batches, *, door="module", losses=None, task=True, **options):
    """Train one step; returns the recorder, the logged values and the student."""
    family, recorder = FAMILIES[name], Recorder()
    student, teacher = family.make(NARROW), family.make(WIDE)
    losses = losses_of(name) if losses is None else losses
    callbacks = [recorder]
    if door == "module":
        still = partial(torch.optim.SGD, lr=RATE)
        module = DistillationModule(
            student, teacher, losses, task_loss=task_of(name) if task else None, optimizer=still
        )
    else:
        module = Theirs(student)
        callbacks.append(DistillationCallback(teacher, losses))
    precision = None if name in SINGLE else "64-true"
    trainer = support.trainer(
        max_epochs=1,
        limit_val_batches=0,
        callbacks=callbacks,
        precision=precision,
        use_distributed_sampler=False,
        **options,
    )
    torch.manual_seed(5)
    with torch.random.fork_rng():
        loader = support.batches(*batches)
        trainer.fit(module, loader, loader if door == "module" else None)
    return recorder, trainer.callback_metrics, student


@cache
def first(name):
    return fit(name, [batch_of(name)])


# --- by hand ----------------------------------------------------------------------------------------------------------


def outputs(network, batch, names):
    """The logits of a plain call, and what the named blocks return."""
    kept = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: kept.update({name: out if isinstance(out, torch.Tensor) else out[0]})
        )
        for name in names
    ]
    logits = network(**batch).logits
    for handle in handles:
        handle.remove()
    return logits, [kept[name] for name in names]


def tokens_of(name, batch):
    """The positions of the logits that count, and the token that each is to predict."""
    labels = batch["labels"]
    if FAMILIES[name].causal:
        labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
    return labels != -100, labels


def by_hand(name, batch, recorder, prefix="", teacher=None):
    """The three parts of the loss, and the gradients of the student and the projectors."""
    family = FAMILIES[name]
    wide = torch.float32 if name in SINGLE else torch.float64
    batch = {key: value.to(wide) if value.is_floating_point() else value for key, value in batch.items()}
    state = {key.removeprefix("student."): v for key, v in recorder.before.items() if key.startswith("student.")}
    student = family.make(NARROW).to(wide)
    student.load_state_dict(state)
    teacher = (family.make(WIDE) if teacher is None else teacher).to(wide).eval()
    blocks = [family.blocks.format(i) for i in (0, 1)]
    ours, inner = outputs(student.train(), batch, blocks)
    with torch.no_grad():
        theirs, outer = outputs(teacher, batch, blocks)
    if family.of_classes:
        task = F.cross_entropy(ours, batch["labels"])
        p, q = (theirs / 2).softmax(-1), (ours / 2).log_softmax(-1)
        kd = 4 * (p * (p.log() - q)).sum(-1).mean()
    else:
        counts, labels = tokens_of(name, batch)
        chosen = zip(ours.log_softmax(-1)[counts], labels[counts], strict=True)
        task = -torch.stack([row[label] for row, label in chosen]).mean()
        p, q = theirs[counts].softmax(-1), ours[counts].log_softmax(-1)
        kd = (p * (p.log() - q)).sum(-1).mean()
    projectors = {key: v.clone().requires_grad_() for key, v in recorder.before.items() if ".projectors." in key}
    real = batch["attention_mask"].bool() if "attention_mask" in batch else None
    layers = torch.zeros((), dtype=wide)
    for i, (mine, its) in enumerate(zip(inner, outer, strict=True)):
        values = [v for key, v in projectors.items() if f"projectors.{i}." in key]
        (weight,) = [v for v in values if v.ndim > 1]
        bias = next((v for v in values if v.ndim == 1), torch.zeros((), dtype=wide))
        error = (mine @ weight.flatten(1).T + bias - its).square()
        layers = layers + (error if real is None else error[real]).mean()
    total = task + kd + 0.5 * layers
    named = {**{f"student.{n}": p for n, p in student.named_parameters() if p.requires_grad}, **projectors}
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    gradients = {n: g for n, g in zip(named, found, strict=True) if g is not None}
    return {"task": task, "kd": kd, "layers": layers, "loss": total}, gradients


def near(found, expected, tolerance):
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= tolerance * largest, name


def tolerance(name):
    return 2e-4 if name in SINGLE else 1e-6  # norms and rotations of some compute in 32 bits in any case


def check(name, recorder, metrics, teacher=None):
    values, gradients = by_hand(name, batch_of(name), recorder, teacher=teacher)
    for key, value in metrics.items():
        part = key.removeprefix("train/")
        part = {"token_kd": "kd", "hint": "layers", "hidden_state": "layers"}.get(part, part)
        if key.startswith("train/") and part in values:
            expected = float(values.pop(part))
            assert math.isclose(float(value), expected, rel_tol=1e-5), (key, float(value), expected)
    assert not values.keys() - {"loss"}, f"not logged: {sorted(values)} of {sorted(metrics)}"
    near(
        {n.replace("distillation_losses", "losses"): g for n, g in recorder.gradients.items()},
        gradients,
        tolerance(name),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_module(name, tmp_path):
    recorder, metrics, student = first(name)
    check(name, recorder, metrics)
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path, dtype=next(student.parameters()).dtype).eval()
    batch = {k: v.to(again.dtype) if v.is_floating_point() else v for k, v in batch_of(name).items()}
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, copy.deepcopy(student).eval()(**batch).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_callback(name):
    recorder, metrics, _ = fit(name, [batch_of(name)], door="callback")
    check(name, recorder, metrics)


@pytest.mark.parametrize("name", [n if n in IN_A_FILE else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_a_configuration_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    family, teacher = FAMILIES[name], FAMILIES[name].make(WIDE)
    teacher.save_pretrained(tmp_path / "teacher")
    given = {"config": family.config(NARROW), "task": family.task}
    loaded = {"folder": str(tmp_path / "teacher"), "task": family.task}
    task = {"class_path": "torch.nn.CrossEntropyLoss"} if family.of_classes else "model"
    model = {
        "student": {"class_path": "lightning_kd.hf.from_config", "init_args": given},
        "teacher": {"class_path": "lightning_kd.hf.from_pretrained", "init_args": loaded},
        "losses": [{"class_path": loss.__name__, "init_args": options} for loss, options in parts_of(name)],
        "task_loss": task,
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": RATE}},
    }
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False, **quiet, "log_every_n_steps": 1}
    trainer |= {"precision": "32-true" if name in SINGLE else "64-true", "limit_val_batches": 0}
    trainer["callbacks"] = [{"class_path": f"{__name__}.Recorder"}]
    data = {"class_path": f"{__name__}.Rows", "init_args": {"family": name}}
    content = {"seed_everything": 3, "model": model, "trainer": trainer, "data": data}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(content))
    done = run(["fit", f"--config={tmp_path / 'fit.yaml'}"])
    (recorder,) = [one for one in done.trainer.callbacks if type(one).__name__ == "Recorder"]
    check(name, recorder, done.trainer.callback_metrics, teacher=teacher)


# --- the same batch in other dress -----------------------------------------------------------------------------------


def padded(batch):
    """Two columns of padding more on the right."""
    fill = {"labels": -100, "input_ids": 0, "attention_mask": 0}
    return {key: F.pad(value, (0, 2), value=fill[key]) if value.ndim == 2 else value for key, value in batch.items()}


def rows(batch, order):
    return {key: value[order] for key, value in batch.items()}


@pytest.mark.parametrize("name", PADDED)
def test_more_padding_changes_nothing(name):
    same(name, fit(name, [padded(batch_of(name))]))


@pytest.mark.parametrize("name", FAMILIES)
def test_another_order_of_the_rows_changes_nothing(name):
    same(name, fit(name, [rows(batch_of(name), [2, 0, 3, 1])]))


def same(name, found):
    (recorder, metrics, _), (plain, expected, _) = found, first(name)
    assert metrics.keys() == expected.keys()
    for key, value in expected.items():
        assert math.isclose(float(metrics[key]), float(value), rel_tol=1e-5), key
    near(recorder.gradients, plain.gradients, tolerance(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_two_halves_are_one_batch(name):
    """Of unequal numbers of tokens; layers are left out, since they have other tokens than the labels."""
    loss = losses_of(name)[0]
    whole, _, _ = fit(name, [batch_of(name)], losses=[copy.deepcopy(loss)])
    halves = [rows(batch_of(name), order) for order in ([0, 1], [2, 3])]
    accumulated, _, _ = fit(name, halves, losses=[loss], accumulate_grad_batches=2)
    near(accumulated.gradients, whole.gradients, tolerance(name))


# --- the decoder's own padding ----------------------------------------------------------------------------------------

DECODERS = {"t5": "decoder.block.{}", "bart": "model.decoder.layers.{}", "whisper": "model.decoder.layers.{}"}


def of_one_length(name):
    """Source and target of five tokens each, so that the wrong mask would fit."""
    batch = batch_of(name)
    return {key: value[:, :5] if key in ("input_ids", "attention_mask") else value for key, value in batch.items()}


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("lengths", ["one length", "two lengths", "its own mask"])
@pytest.mark.parametrize("name", DECODERS)
def test_padding_of_a_decoder_is_its_own(name, lengths, door):
    batch = of_one_length(name) if lengths == "one length" else batch_of(name)
    real = batch["labels"] != -100
    if lengths == "its own mask":
        batch["decoder_attention_mask"] = real.long()
        batch["labels"][:, 0] = -100  # no target, and no padding
    block = DECODERS[name].format(1)
    recorder, metrics, _ = fit(name, [batch], door=door, losses=[HiddenStateLoss(block, block)])
    values = []
    for width in (NARROW, WIDE):
        network = FAMILIES[name].make(width).double()
        given = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
        values.append(outputs(network, given, [block])[1][0][real])
    (weight,) = [v for key, v in recorder.before.items() if ".projectors." in key and v.ndim > 1]
    biases = [v for key, v in recorder.before.items() if ".projectors." in key and v.ndim == 1]
    expected = (F.linear(values[0], weight, *biases) - values[1]).square().mean()
    assert math.isclose(float(metrics["train/hidden_state"]), float(expected), rel_tol=1e-5)


def test_layers_of_both_sides_have_no_common_mask():
    blocks = [FAMILIES["bart"].blocks.format(1), DECODERS["bart"].format(1)]
    with pytest.raises(ValueError, match=r"reads layers of the encoder and of the decoder.*Make a loss of each side"):
        fit("bart", [batch_of("bart")], losses=[HiddenStateLoss(blocks, blocks)])
