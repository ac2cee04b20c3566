"""Small networks of Hugging Face, without downloads, and what to call them with."""

import torch
import transformers as hf

CLASSES = 3
IMAGES = torch.randn(2, 3, 64, 64)
IDS = torch.randint(1, 40, (2, 9))
WIDE = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 64}
STAGES = {"hidden_sizes": [8, 16, 32, 64]}
PATCHES = {"image_size": 64, "patch_size": 16}
WINDOWS = {"image_size": 64, "patch_size": 2, "embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}
HEADS = {"num_attention_heads": [1, 1, 2, 4]}

_IMAGE = {
    "vit": ("ViT", WIDE | PATCHES),
    "deit": ("DeiT", WIDE | PATCHES),
    "beit": ("Beit", WIDE | PATCHES),
    "dinov2": ("Dinov2", WIDE | PATCHES),
    "swin": ("Swin", WINDOWS | {"window_size": 4}),
    "convnext": ("ConvNext", STAGES | {"depths": [1, 1, 3, 1]}),
    "resnet": ("ResNet", STAGES | {"depths": [1, 1, 3, 1], "embedding_size": 8}),
    "regnet": ("RegNet", STAGES | {"depths": [1, 1, 3, 1], "embedding_size": 8, "groups_width": 8}),
    "pvt": ("Pvt", STAGES | HEADS | {"depths": [1, 1, 1, 1], "image_size": 64}),
}
_TEXT = {
    "bert": ("Bert", WIDE),
    "roberta": ("Roberta", WIDE),
    "electra": ("Electra", WIDE),
    "distilbert": ("DistilBert", {"dim": 32, "n_layers": 6, "n_heads": 2, "hidden_dim": 64}),
}


def of_transformers(name, **options):
    """A network and its inputs by name."""
    if name in _IMAGE:
        family, sizes = _IMAGE[name]
        config = getattr(hf, f"{family}Config")(num_labels=CLASSES, **sizes | options)
        return getattr(hf, f"{family}ForImageClassification")(config), {"pixel_values": IMAGES}
    if name in _TEXT:
        family, sizes = _TEXT[name]
        config = getattr(hf, f"{family}Config")(vocab_size=50, num_labels=CLASSES, **sizes | options)
        return getattr(hf, f"{family}ForSequenceClassification")(config), {"input_ids": IDS}
    if name == "segformer":
        config = hf.SegformerConfig(num_labels=CLASSES, depths=[2, 2, 2, 2], **STAGES | HEADS | options)
        return hf.SegformerForSemanticSegmentation(config), {"pixel_values": IMAGES}
    tokens = {"bos_token_id": None, "eos_token_id": None}
    if name == "gpt2":
        config = hf.GPT2Config(vocab_size=50, n_embd=32, n_layer=6, n_head=2, **tokens | options)
        return hf.GPT2LMHeadModel(config), {"input_ids": IDS}
    if name == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=50, **WIDE | tokens | options)), {"input_ids": IDS}
    text = {
        "vocab_size": 50,
        "projection_dim": 16,
        "max_position_embeddings": 20,
        "bos_token_id": 0,
        "eos_token_id": 49,
    }
    config = hf.CLIPConfig(
        text_config=WIDE | text, vision_config=WIDE | PATCHES | {"projection_dim": 16}, projection_dim=16
    )
    return hf.CLIPModel(config), {"input_ids": IDS, "pixel_values": IMAGES}
