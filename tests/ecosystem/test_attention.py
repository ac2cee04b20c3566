"""Attention is read of blocks of Hugging Face's models, and the models compute what they would without it."""

import copy
import pickle
from functools import partial

import pytest
import torch
import transformers as hf
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.capture.attention import attentions_in, place_of
from lightning_kd.capture.hooks import Capture, without_captures
from lightning_kd.functional import attention_matrix_loss, qkv_relation_loss
from lightning_kd.losses import AttentionMatrixLoss, HiddenStateLoss, QKVRelationLoss
from tests import support
from tests.ecosystem import zoo
from tests.ecosystem.test_hf_cut import BOTH, GROUPED, IDS, IMAGES, NETWORKS, TEXT, WIDE

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
MODERN = TEXT | SPECIAL | {"global_attn_every_n_layers": 2, "local_attention": 4}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "pad_token_id": 0}
T5 |= {"decoder_start_token_id": 0}
MORE = NETWORKS | {
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", MODERN, IDS),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5, BOTH),
    "swin": ("SwinForImageClassification", "SwinConfig", zoo.WINDOWS | {"window_size": 4}, IMAGES),
    "beit": ("BeitForImageClassification", "BeitConfig", WIDE | zoo.PATCHES, IMAGES),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", WIDE | zoo.PATCHES, IMAGES),
    "deberta": ("DebertaV2ForMaskedLM", "DebertaV2Config", TEXT, IDS),
    "albert": ("AlbertForMaskedLM", "AlbertConfig", TEXT | {"embedding_size": 16}, IDS),
    "gpt oss": ("GptOssForCausalLM", "GptOssConfig", GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1}, IDS),
}
NOT_SERVED = {"bloom", "falcon", "deberta", "albert", "gpt oss"}
ONLY_EAGER = {"gemma2"}
SERVED = [name for name in MORE if name not in NOT_SERVED]
READ = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")


def made(name, backend="sdpa", **sizes):
    """A network with weights of a size that a wrong layer shows, and its inputs, of which some are padding."""
    kind, config, given, inputs = MORE[name]
    torch.manual_seed(0)
    network = getattr(hf, kind)._from_config(getattr(hf, config)(**given | sizes), attn_implementation=backend)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    inputs = dict(inputs)
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][1, 4:] = 0
    return network.eval(), inputs


def told(name):
    """Every attention of a network as it tells it itself, which needs eager."""
    network, inputs = made(name, "eager")
    with torch.no_grad():
        output = network(**inputs, output_attentions=True)
    return [one for key in READ for one in getattr(output, key, None) or ()]


def captured(network, inputs, part="probabilities"):
    """The attention of every block as it is read, by name, and the logits meanwhile."""
    names = [name for name, _ in attentions_in(network)]
    capture = Capture(network, [place_of(part, name) for name in names], "student")
    capture.attach()
    with torch.no_grad(), capture.recording() as call:
        logits = network(**inputs).logits
        capture.check_ran(call)
    values = dict(zip(names, call.features.values(), strict=True))
    capture.detach()
    return values, logits


@pytest.mark.parametrize(
    ("name", "backend"), [(n, b) for n in SERVED for b in ("sdpa", "eager") if b == "eager" or n not in ONLY_EAGER]
)
def test_attention_is_what_the_model_tells_and_the_logits_stay(name, backend):
    network, inputs = made(name, backend)
    configs = {part: vars(part)["config"] for part in network.modules() if "config" in vars(part)}
    with torch.no_grad():
        plain = network(**inputs).logits
    values, logits = captured(network, inputs)
    assert torch.equal(logits, plain)
    assert all(vars(part)["config"] is config for part, config in configs.items())
    if name == "swin":  # tells the last attention of each stage alone
        values = dict(list(values.items())[1::2])
    expected = told(name)
    assert len(values) == len(expected) >= 4
    remaining = list(values.values())
    for one in expected:  # an encoder-decoder tells them in another order
        like = [value for value in remaining if value.shape == one.shape]
        nearest = min(like, key=lambda value: (value - one).abs().max())
        torch.testing.assert_close(nearest, one, atol=1e-6, rtol=1e-5)
        remaining = [value for value in remaining if value is not nearest]


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_scores_are_those_of_the_probabilities(name):
    network, inputs = made(name)
    scores, probabilities = (captured(network, inputs, part)[0] for part in ("scores", "probabilities"))
    for one, other in zip(scores.values(), probabilities.values(), strict=True):
        torch.testing.assert_close(one.softmax(-1), other)


# --- in a fit ---------------------------------------------------------------------------------------------------------

NONE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FITTED = {"bert": ("bert.encoder.layer", STILL), "llama": ("model.layers", {}), "gpt2": ("transformer.h", NONE)}


def pair(name, backend="sdpa"):
    """A student of two layers with a teacher of four, the inputs, and the pairs of layers that are compared."""
    stem, still = FITTED[name]
    short = {"n_layer": 2} if name == "gpt2" else {"num_hidden_layers": 2}
    student, inputs = made(name, backend, **still, **short)
    teacher, _ = made(name, backend, **still)
    student.train()
    return student, teacher, inputs, ([f"{stem}.0", f"{stem}.1"], [f"{stem}.1", f"{stem}.3"])


def fitted(module, inputs, **options):
    loader = DataLoader([inputs], batch_size=None)
    trainer = support.trainer(max_epochs=1, limit_val_batches=0, **options)
    trainer.fit(module, loader, loader if isinstance(module, DistillationModule) else None)
    return module


def mean_of(student, teacher, loss, inputs, **options):
    module = DistillationModule(student, teacher, [loss], optimizer=partial(torch.optim.SGD, lr=0.0))
    (name,) = module.losses.keys()
    return fitted(module, inputs, **options).run.log.epoch_means[name]


def told_by(network, inputs):
    """The probabilities of every block as the model tells them."""
    network.set_attn_implementation("eager")
    with torch.no_grad():
        return network.eval()(**inputs, output_attentions=True).attentions


@pytest.mark.parametrize("kind", ["probabilities", "probabilities_kl", "scores_kl"])
@pytest.mark.parametrize("name", FITTED)
def test_the_value_of_a_fit_is_that_of_what_the_models_tell(name, kind):
    student, teacher, inputs, layers = pair(name)
    value = mean_of(student, teacher, AttentionMatrixLoss(*layers, kind=kind), inputs)
    ours, theirs = (told_by(network, inputs) for network in (student, teacher))
    by_hand = "probabilities" if kind == "probabilities" else "probabilities_kl"
    expected = sum(
        attention_matrix_loss(ours[s], theirs[t], kind=by_hand, mask=inputs["attention_mask"])
        for s, t in ((0, 1), (1, 3))
    )
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert value > 0


@pytest.mark.parametrize(
    ("name", "layer"), [("bart", "model.decoder.layers.1.self_attn"), ("t5", "decoder.block.1.layer.0")]
)
def test_a_decoder_is_compared_at_its_own_tokens(name, layer):
    student, inputs = made(name, **{"dropout_rate" if name == "t5" else "dropout": 0.0})
    teacher = copy.deepcopy(student)
    student.train()
    for parameter in teacher.parameters():
        parameter.data.mul_(1.2)
    inputs["decoder_attention_mask"] = torch.ones_like(inputs["decoder_input_ids"])
    inputs["decoder_attention_mask"][0, -2:] = 0
    value = mean_of(student, teacher, AttentionMatrixLoss(layer, layer, kind="probabilities"), inputs)
    attentions = []
    for network in (student, teacher):
        network.set_attn_implementation("eager")
        with torch.no_grad():
            attentions.append(network.eval()(**inputs, output_attentions=True).decoder_attentions[1])
    mask = inputs["decoder_attention_mask"]
    expected = attention_matrix_loss(*attentions, kind="probabilities", mask=mask)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert value > 0
    assert not torch.isclose(expected, attention_matrix_loss(*attentions, kind="probabilities"), rtol=1e-3)


def test_scores_of_a_fit_are_those_of_queries_and_keys():
    student, teacher, inputs, _ = pair("bert")
    layer = "bert.encoder.layer.0"
    value = mean_of(student, teacher, AttentionMatrixLoss(layer, layer), inputs)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        scores = []
        for network in (student.eval(), teacher):
            x = network.bert.embeddings(inputs["input_ids"])
            own = network.bert.encoder.layer[0].attention.self
            q, k = (
                part(x).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2) for part in (own.query, own.key)
            )
            scores.append(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5)
    squares = [(scores[0][i] - scores[1][i])[:, real[i]][:, :, real[i]].square().mean(0).flatten() for i in range(2)]
    assert value == pytest.approx(torch.cat(squares).mean().item(), rel=1e-5)


def test_what_is_read_is_before_the_dropout():
    student, teacher, inputs, _ = pair("bert")
    layer, loss = "bert.encoder.layer.0", partial(AttentionMatrixLoss, kind="probabilities")
    still = mean_of(student, teacher, loss(layer, layer), inputs)
    for block in student.bert.encoder.layer:
        block.attention.self.dropout.p = 0.5
    assert mean_of(student, teacher, loss(layer, layer), inputs) == pytest.approx(still, rel=1e-6)


def test_a_step_is_that_of_the_gradient_by_hand():
    student, teacher, inputs, layers = pair("llama", "eager")
    by_hand = copy.deepcopy(student).train()
    theirs = told_by(copy.deepcopy(teacher), inputs)
    ours = by_hand(**inputs, output_attentions=True).attentions
    pairs = ((0, 1), (1, 3))
    mask = inputs["attention_mask"]
    sum(attention_matrix_loss(ours[s], theirs[t], kind="probabilities", mask=mask) for s, t in pairs).backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
    for checkpointing in (False, True):
        learner = copy.deepcopy(student)
        if checkpointing:
            learner.activation_checkpointing_enable({"use_reentrant": False})
        loss = AttentionMatrixLoss(*layers, kind="probabilities")
        fitted(DistillationModule(learner, teacher, [loss], optimizer=partial(torch.optim.SGD, lr=0.5)), inputs)
        for one, other in zip(learner.parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", FITTED)
def test_relations_of_a_block_are_those_of_what_its_attention_gets(name):
    student, teacher, inputs, layers = pair(name)
    relations = {"QQ": 1.0, "VV": 0.5}
    loss = QKVRelationLoss(layers[0][1], layers[1][1], relation_heads=4, relations=relations)
    value = mean_of(student, teacher, loss, inputs)
    given = []
    for network, layer in ((student, layers[0][1]), (teacher, layers[1][1])):
        parts = [captured(network.eval(), inputs, part)[0] for part in ("queries", "keys", "values")]
        given.append([next(v for n, v in part.items() if n.startswith(f"{layer}.")) for part in parts])
    if name == "bert":  # the projections themselves
        x = teacher(**inputs, output_hidden_states=True).hidden_states[3]
        torch.testing.assert_close(given[1][0], teacher.bert.encoder.layer[3].attention.self.query(x))
    expected = qkv_relation_loss(*given, mask=inputs["attention_mask"], relation_heads=4, relations=relations)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert value > 0


def test_hidden_states_are_read_of_blocks_and_embeddings():
    student, teacher, inputs, _ = pair("bert")
    layers = ["bert.embeddings", "bert.encoder.layer.1"]
    value = mean_of(student, teacher, HiddenStateLoss(layers, ["bert.embeddings", "bert.encoder.layer.3"]), inputs)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = (net.eval()(**inputs, output_hidden_states=True).hidden_states for net in (student, teacher))
    expected = sum((ours[s] - theirs[t])[real].square().mean() for s, t in ((0, 0), (2, 4)))
    assert value == pytest.approx(expected.item(), rel=1e-5)


class UsersModule(LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return self.net(**batch).logits.sum() * 0.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def test_the_callback_trains_alike():
    student, teacher, inputs, layers = pair("llama")
    other = copy.deepcopy(student)
    loss = partial(AttentionMatrixLoss, *layers, kind="probabilities")
    fitted(DistillationModule(student, teacher, [loss()], optimizer=partial(torch.optim.SGD, lr=0.5)), inputs)
    fitted(UsersModule(other), inputs, callbacks=[DistillationCallback(teacher, [loss()])])
    for one, two in zip(student.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


# --- what is left in the models -------------------------------------------------------------------------------------


def own_configs(network):
    return all(vars(part)["config"] is network.config for part in network.modules() if "config" in vars(part))


def test_only_the_named_blocks_are_watched_and_nothing_is_left_after_the_fit():
    student, teacher, inputs, layers = pair("llama")
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, *_):
            seen.extend(vars(layer.self_attn)["config"] is teacher.config for layer in teacher.model.layers)

        def on_train_batch_end(self, trainer, module, *_):
            clone = copy.deepcopy(student)
            without_captures(clone)
            seen.append(own_configs(clone))
            again = pickle.loads(pickle.dumps(student))
            with torch.no_grad():
                expected = student(**inputs).logits
                seen.append(torch.equal(clone(**inputs).logits, expected))
                seen.append(torch.equal(again(**inputs).logits, expected))

    loss = AttentionMatrixLoss(*layers, kind="probabilities")
    fitted(DistillationModule(student, teacher, [loss]), inputs, callbacks=[Look()])
    assert seen == [True, False, True, False, True, True, True]
    assert own_configs(student)
    assert own_configs(teacher)


def test_an_error_in_the_fit_leaves_nothing_in_the_models():
    student, teacher, inputs, layers = pair("llama")

    class Stop(Callback):
        def on_train_batch_end(self, *_):
            raise OSError("the loader has ended")

    loss = AttentionMatrixLoss(*layers, kind="probabilities")
    with pytest.raises(OSError, match="the loader has ended"):
        fitted(DistillationModule(student, teacher, [loss]), inputs, callbacks=[Stop()])
    assert own_configs(student)
    assert own_configs(teacher)


def test_two_readers_of_one_attention_leave_one_after_another():
    network, inputs = made("llama")
    first, second = (Capture(network, [place_of("scores", "model.layers.1")], role) for role in ("student", "teacher"))
    first.attach()
    second.attach()
    with torch.no_grad(), first.recording() as one, second.recording() as two:
        network(**inputs)
        first.check_ran(one)
        second.check_ran(two)
    assert torch.equal(*one.features.values(), *two.features.values())
    first.detach()
    assert not own_configs(network)
    second.detach()
    assert own_configs(network)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "words"),
    [
        ("bloom", "transformer.h.1", "'transformer.h.1' has no attention that goes through"),
        ("falcon", "transformer.h.1", "'transformer.h.1' has no attention that goes through"),
        ("deberta", "deberta.encoder.layer.1", "'deberta.encoder.layer.1' has no attention that goes through"),
        ("albert", "albert.encoder.albert_layer_groups.0.albert_layers.0", "ran more than once"),
        ("gpt oss", "model.layers.1", "its attention takes 's_aux' besides"),
        ("bart", "model.decoder.layers.1", r"has 2 attentions.*layers.1.self_attn, .*layers.1.encoder_attn"),
        ("bart", "model.decoder.layers.1.encoder_attn", "attends from the decoder's tokens to the encoder's"),
        ("t5", "decoder.block.1.layer.1", "attends from the decoder's tokens to the encoder's"),
        ("llama", "model.layers", r"has 4 attentions.*model.layers.3.self_attn"),
        ("llama", "model.layers.1.mlp", "'model.layers.1.mlp' has no attention"),
        ("llama", "model.layers.9", "no layer 'model.layers.9'"),
    ],
)
def test_attention_that_cannot_be_read_is_refused_in_words(name, layer, words):
    backend = "eager" if name in NOT_SERVED else "sdpa"
    student, inputs = made(name, backend)
    student.train()
    with pytest.raises((ValueError, RuntimeError), match=words):
        mean_of(student, copy.deepcopy(student), AttentionMatrixLoss(layer, layer, kind="probabilities"), inputs)


@pytest.mark.parametrize(("name", "layer"), [("bloom", "transformer.h.1"), ("deberta", "deberta.encoder.layer.1")])
def test_relations_that_cannot_be_read_are_refused_in_words(name, layer):
    student, inputs = made(name, "eager")
    loss = QKVRelationLoss(layer, layer, relation_heads=2, relations={"VV": 1.0})
    with pytest.raises(ValueError, match=f"{layer}' has no attention that goes through"):
        mean_of(student.train(), copy.deepcopy(student), loss, inputs)


def test_a_backend_that_shows_nothing_is_refused_in_words():
    student, teacher, inputs, layers = pair("llama")
    for network in (student, teacher):
        network.config._attn_implementation = "flex_attention"
    with pytest.raises(
        ValueError, match=r"student's 'model.layers.0' computes its attention by 'flex_attention'.*sdpa"
    ):
        mean_of(student, teacher, AttentionMatrixLoss(*layers), inputs)


@pytest.mark.parametrize("relation_heads", [1, 2, 4])
@pytest.mark.parametrize("relation", ["QQ", "KK", "VV"])
def test_relations_do_not_depend_on_the_side_of_the_padding(relation, relation_heads):
    """Rotary positions turn queries and keys: over other heads than the attention's a relation depends on them."""

    def llama(seed):
        torch.manual_seed(seed)
        sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "initializer_range": 0.5}
        counts = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
        return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **counts))

    loss = partial(QKVRelationLoss, "last", relation_heads=relation_heads, relations={relation: 1.0})
    found = []
    for first in ([7, 5, 9, 0, 0], [0, 0, 7, 5, 9]):
        ids = torch.tensor([first, [3, 8, 2, 11, 6]])
        inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        found.append(mean_of(llama(0), llama(1), loss(), inputs))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
