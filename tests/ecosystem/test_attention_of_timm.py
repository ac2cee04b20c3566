"""Attention of timm's and torchvision's vision transformers is read as their own code makes it by hand."""

import copy
import json
from functools import partial

import peft
import pytest
import timm
import torch
import torchvision
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.capture.attention import place_of
from lightning_kd.capture.attention_kinds import every_attention_in
from lightning_kd.capture.hooks import Capture
from lightning_kd.commands.fit import DistillationCLI
from lightning_kd.functional import attention_matrix_loss, qkv_relation_loss
from lightning_kd.losses import AttentionMatrixLoss, QKVRelationLoss
from tests import support

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": 4, "num_classes": 3}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
STEP = partial(torch.optim.SGD, lr=0.5)
VIT = partial(timm.models.VisionTransformer, **SIZES)
FAMILIES = {
    "vit": VIT,
    "deit": partial(timm.models.deit.VisionTransformerDistilled, **SIZES),
    "norms of queries and keys": partial(VIT, qk_norm=True),
    "registers": partial(VIT, reg_tokens=2, no_embed_class=True),
    "beit": partial(timm.models.Beit, **SIZES, use_rel_pos_bias=True, init_values=0.1),
    "eva": partial(timm.models.Eva, **SIZES, use_rot_pos_emb=True),
    "eva with one projection": partial(timm.models.Eva, **SIZES, use_rot_pos_emb=True, qkv_fused=False),
    "relative positions": partial(timm.models.VisionTransformerRelPos, **SIZES),
}


def made(name, depth=2, seed=0, **sizes):
    """A network with weights of a size that a wrong layer shows."""
    torch.manual_seed(seed)
    network = FAMILIES[name](depth=depth, **sizes)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.1, 0.2) if parameter.ndim > 1 else nn.init.uniform_(parameter, 0.5, 1.5)
    return network.eval()


def by_hand(network):
    """A copy that makes its matrices by hand, with the code of timm."""
    other = copy.deepcopy(network)
    for _, attention in every_attention_in(other):
        attention.fused_attn = False
    return other


def told(network):
    """Probabilities of every block, with gradients, as the code of timm makes them by hand."""
    found = []
    handles = [one.attn.attn_drop.register_forward_hook(lambda *call: found.append(call[2])) for one in network.blocks]
    network(IMAGES)
    for handle in handles:
        handle.remove()
    return found


def read(network, part="probabilities"):
    names = [name for name, _ in every_attention_in(network)]
    capture = Capture(network, [place_of(part, name) for name in names], "student")
    capture.attach()
    with torch.no_grad(), capture.recording() as call:
        logits = network(IMAGES)
        capture.check_ran(call)
    capture.detach()
    return list(call.features.values()), logits


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_is_what_the_network_makes_by_hand_and_the_logits_stay(name):
    network = made(name, depth=3)
    with torch.no_grad():
        plain, expected = network(IMAGES), told(by_hand(network))
    values, logits = read(network)
    assert torch.equal(logits, plain)
    assert len(values) == len(expected) == 3
    for value, other in zip(values, expected, strict=True):
        torch.testing.assert_close(value, other, atol=1e-6, rtol=1e-5)
    assert not any("forward" in vars(part) for part in network.modules())


def test_attention_of_torchvision_is_what_its_layers_tell():
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_dim": 16, "mlp_dim": 8}
    network = torchvision.models.VisionTransformer(image_size=16, patch_size=4, **sizes).eval()
    found = []
    for layer in network.encoder.layers:
        layer.ln_1.register_forward_hook(lambda *call: found.append(call[2]))
    with torch.no_grad():
        plain = network(IMAGES)
        layers = network.encoder.layers
        expected = [
            layer.self_attention(x, x, x, average_attn_weights=False)[1]
            for layer, x in zip(layers, list(found), strict=True)
        ]
    values, logits = read(network)
    assert torch.equal(logits, plain)
    for value, other in zip(values, expected, strict=True):
        torch.testing.assert_close(value, other, atol=1e-6, rtol=1e-5)


# --- in a fit ---------------------------------------------------------------------------------------------------------


class UsersModule(LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return 0.0 * first(self.net(batch[0])).sum()

    def configure_optimizers(self):
        return STEP(self.parameters())


def first(output):
    return output[0] if isinstance(output, tuple) else output


def fitted(student, teacher, loss, door="module"):
    """The mean of a fit of one step."""
    loader = DataLoader([(IMAGES, torch.tensor([0, 1]))], batch_size=None)
    if door == "module":
        module, callbacks = DistillationModule(student, teacher, [loss], optimizer=STEP), []
    else:
        module, callbacks = UsersModule(student), [DistillationCallback(teacher, [loss])]
    trainer = support.trainer(max_epochs=1, limit_val_batches=0, callbacks=callbacks)
    trainer.fit(module, loader, loader if door == "module" else None)
    run = module.run if door == "module" else callbacks[0].run
    return next(iter(run.log.epoch_means.values()))


def pair(name, **sizes):
    return made(name, 2, 1).train(), made(name, 4, 2, **sizes)


@pytest.mark.parametrize("kind", ["probabilities", "probabilities_kl", "scores_kl"])
@pytest.mark.parametrize("name", ["vit", "deit", "beit", "eva"])
def test_a_step_is_that_of_matrices_made_by_hand_through_both_doors(name, kind):
    student, teacher = pair(name)
    other, expected = copy.deepcopy(student), by_hand(student)
    layers = ["blocks.0", "blocks.1.attn"], ["blocks.1", "blocks.3"]
    ours, theirs = told(expected), told(by_hand(teacher))
    formula = "probabilities" if kind == "probabilities" else "probabilities_kl"
    loss = sum(attention_matrix_loss(ours[s], theirs[t], kind=formula) for s, t in ((0, 1), (1, 3)))
    for network, door in ((student, "module"), (other, "callback")):
        value = fitted(network, teacher, AttentionMatrixLoss(*layers, kind=kind), door)
        assert value == pytest.approx(loss.item(), rel=1e-4)
    loss.backward()
    assert loss > 0
    for one, two, three in zip(student.parameters(), other.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, two)
        stepped = three if three.grad is None else three - 0.5 * three.grad
        torch.testing.assert_close(one, stepped, atol=1e-5, rtol=1e-4)


def test_relations_are_those_of_the_projections_whatever_the_heads():
    student, teacher = made("vit", 2, 1).train(), made("vit", 3, 2, embed_dim=24, num_heads=3)
    options = {"relation_heads": 4, "relations": {"QQ": 1.0, "KK": 0.5, "VV": 2.0}}
    given = []
    for network in (student, teacher):
        found = []
        handle = network.blocks[-1].attn.qkv.register_forward_hook(lambda *call, found=found: found.append(call[2]))
        network(IMAGES)
        handle.remove()
        given.append(found[0].chunk(3, -1))
    value = fitted(student, teacher, QKVRelationLoss("blocks.1", "blocks.2", **options))
    assert value == pytest.approx(qkv_relation_loss(*given, **options).item(), rel=1e-5)


def test_the_command_line_names_blocks_alike():
    words = []
    for side, depth in (("student", 2), ("teacher", 4)):
        given = {"class_path": "timm.models.VisionTransformer", "init_args": {**SIZES, "depth": depth}}
        words.append(f"--model.{side}={json.dumps(given)}")
    losses = [{"AttentionMatrixLoss": {"student": "uniform", "kind": "probabilities"}}]
    words += [f"--model.losses={json.dumps(losses)}", "--data=DigitsDataModule", "--seed_everything=1"]
    module = DistillationCLI(args=words, run=False).model
    batch = IMAGES, torch.tensor([0, 1])
    module.prepare(batch)
    value = module.training_step(batch, 0)
    ours, theirs = (told(by_hand(network)) for network in (module.student, module.teacher))
    pairs = ((0, 1), (1, 3))
    expected = sum(attention_matrix_loss(ours[s], theirs[t], kind="probabilities") for s, t in pairs)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-7)


def test_a_compiled_student_learns_the_same():
    student, teacher = pair("vit")
    plain = copy.deepcopy(student)
    value = fitted(plain, teacher, AttentionMatrixLoss("uniform"))
    compiled = torch.compile(student, backend="aot_eager", fullgraph=True)
    assert fitted(compiled, teacher, AttentionMatrixLoss("uniform")) == pytest.approx(value, rel=1e-5)
    for one, other in zip(student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_checkpointed_blocks_learn_the_same():
    student, teacher = pair("vit")
    plain = copy.deepcopy(student)
    student.set_grad_checkpointing()
    values = [fitted(network, teacher, AttentionMatrixLoss("uniform")) for network in (plain, student)]
    assert values[0] == values[1]
    for one, other in zip(student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("target", ["qkv", "attn"])
def test_adapters_are_a_part_of_what_is_read(target):
    if target == "qkv":
        network, block = made("vit"), "blocks.1"
    else:
        sizes = {"num_layers": 2, "num_heads": 4, "hidden_dim": 16, "mlp_dim": 8}
        network = torchvision.models.VisionTransformer(image_size=16, patch_size=4, **sizes)
        target, block = "self_attention", "encoder.layers.encoder_layer_1"
    config = peft.LoraConfig(target_modules=[target], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(network, config).eval()
    values = []
    for one, name in ((adapted, f"base_model.model.{block}"), (copy.deepcopy(adapted).merge_and_unload(), block)):
        capture = Capture(one, [place_of("scores", name)], "student")
        capture.attach()
        with torch.no_grad(), capture.recording() as call:
            one(IMAGES)
            capture.check_ran(call)
        capture.detach()
        values += call.features.values()
    torch.testing.assert_close(*values, atol=1e-4, rtol=1e-4)
    assert values[0].std() > 0.01


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_matrices_made_by_hand_are_refused_and_the_remedy_helps(role):
    networks = dict(zip(("student", "teacher"), pair("vit"), strict=True))
    for block in networks[role].blocks:
        block.attn.fused_attn = False
    loss = partial(AttentionMatrixLoss, "blocks.1", "blocks.3")
    with pytest.raises(ValueError, match=rf"{role}'s 'blocks.\d' makes its .* fused_attn is False. Set fused_attn = T"):
        fitted(**networks, loss=loss())
    for block in networks[role].blocks:
        block.attn.fused_attn = True
    assert fitted(**networks, loss=loss()) > 0


def swin():
    sizes = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2)}
    network = timm.models.SwinTransformer(**sizes, num_classes=3, drop_path_rate=0.0)
    for _, attention in every_attention_in(network):
        attention.fused_attn = True
    return network


def test_windows_are_refused_with_the_remedy():
    layer = "layers.0.blocks.1.attn"
    with pytest.raises(ValueError, match=rf"student's '{layer}' has attention of 8 rows for 2 samples, as in windows"):
        fitted(swin().train(), swin(), AttentionMatrixLoss(layer, layer))


REFUSED = {
    "pvt": (
        partial(timm.create_model, "pvt_v2_b0", num_classes=3),
        "stages.0.blocks.1",
        "256 queries attend to 4",
    ),
    "cait": (
        partial(timm.models.Cait, **SIZES, depth=2),
        "blocks_token_only.0",
        "1 queries attend to 17 keys",
    ),
    "hiera": (
        partial(timm.models.Hiera, img_size=(64, 64), embed_dim=8, num_heads=1, stages=(1, 1, 1, 1), num_classes=3),
        "blocks.0",
        r"not \(B, H, T, D\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_attention_that_is_not_between_tokens_is_refused(name):
    make, layer, words = REFUSED[name]
    images = torch.randn(2, 3, *(16, 16) if name == "cait" else (64, 64))
    network = make().eval()
    capture = Capture(network, [place_of("scores", layer)], "student")
    capture.attach()
    with torch.no_grad(), capture.recording() as call:
        network(images)
        with pytest.raises(ValueError, match=rf"'{layer}' cannot be read: .*{words}.*HiddenStateLoss"):
            capture.check_ran(call)
    capture.detach()
