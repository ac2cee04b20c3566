"""A network of two towers, one for text and one for images: the mask of the text is none of the image's patches."""

import pytest
import torch
import transformers as hf

from lightning_kd.losses import AttentionMatrixLoss, HiddenStateLoss
from tests import support

PARTS = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
TEXT = {"vocab_size": 60, "max_position_embeddings": 32, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}


def clip(depth, seed):
    torch.manual_seed(seed)
    depths = {"num_hidden_layers": depth}
    images = {"image_size": 16, "patch_size": 8}  # four patches and a class token
    config = hf.CLIPConfig(
        text_config={**PARTS, **TEXT, **depths}, vision_config={**PARTS, **images, **depths}, projection_dim=8
    )
    return hf.CLIPModel(config)


def batch(tokens):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (4, tokens), generator=generator)
    mask = (torch.arange(tokens) < torch.tensor([[2], [3], [tokens], [tokens - 1]])).long()
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "pixel_values": torch.randn(4, 3, 16, 16, generator=generator),
    }


def hidden(net, name, given):
    kept = []
    handle = net.get_submodule(name).register_forward_hook(
        lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        net.eval()(**given)
    handle.remove()
    return kept[0].double()


@pytest.mark.filterwarnings("ignore:val/.* is left out", "ignore:The loss.*is frozen")
@pytest.mark.parametrize("tokens", [5, 7])
@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
def test_the_mask_of_the_text_hides_no_patches(tower, tokens):
    student, teacher, given = clip(1, 1), clip(2, 2), batch(tokens)
    names = [f"{tower}.encoder.layers.{i}" for i in (0, 1)]
    still = {"optimizer": lambda weights: torch.optim.SGD(weights, lr=0.0)}
    module = support.module(student, teacher=teacher, losses=[HiddenStateLoss(*names)], task_loss=None, **still)
    support.trainer(max_epochs=1, limit_val_batches=0).fit(module, support.batches(given), support.batches(given))
    ours, theirs = hidden(student, names[0], given), hidden(teacher, names[1], given)
    real = given["attention_mask"].bool() if tower == "text_model" else torch.ones(4, 5, dtype=torch.bool)
    right = (ours - theirs)[real].square().mean()
    found = module.trainer.callback_metrics["train/hidden_state"]
    torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=0.0)


@pytest.mark.filterwarnings("ignore:val/.* is left out", "ignore:The loss.*is frozen")
@pytest.mark.parametrize("tokens", [5, 7])
def test_the_mask_of_the_text_hides_no_attention_of_patches(tokens):
    student, teacher, given = clip(1, 1), clip(2, 2), batch(tokens)
    for net in (student, teacher):
        net.set_attn_implementation("eager")
    loss = AttentionMatrixLoss("vision_model.encoder.layers.0", "vision_model.encoder.layers.1", kind="probabilities")
    still = {"optimizer": lambda weights: torch.optim.SGD(weights, lr=0.0)}
    module = support.module(student, teacher=teacher, losses=[loss], task_loss=None, **still)
    support.trainer(max_epochs=1, limit_val_batches=0).fit(module, support.batches(given), support.batches(given))
    with torch.no_grad():
        images = {"pixel_values": given["pixel_values"], "output_attentions": True}
        ours = student.eval().vision_model(**images).attentions[0].double()
        theirs = teacher.eval().vision_model(**images).attentions[1].double()
    found = module.trainer.callback_metrics["train/attention_matrix"].double()
    torch.testing.assert_close(found, (ours - theirs).square().mean(), rtol=1e-4, atol=0.0)
