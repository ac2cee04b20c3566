"""A student cut from its teacher computes what the teacher would with the other layers left out."""

import copy

import pytest
import torch
import transformers as hf
from torch import nn

from lightning_kd.hf import student_from_teacher
from lightning_kd.hf.cut import find_stacks, kept_layers
from tests.ecosystem import zoo

IDS = {"input_ids": torch.tensor([[5, 9, 3, 7, 2, 11], [6, 4, 8, 12, 3, 9]])}
BOTH = IDS | {"decoder_input_ids": torch.tensor([[2, 6, 4], [2, 5, 9]])}
SOUND = {"input_features": torch.linspace(-1, 1, 160).reshape(2, 4, 20), "decoder_input_ids": BOTH["decoder_input_ids"]}
IMAGES = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64).sin()}
WIDE = zoo.WIDE | {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
TEXT = WIDE | {"vocab_size": 50, "pad_token_id": 0}
GROUPED = TEXT | {"num_key_value_heads": 1, "head_dim": 8}
SIDES = {"vocab_size": 50, "d_model": 16, "encoder_layers": 4, "decoder_layers": 4, "pad_token_id": 0}
SIDES |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
STARTS = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
DISTIL = {"vocab_size": 50, "dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32}
GPT = {"vocab_size": 50, "n_embd": 16, "n_layer": 4, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
BLOOM = {"vocab_size": 50, "hidden_size": 16, "n_layer": 4, "n_head": 2}
FALCON = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
OPT = TEXT | {"word_embed_proj_dim": 16, "ffn_dim": 16}
SOUNDS = SIDES | STARTS | {"num_mel_bins": 4, "max_source_positions": 10, "max_target_positions": 10}
ATTENDED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 3}

# architecture: the class, the configuration, the inputs
NETWORKS = {
    "bert": ("BertForMaskedLM", "BertConfig", TEXT, IDS),
    "bert classifier": ("BertForSequenceClassification", "BertConfig", TEXT, IDS),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig", DISTIL, IDS),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", TEXT, IDS),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", TEXT | {"embedding_size": 16}, IDS),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT, IDS),
    "opt": ("OPTForCausalLM", "OPTConfig", OPT, IDS),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, IDS),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED, IDS),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED, IDS),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED, IDS),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GROUPED, IDS),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GROUPED | ATTENDED, IDS),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", GROUPED | ATTENDED, IDS),
    "phi": ("PhiForCausalLM", "PhiConfig", TEXT, IDS),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GROUPED | {"eos_token_id": 2, "bos_token_id": 1}, IDS),
    "cohere": ("CohereForCausalLM", "CohereConfig", GROUPED | {"eos_token_id": 2, "bos_token_id": 1}, IDS),
    "granite": ("GraniteForCausalLM", "GraniteConfig", GROUPED, IDS),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", GROUPED | {"num_local_experts": 2}, IDS),
    "bloom": ("BloomForCausalLM", "BloomConfig", BLOOM, IDS),
    "falcon": ("FalconForCausalLM", "FalconConfig", FALCON, IDS),
    "bart": ("BartForConditionalGeneration", "BartConfig", SIDES | STARTS, BOTH),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", SOUNDS, SOUND),
    "vit": ("ViTForImageClassification", "ViTConfig", WIDE | zoo.PATCHES, IMAGES),
    "deit": ("DeiTForImageClassification", "DeiTConfig", WIDE | zoo.PATCHES, IMAGES),
}


def made(name):
    kind, config, sizes, inputs = NETWORKS[name]
    torch.manual_seed(0)
    network = getattr(hf, kind)(getattr(hf, config)(**sizes))
    for parameter in network.parameters():  # weights of a size that a wrong layer shows
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network.eval(), inputs


def logits(network, inputs):
    with torch.no_grad():
        return network.eval()(**inputs).logits


def without_others(teacher, keep):
    """The teacher with the other layers taken out by hand."""
    short = copy.deepcopy(teacher)
    config = short.config
    for stack in find_stacks(short, config):
        parent = short.get_submodule(stack.name.rpartition(".")[0])
        setattr(parent, stack.name.rpartition(".")[2], nn.ModuleList([stack.layers[i] for i in keep]))
        for count in stack.counts:
            setattr(config, getattr(config, "attribute_map", {}).get(count, count), len(keep))
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in keep]
    for number, layer in enumerate(stack.layers[i] for stack in find_stacks(short, config) for i in range(len(keep))):
        for part in layer.modules():
            if isinstance(getattr(part, "layer_idx", None), int):
                part.layer_idx = number % len(keep)
    return short


@pytest.mark.parametrize("name", NETWORKS)
def test_the_student_is_the_teacher_without_the_other_layers(name, tmp_path):
    teacher, inputs = made(name)
    before = torch.get_rng_state()
    student = student_from_teacher(teacher, layers=[1, 3])
    assert torch.equal(torch.get_rng_state(), before)
    assert student.training
    assert {id(p) for p in student.parameters()}.isdisjoint(id(p) for p in teacher.parameters())
    expected = logits(without_others(teacher, [1, 3]), inputs)
    assert (expected - logits(teacher, inputs)).abs().max() > 1e-3
    torch.testing.assert_close(logits(student, inputs), expected, rtol=0.0, atol=0.0)
    whole = student_from_teacher(teacher, layers=4)
    torch.testing.assert_close(logits(whole, inputs), logits(teacher, inputs), rtol=0.0, atol=0.0)
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, inputs), expected, rtol=0.0, atol=0.0)


def test_which_layers():
    assert kept_layers(3, 12, "model") == [3, 7, 11]
    assert kept_layers(4, 6, "model") == [1, 2, 4, 5]  # round(1.5) - 1 is 1: halves go up
    assert kept_layers(1, 5, "model") == [4]
    for wrong in (0, 5, True, [], [0, 4], [1, 0], [1, 1], [-1]):
        with pytest.raises(ValueError, match="student_from_teacher: expected"):
            kept_layers(wrong, 4, "model")


def test_what_the_teacher_was_made_without_is_left_out():
    torch.manual_seed(0)
    teacher = hf.BertModel(hf.BertConfig(**TEXT), add_pooling_layer=False).eval()
    student = student_from_teacher(teacher, [0, 3]).eval()
    assert student.pooler is None
    assert not [name for name in student.state_dict() if "pooler" in name]
    teacher.encoder.layer = nn.ModuleList([teacher.encoder.layer[0], teacher.encoder.layer[3]])
    assert torch.equal(student(**IDS).last_hidden_state, teacher(**IDS).last_hidden_state)


def test_each_side_its_own():
    teacher, inputs = made("bart")
    student = student_from_teacher(teacher, layers={"decoder": [0, 2]})
    assert (student.config.encoder_layers, student.config.decoder_layers) == (4, 2)
    assert len(student.model.encoder.layers) == 4
    assert torch.equal(student.model.decoder.layers[1].fc1.weight, teacher.model.decoder.layers[2].fc1.weight)
    logits(student, inputs)
    with pytest.raises(ValueError, match=r"expected the layers of \['decoder', 'encoder'\], got those of \['sid"):
        student_from_teacher(teacher, layers={"side": 2})


def t5():
    config = hf.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=4, num_heads=2, pad_token_id=0)
    torch.manual_seed(0)
    return hf.T5ForConditionalGeneration(config).eval()


def modernbert():
    torch.manual_seed(0)
    return hf.ModernBertForMaskedLM(hf.ModernBertConfig(**TEXT, cls_token_id=1, sep_token_id=2)).eval()


@pytest.mark.parametrize(("make", "inputs"), [(t5, BOTH), (modernbert, IDS)])
def test_layer_0_is_kept_where_it_is_unlike_the_others(make, inputs):
    teacher = make()
    with pytest.raises(ValueError, match=r"would have no (source|place).*keep layer 0 first, such as layers=\[0"):
        student_from_teacher(teacher, layers=[1, 3])
    student = student_from_teacher(teacher, layers=[0, 2])
    expected = logits(without_others(teacher, [0, 2]), inputs)
    torch.testing.assert_close(logits(student, inputs), expected, rtol=0.0, atol=0.0)


def test_stages_are_refused():
    with pytest.raises(ValueError, match=r"not alike, as stages are not: .* has the shape"):
        student_from_teacher(zoo.of_transformers("swin")[0], layers=[0, 2])


def test_other_networks_are_refused():
    with pytest.raises(TypeError, match="but Linear is not one"):
        student_from_teacher(nn.Linear(2, 2), layers=1)


def test_a_layer_that_would_compute_otherwise_is_refused():
    config = hf.GPT2Config(**GPT, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ValueError, match="scales attention by a layer's number"):
        student_from_teacher(hf.GPT2LMHeadModel(config), layers=[1, 3])


def test_a_layer_that_keeps_what_follows_of_its_number_is_refused():
    class Numbered(hf.LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            for number, layer in enumerate(self.model.layers):
                layer.residual_add_idx = 2 * (number + 1)  # as Beam scales its residual branches

    with pytest.raises(ValueError, match=r"layer 3 .* as layer 1 .*residual_add_idx.*from_config"):
        student_from_teacher(Numbered(hf.LlamaConfig(**GROUPED)), layers=[0, 3])
    student_from_teacher(Numbered(hf.LlamaConfig(**GROUPED)), layers=[0, 1])  # the same numbers


def test_a_decoder_alone_is_counted_by_its_own_entry():
    teacher = hf.BartForCausalLM(hf.BartConfig(**SIDES | STARTS | {"decoder_layers": 5})).eval()
    student = student_from_teacher(teacher, layers=[0, 4]).eval()
    assert student.config.decoder_layers == 2
    for number in (1, 2, 3):
        teacher.model.decoder.layers[number].register_forward_hook(
            lambda module, args, output: (args[0], *output[1:]) if isinstance(output, tuple) else args[0]
        )
    options = {"input_ids": IDS["input_ids"], "use_cache": False}
    with torch.no_grad():
        torch.testing.assert_close(student(**options).logits, teacher(**options).logits)
