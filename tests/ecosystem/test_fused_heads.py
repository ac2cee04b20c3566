"""Output layers inside the loss, on the models of Hugging Face: values and gradients are those of whole logits."""

from functools import partial

import peft
import pytest
import torch
import transformers as hf
from torch.utils.data import DataLoader

from lightning_kd import DistillationModule
from lightning_kd.losses import SparseLogits, TokenKDLoss
from lightning_kd.losses.tokens import token_kd
from lightning_kd.teachers import BatchTeacher
from tests import support

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
VOCABULARY = 64
MARKS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STACKS = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
SOUND = {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 20}


def causal(family, width, **options):
    options = {"vocab_size": VOCABULARY, **options}
    if family not in ("OPT", "Phi", "GPT2"):
        options["num_key_value_heads"] = 2
    config = {"hidden_size": width, **LAYERS, **MARKS, **options}
    return getattr(hf, f"{family}ForCausalLM")(getattr(hf, f"{family}Config")(**config))


def masked(family, width, **options):
    config = {"vocab_size": VOCABULARY, "hidden_size": width, **LAYERS, **MARKS, **options}
    return getattr(hf, f"{family}ForMaskedLM")(getattr(hf, f"{family}Config")(**config))


def gpt2(width):
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCABULARY, n_embd=width, n_layer=2, n_head=2, **still, **MARKS))


def opt(width):
    return causal("OPT", width, word_embed_proj_dim=width, ffn_dim=48, dropout=0.0)


def distilbert(width):
    sizes = {"dim": width, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "dropout": 0.0, "attention_dropout": 0.0}
    return hf.DistilBertForMaskedLM(hf.DistilBertConfig(vocab_size=VOCABULARY, **sizes))


def t5(width, **options):
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    marks = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    return hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=VOCABULARY, **sizes, **marks, **options))


def bart(width):
    config = hf.BartConfig(
        vocab_size=VOCABULARY, d_model=width, dropout=0.0, decoder_start_token_id=2, **STACKS, **MARKS
    )
    made = hf.BartForConditionalGeneration(config)
    made.final_logits_bias.normal_()
    return made


def whisper(width):
    config = hf.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=width,
        dropout=0.0,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **STACKS,
        **SOUND,
        **MARKS,
    )
    return hf.WhisperForConditionalGeneration(config)


def lora(width, *targets):
    made = causal("Llama", width)
    if width == 16:
        return made
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=list(targets), init_lora_weights=False)
    return peft.get_peft_model(made, config)


MODELS = {
    "llama": partial(causal, "Llama"),
    "qwen2, tied": partial(causal, "Qwen2", tie_word_embeddings=True),
    "gemma2, capped": partial(causal, "Gemma2", head_dim=8, final_logit_softcapping=2.0),
    "cohere, scaled": partial(causal, "Cohere", logit_scale=0.3),
    "granite, divided": partial(causal, "Granite", logits_scaling=3.0),
    "gpt2": gpt2,
    "opt": opt,
    "phi, bias": partial(causal, "Phi", resid_pdrop=0.0),
    "mixtral": partial(causal, "Mixtral", num_local_experts=4),
    "bert": partial(masked, "Bert", **STILL),
    "roberta": partial(masked, "Roberta", **STILL),
    "distilbert": distilbert,
    "modernbert": partial(masked, "ModernBert", cls_token_id=1, sep_token_id=2),
    "t5, scaled": t5,
    "t5, untied": partial(t5, tie_word_embeddings=False),
    "bart, bias": bart,
    "whisper": whisper,
    "lora": lambda width: lora(width, "q_proj", "v_proj"),
    "lora of the head": lambda width: lora(width, "q_proj", "lm_head"),
}
SINGLE = ("mixtral",)
"""Whose own code runs in 32 bits only."""


def batch(name):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (3, 7), generator=generator)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = mask[2, 5:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, 0] = -100
    if "bert" in name:
        labels[:, ::2] = -100
    if name == "whisper":
        return {"input_features": torch.randn(3, 8, 20, generator=generator), "labels": labels}
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Recording(DistillationModule):
    """Keeps the gradients of a step."""

    def on_before_optimizer_step(self, _):
        self.gradients = {n: p.grad.clone() for n, p in self.student.named_parameters() if p.grad is not None}


def stepped(name, loss, *, dtype=torch.float64, precision="64-true", prepare=lambda student: None, size=1, stored=None):
    networks = [support.seeded(lambda width=width: MODELS[name](width), width).to(dtype) for width in (32, 16)]
    for network in networks:  # as drawn they hardly tell tokens apart
        for parameter in network.parameters():
            if parameter.ndim > 1 and parameter.shape[0] != VOCABULARY:
                parameter.data.mul_(4)
    prepare(networks[0])
    data = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch(name).items()}
    if stored is not None:
        networks[1] = stored
    module = Recording(*networks, [loss], optimizer=partial(torch.optim.SGD, lr=0.1))
    loader = DataLoader([data] * size, batch_size=None)
    trainer = support.trainer(max_epochs=1, limit_val_batches=0, precision=precision)
    trainer.fit(module, loader, loader)
    return module, {key: float(value) for key, value in module.run.log.epoch_means.items()}


@pytest.fixture
def fused(monkeypatch):
    """How often the loss worked on hidden states."""
    calls = []
    work = token_kd.fused_sum

    def counted(*args, **options):
        calls.append(options["memory"])
        return work(*args, **options)

    monkeypatch.setattr(token_kd, "fused_sum", counted)
    return calls


def same(name, found, expected, tolerance):
    (module, values), (whole, wanted) = found, expected
    assert values == pytest.approx(wanted, rel=max(tolerance, 1e-6))  # a log is of 32 bits
    assert module.gradients.keys() == whole.gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in whole.gradients.values())
    assert largest > 1e-4
    for key, gradient in whole.gradients.items():
        difference = float((module.gradients[key] - gradient).abs().max())
        assert difference <= tolerance * largest, (name, key)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_that_of_whole_logits(name, fused):
    wide = name not in SINGLE
    options = {"dtype": torch.float64, "precision": "64-true"} if wide else {"dtype": torch.float32, "precision": None}
    loss = partial(TokenKDLoss, "jsd" if "bert" in name else "forward_kl", cross_entropy=0.5)
    whole = stepped(name, loss(fused=False), **options)
    assert not fused
    for memory in ("save", "recompute"):
        found = stepped(name, loss(fused=True, memory=memory), **options)
        assert fused.pop() == memory
        same(name, found, whole, 1e-10 if wide else 1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2, capped", "bert", "t5, scaled"])
def test_in_32_bits(name, fused):
    options = {"dtype": torch.float32, "precision": None}
    found, whole = (stepped(name, TokenKDLoss("reverse_kl", fused=f), **options) for f in (True, False))
    assert fused == ["save"]
    same(name, found, whole, 1e-5)


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "bart, bias", "lora"])
def test_gradient_checkpointing_changes_nothing(name, memory, fused):
    def checkpointed(student):
        student.gradient_checkpointing_enable({"use_reentrant": False})

    whole = stepped(name, TokenKDLoss(fused=False))
    same(name, stepped(name, TokenKDLoss(fused=True, memory=memory), prepare=checkpointed), whole, 1e-10)
    assert fused == [memory]


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("name", ["llama", "gemma2, capped", "mixtral", "bert", "t5, scaled", "lora of the head"])
def test_16_bits_are_finite_and_near(name, memory, fused):
    options = {"dtype": torch.float32, "precision": "bf16-mixed"}
    (module, values), (whole, wanted) = (
        stepped(name, TokenKDLoss(**one, cross_entropy=0.5), **options)
        for one in ({"fused": True, "memory": memory}, {"fused": False})
    )
    assert fused == [memory]
    assert values["loss"] == pytest.approx(wanted["loss"], rel=2e-2)
    ours, theirs = (torch.cat([g.flatten() for g in one.gradients.values()]) for one in (module, whole))
    assert ours.isfinite().all()
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.98


class Bent(hf.LlamaForCausalLM):
    """Does to its logits what nothing tells."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.sin()
        return output


def test_what_cannot_be_followed_works_on_whole_logits_and_says_so(fused, monkeypatch):
    said = []
    monkeypatch.setattr("lightning_kd.engine.fused_heads.rank_zero_info", said.append)
    monkeypatch.setattr("lightning_kd.engine.fused_heads._SMALL", VOCABULARY)
    monkeypatch.setattr(hf, "LlamaForCausalLM", Bent)
    stepped("llama", TokenKDLoss(shift=True))
    assert not fused
    assert said == ["TokenKDLoss works on whole logits: the student's output is another than that of its output layer."]


@pytest.mark.parametrize("name", ["llama", "t5, scaled", "whisper"])
def test_it_is_chosen_by_itself_and_nothing_is_left_in_the_networks(name, fused, monkeypatch):
    monkeypatch.setattr("lightning_kd.engine.fused_heads._SMALL", VOCABULARY)
    module, _ = stepped(name, TokenKDLoss(), size=2)
    assert fused == ["save"] * 2
    data = batch(name)
    data = {key: value.double() if value.is_floating_point() else value for key, value in data.items()}
    output = module.student(**data)
    assert output.logits.shape == (3, 7, VOCABULARY)
    assert output.loss.isfinite()
    assert not any(part._forward_pre_hooks for part in module.student.modules())


def padded(monkeypatch, name, *, student=0, teacher=0):
    """Give a model a vocabulary that is padded to another size."""
    make = MODELS[name]

    def with_more(width):
        more = student if width == 32 else teacher
        made = make(width)
        if more:
            made.resize_token_embeddings(VOCABULARY + more, mean_resizing=False)
            if getattr(made, "final_logits_bias", None) is not None:
                made.final_logits_bias.normal_()
        return made

    monkeypatch.setitem(MODELS, name, with_more)


@pytest.mark.parametrize("more", [{"student": 3}, {"teacher": 64}])
@pytest.mark.parametrize("name", ["llama", "qwen2, tied", "gemma2, capped", "phi, bias", "bert", "bart, bias"])
def test_vocabularies_that_are_padded_to_other_sizes(name, more, fused, monkeypatch):
    padded(monkeypatch, name, **more)
    loss = partial(TokenKDLoss, vocab="truncate", cross_entropy=0.5)
    whole = stepped(name, loss(fused=False))
    for memory in ("save", "recompute"):
        same(name, stepped(name, loss(fused=True, memory=memory), dtype=torch.float64), whole, 1e-10)
        assert fused.pop() == memory
    with pytest.raises(ValueError, match=r"only padded to another size, say vocab='truncate'"):
        stepped(name, TokenKDLoss())


@pytest.mark.parametrize("more", [{"student": 3}, {"teacher": 64}])
def test_such_vocabularies_with_adapters_on_the_head(more, fused, monkeypatch):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["lm_head"], init_lora_weights=False)
    monkeypatch.setitem(
        MODELS,
        "lora of the head",
        lambda width: (
            peft.get_peft_model(causal("Llama", width, vocab_size=VOCABULARY + more.get("student", 0)), config)
            if width == 32
            else causal("Llama", width, vocab_size=VOCABULARY + more.get("teacher", 0))
        ),
    )
    loss = partial(TokenKDLoss, vocab="truncate", cross_entropy=0.5)
    found, whole = (stepped("lora of the head", loss(fused=f)) for f in (True, False))
    assert fused == ["save"]
    same("lora of the head", found, whole, 1e-10)


@pytest.mark.parametrize("name", ["llama", "gemma2, capped", "phi, bias", "bert", "t5, scaled", "lora of the head"])
def test_a_few_tokens_of_a_stored_teacher(name, monkeypatch):
    teacher = support.seeded(lambda: MODELS[name](16), 16).double().eval()
    with torch.no_grad():
        kept = SparseLogits.top_k(4 * teacher(**batch(name)).logits, 5)
    given = batch(name) | {"ids": kept.ids, "values": kept.log_probs}
    monkeypatch.setitem(globals(), "batch", lambda _: given)
    seen = []
    work = token_kd.fused_sparse_sum
    monkeypatch.setattr(token_kd, "fused_sparse_sum", lambda *a, **o: seen.append(o["memory"]) or work(*a, **o))
    loss = partial(TokenKDLoss, "jsd", missing="tail", cross_entropy=0.5)
    stored = BatchTeacher(ids="ids", log_probs="values")
    whole = stepped(name, loss(fused=False), stored=stored)
    for memory in ("save", "recompute"):
        same(name, stepped(name, loss(fused=True, memory=memory), stored=stored), whole, 1e-10)
        assert seen.pop() == memory
    narrow = {"dtype": torch.float32, "precision": "bf16-mixed", "stored": stored}
    module, _ = stepped(name, loss(fused=True), **narrow)
    assert all(gradient.isfinite().all() for gradient in module.gradients.values())
