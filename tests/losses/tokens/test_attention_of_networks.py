"""Losses of attention over networks of plain torch, through every door, against the same step by hand."""

import copy
import json
import logging
import math
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback, DistillationModule, DistillationStrategyType
from lightning_kd.cache import write
from lightning_kd.commands.fit import DistillationCLI
from lightning_kd.functional import attention_matrix_loss, qkv_relation_loss
from lightning_kd.losses import ATLoss, AttentionMatrixLoss, QKVRelationLoss
from tests import support
from tests.capture.attending import HEADS, LENGTH, WIDTH, Called, Encoder, Layered, Net, heads_of

# the heads of these networks are means over all tokens, padding too; their attention is what is compared
pytestmark = pytest.mark.filterwarnings("ignore:The (student|teacher) Text gives a row that is padded on the right")
VOCABULARY = 11
REAL = torch.arange(LENGTH) < torch.tensor([[6], [4], [2]])
STEP = partial(torch.optim.SGD, lr=0.5)


class Text(nn.Module):
    """Texts with padding, as models of language are called."""

    def __init__(self, kind="called", depth=2, **options):
        super().__init__()
        self.kind = kind
        self.embedding = nn.Embedding(VOCABULARY, 5)
        self.net = Encoder(depth, **options) if kind == "encoder" else Net(NETS[kind], depth, **options)

    def forward(self, input_ids, attention_mask=None):
        real = None if attention_mask is None else attention_mask.bool()
        masks = () if real is None else (real[:, None, None],) if self.kind == "called" else (None, ~real)
        return self.net(self.embedding(input_ids), *masks)


NETS = {"called": Called, "layer": Layered, "turned": Layered}
OPTIONS = {"called": {}, "layer": {"batch_first": True}, "turned": {"need_weights": True}, "encoder": {}}
KINDS = list(OPTIONS)


def blocks(kind):
    return "net.encoder.layers" if kind == "encoder" else "net.blocks"


def made(kind, depth=2, seed=0, **options):
    torch.manual_seed(seed)
    return Text(kind, depth, **OPTIONS[kind] | options).double()


def pair(kind, **options):
    return made(kind, 2, 1).train(), made(kind, 4, 2, **options)


def texts(real=REAL):
    ids = torch.randint(1, VOCABULARY, real.shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": real.long()}


def layers(kind):
    return [f"{blocks(kind)}.{i}" for i in (0, 1)], [f"{blocks(kind)}.{i}" for i in (1, 3)]


def told(network, batch):
    """Scores, queries and values of every block by hand, from what enters its attention."""
    kind, found = network.kind, []
    inner = nn.TransformerEncoderLayer if kind == "encoder" else NETS[kind]

    def note(module, args):
        x, real = args[0], batch["attention_mask"].bool()[:, None, None]
        if kind == "called":
            (scores, _), q, k, v = module.by_hand(x, real), module.query(x), module.key(x), module.value(x)
        else:
            layer = module.self_attn if kind == "encoder" else module.attn
            q, k, v = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
            scores = (heads_of(q) @ heads_of(k).mT / math.sqrt(WIDTH // HEADS)).masked_fill(~real, -math.inf)
        found.append((scores, (q, k, v)))

    handles = [one.register_forward_pre_hook(note) for one in network.modules() if isinstance(one, inner)]
    network(**batch)
    for handle in handles:
        handle.remove()
    return found


def by_hand(student, teacher, batch, loss="scores"):
    """The loss of the pairs of :func:`layers`."""
    ours, theirs = told(student, batch), told(teacher, batch)
    pairs = [(ours[s], theirs[t]) for s, t in ((0, 1), (1, 3))]
    mask = batch["attention_mask"]
    if loss == "relations":
        (_, mine), (_, its) = pairs[1]
        return qkv_relation_loss(mine, its, mask=mask, relation_heads=2, relations={"QQ": 1.0, "VV": 0.5})
    if loss.startswith("probabilities"):
        return sum(attention_matrix_loss(s[0].softmax(-1), t[0].softmax(-1), kind=loss, mask=mask) for s, t in pairs)
    return sum(attention_matrix_loss(s[0], t[0], kind=loss, mask=mask) for s, t in pairs)


def loss_of(kind, loss):
    mine, its = layers(kind)
    if loss == "relations":
        return QKVRelationLoss(mine[1], its[1], relation_heads=2, relations={"QQ": 1.0, "VV": 0.5})
    return AttentionMatrixLoss(mine, its, kind=loss)


class UsersModule(LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return 0.0 * self.net(**batch).sum()

    def configure_optimizers(self):
        return STEP(self.parameters())


def fitted(student, teacher, loss, batch, door="module"):
    """The mean of a fit of one step."""
    loader = DataLoader([batch], batch_size=None)
    if door == "module":
        module, callbacks = DistillationModule(student, teacher, [loss], optimizer=STEP), []
    else:
        module, callbacks = UsersModule(student), [DistillationCallback(teacher, [loss])]
    trainer = support.trainer(max_epochs=1, limit_val_batches=0, callbacks=callbacks)
    trainer.fit(module, loader, loader if door == "module" else None)
    run = module.run if door == "module" else callbacks[0].run
    return next(iter(run.log.epoch_means.values()))


def stepped(student, value):
    value.backward()
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad


@pytest.mark.parametrize("loss", ["scores", "probabilities", "scores_kl", "relations"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_by_hand_through_both_doors(kind, loss):
    student, teacher = pair(kind)
    other, expected = copy.deepcopy(student), copy.deepcopy(student)
    before = copy.deepcopy(teacher.state_dict())
    batch = texts()
    value = by_hand(expected, teacher, batch, loss)
    assert fitted(student, teacher, loss_of(kind, loss), batch) == pytest.approx(value.item(), rel=1e-6)
    assert fitted(other, teacher, loss_of(kind, loss), batch, "callback") == pytest.approx(value.item(), rel=1e-6)
    stepped(expected, value)
    assert value > 0
    for one, two, three in zip(student.parameters(), other.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, three, rtol=1e-8, atol=1e-9)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_names_blocks_alike(kind):
    batch = texts()
    mine, its = layers(kind)
    words = []
    for side, depth in (("student", 2), ("teacher", 4)):
        arguments = {"init_args": {"kind": kind, "depth": depth}, "dict_kwargs": OPTIONS[kind]}
        words.append(f"--model.{side}={json.dumps({'class_path': f'{__name__}.Text', **arguments})}")
    losses = [{"class_path": "AttentionMatrixLoss", "init_args": {"student": mine, "teacher": its}}]
    words += [f"--model.losses={json.dumps(losses)}", "--data=DigitsDataModule", "--seed_everything=1"]
    module = DistillationCLI(args=words, run=False).model.double()
    module.prepare(batch)
    value = module.training_step(batch, 0)
    expected = by_hand(module.student, module.teacher, batch)
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_makes_no_difference(kind):
    student, teacher = pair(kind)
    batch = texts()
    value = fitted(copy.deepcopy(student), teacher, loss_of(kind, "probabilities_kl"), batch)
    rows = []
    for i, length in enumerate(REAL.sum(1).tolist()):
        alone = {name: entry[i : i + 1, :length] for name, entry in batch.items()}
        rows.append(by_hand(student, teacher, alone, "probabilities_kl").item() * length)
    assert value == pytest.approx(sum(rows) / REAL.sum().item(), rel=1e-6)


def test_the_order_of_axes_makes_no_difference():
    value = {}
    for kind in ("layer", "turned"):
        student, teacher = pair(kind)
        value[kind] = fitted(student, teacher, loss_of(kind, "scores"), texts())
    assert value["layer"] == pytest.approx(value["turned"], rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_pair_the_blocks_of_such_networks(kind):
    student, teacher = pair(kind)
    named = fitted(copy.deepcopy(student), teacher, loss_of(kind, "scores"), texts())
    assert fitted(student, teacher, AttentionMatrixLoss("uniform"), texts()) == named


@pytest.mark.parametrize("kind", ["called", "layer", "encoder"])
def test_a_compiled_student_learns_the_same(kind):
    student, teacher = pair(kind)
    plain = copy.deepcopy(student)
    loss = partial(loss_of, kind, "probabilities")
    value = fitted(plain, teacher, loss(), texts())
    compiled = torch.compile(student, backend="aot_eager", fullgraph=True)
    assert fitted(compiled, teacher, loss(), texts()) == pytest.approx(value, rel=1e-6)
    for one, other in zip(student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["called", "layer"])
def test_the_logits_of_a_fit_stay_what_they_are(kind):
    student, teacher = pair(kind)
    batch = texts()
    with torch.no_grad():
        expected = student(**batch), teacher.eval()(**batch)
    seen = {"student": [], "teacher": []}
    for role, network in (("student", student), ("teacher", teacher)):
        network.register_forward_hook(lambda _, __, output, role=role: seen[role].append(output.detach()))
    fitted(student, teacher, loss_of(kind, "scores"), batch)
    # the first calls are those of set-up, in eval mode and looked at by modes of torch
    assert any(torch.equal(output, expected[0]) for output in seen["student"])
    assert torch.equal(seen["teacher"][-1], expected[1])


# --- what is refused at set-up ----------------------------------------------------------------------------------------


class Windows(nn.Module):
    """Attention in windows of three tokens, which are put into the batch, as Swin does."""

    def __init__(self, width):
        super().__init__()
        self.inner = Called(width)

    def forward(self, x, mask=None):
        return self.inner(x.reshape(-1, 3, x.shape[2])).reshape(x.shape)


NETS["windows"], OPTIONS["windows"] = Windows, {}


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_windows_are_refused_with_the_remedy(role):
    kinds = {"student": "called", "teacher": "called"} | {role: "windows"}
    student, teacher = made(kinds["student"], 2, 1), made(kinds["teacher"], 2, 2)
    names = dict.fromkeys(kinds, "net.blocks.1")
    loss = AttentionMatrixLoss(names["student"], names["teacher"])
    batch = {"input_ids": texts()["input_ids"]}
    words = rf"The {role}'s 'net.blocks.1' has attention of 6 rows for 3 samples, as in windows.*HiddenStateLoss"
    if role == "teacher":
        words += "|expected attention between the same tokens"
    with pytest.raises(ValueError, match=words):
        fitted(student.train(), teacher, loss, batch)


def test_unequal_heads_are_refused_with_the_remedy_and_meet_as_means():
    student, teacher = pair("called", heads=2)
    with pytest.raises(ValueError, match=r"student has 4 heads, the teacher 2.*heads='mean'"):
        fitted(copy.deepcopy(student), teacher, loss_of("called", "scores"), texts())
    value = fitted(student, teacher, AttentionMatrixLoss(*layers("called"), heads="mean"), texts())
    assert value > 0


def test_other_tokens_are_refused_with_the_remedy():
    class Longer(Text):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(nn.functional.pad(input_ids, (1, 0)))

    student, teacher = pair("called")
    teacher.__class__ = Longer
    with pytest.raises(ValueError, match=r"\(3, 4, 6, 6\) and teacher \(3, 4, 7, 7\). Take networks .* by ATLoss"):
        fitted(student, teacher, loss_of("called", "scores"), {"input_ids": texts()["input_ids"]})


def test_padding_that_the_teacher_leaves_out_is_refused_and_the_remedy_helps():
    student, teacher = pair("encoder", nested=True)
    loss = partial(loss_of, "encoder", "scores")
    named = r"teacher's 'net.encoder.layers.1' .*nn.TransformerEncoder 'net.encoder'.*use_nested_tensor = False"
    with pytest.raises(ValueError, match=named):
        fitted(copy.deepcopy(student), teacher, loss(), texts())
    whole = {"input_ids": texts()["input_ids"]}
    assert fitted(copy.deepcopy(student), teacher, loss(), whole) > 0
    teacher.net.encoder.use_nested_tensor = False
    value = by_hand(student, teacher, texts()).item()
    student.net.encoder.use_nested_tensor = True  # which is of no effect in training
    assert fitted(student, teacher, loss(), texts()) == pytest.approx(value, rel=1e-6)


def test_networks_whose_tokens_are_not_known_are_compared_by_maps_as_ever(caplog):
    caplog.set_level(logging.INFO)
    student, teacher = pair("encoder")
    batch = {"input_ids": texts()["input_ids"]}
    plain = fitted(copy.deepcopy(student), teacher, ATLoss(), batch)
    assert "AttentionMatrixLoss" not in caplog.text
    assert fitted(student, teacher, DistillationStrategyType.ATTENTION_BASED.create(), batch) == plain
    assert caplog.text.count("Name AttentionMatrixLoss('uniform') if they are those of the other network") == 1


def test_attention_by_hand_is_refused_at_set_up():
    class ByHand(Called):
        def forward(self, x, mask=None):
            return self.out((self.by_hand(x, mask)[1] @ heads_of(self.value(x))).transpose(1, 2).flatten(2))

    student, teacher = pair("called")
    for block in teacher.net.blocks:
        block.mix.__class__ = ByHand
    with pytest.raises(ValueError, match=r"teacher's 'net.blocks.1' cannot be read: .*made by hand.*fused_attn = True"):
        fitted(student, teacher, loss_of("called", "scores"), texts())


def test_a_name_without_attention_says_what_has_one():
    student, teacher = pair("called")
    with pytest.raises(ValueError, match=r"'net.blocks.0.mlp' has no attention .*nn.MultiheadAttention or calls"):
        fitted(student, teacher, AttentionMatrixLoss("net.blocks.0.mlp", "net.blocks.0.mlp"), texts())


def test_a_stored_teacher_has_no_attention(tmp_path):
    _, teacher = pair("called")
    rows = [{"input_ids": row} for row in texts()["input_ids"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"reads scores of net.blocks.1, but attention is not stored"):
            write(teacher, rows, tmp_path / "answers", losses=[loss_of("called", "scores")])


class Returning(nn.Module):
    """Has a module that returns attention, and others that return maps of four axes."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.softmax = nn.Conv2d(3, 4, 4, stride=4), nn.LayerNorm(4), nn.Softmax(-1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        maps = self.norm(self.stem(x).movedim(1, -1))
        rows = maps.flatten(1, 2)
        return self.head((self.softmax(rows.unsqueeze(1) @ rows.unsqueeze(1).mT) @ rows.unsqueeze(1)).mean((1, 2)))


@pytest.mark.parametrize(("layer", "axis"), [("stem", 1), ("norm", 3)])
def test_maps_are_not_taken_for_attention(layer, axis):
    networks = [support.seeded(Returning, seed) for seed in (1, 2)]
    words = rf"Part 'attention_matrix': .*got features .* of the student, with the channels on axis {axis}"
    with pytest.raises(ValueError, match=words):
        DistillationModule(*networks, [AttentionMatrixLoss(layer, layer)]).prepare((torch.randn(2, 3, 16, 16),))
    DistillationModule(*networks, [AttentionMatrixLoss("softmax", "softmax")]).prepare((torch.randn(2, 3, 16, 16),))


@pytest.mark.parametrize("kind", ["scores", "scores_kl"])
def test_causal_attention_is_not_compared_with_one_that_sees_all(kind):
    whole, causal = (support.seeded(partial(Net, is_causal=causal), 1) for causal in (False, True))
    x = torch.randn(2, LENGTH, 5)
    loss = partial(AttentionMatrixLoss, "blocks.1", "blocks.1", kind=kind)
    for student, teacher, one in ((whole, causal, "teacher"), (causal, whole, "student")):
        with pytest.raises(ValueError, match=f"the {one}'s attention is causal, and .*HiddenStateLoss"):
            DistillationModule(student, teacher, [loss()]).prepare((x,))
    DistillationModule(causal, support.seeded(partial(Net, is_causal=True), 2), [loss()]).prepare((x,))
