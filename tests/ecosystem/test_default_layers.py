"""Which layers a loss reads by default in networks that nobody here wrote.

What is expected is each library's own account: ``feature_info`` of timm, the names of the stages in the papers and in
``return_layers`` of torchvision, the encoder's stages in transformers. Networks without stages have a block for each
quarter of their depth.
"""

from functools import partial

import pytest
import timm
import torch
import torchvision

from lightning_kd.capture.trace import Trace
from lightning_kd.engine.default_layers import choose_layers
from lightning_kd.losses import ATLoss, HintLoss, OFDLoss, RKDLoss
from tests.ecosystem import zoo

RESNET = ["layer1", "layer2", "layer3", "layer4"]


def numbered(prefix, *numbers):
    return [f"{prefix}.{number}" for number in numbers]


QUARTERS = numbered("blocks", 2, 5, 8, 11)

# network: the stages, and the features before the output
TIMM = {
    "resnet18": (RESNET, "global_pool"),
    "resnext50_32x4d": (RESNET, "global_pool"),
    "res2net50_26w_4s": (RESNET, "global_pool"),
    "poolformer_s12": (numbered("stages", 0, 1, 2, 3), "head.flatten"),
    "vgg11_bn": (numbered("features", 2, 6, 13, 20, 27, 28), "head.global_pool"),
    "maxvit_rmlp_pico_rw_256": (numbered("stages", 0, 1, 2, 3), "head.global_pool"),
    "coatnet_pico_rw_224": (numbered("stages", 0, 1, 2, 3), "head.global_pool"),
    "mixer_s32_224": (numbered("blocks", 1, 3, 5, 7), "norm"),
    "resmlp_12_224": (QUARTERS, "norm"),
    "eva02_tiny_patch14_224": (QUARTERS, "fc_norm"),
    "hiera_tiny_224": (numbered("blocks", 0, 2, 9, 11), "head.norm"),
    "xcit_nano_12_p16_224": (QUARTERS, "norm"),
    "dla34": (["level2", "level3", "level4", "level5"], "global_pool"),
    "swin_tiny_patch4_window7_224": (numbered("layers", 0, 1, 2, 3), "head.global_pool"),
    "swinv2_tiny_window8_256": (numbered("layers", 0, 1, 2, 3), "head.global_pool"),
    "mambaout_femto": (numbered("stages", 0, 1, 2, 3), "head.pre_logits"),
    "regnetx_002": (["s1", "s2", "s3", "s4"], "head.global_pool"),
    "convnext_atto": (numbered("stages", 0, 1, 2, 3), "head.flatten"),
    "deit_tiny_patch16_224": (QUARTERS, "fc_norm"),
    "deit_tiny_distilled_patch16_224": (QUARTERS, "norm"),
    "vit_tiny_patch16_224": (QUARTERS, "fc_norm"),
    "mobilenetv2_050": (numbered("blocks", 1, 2, 4, 6), "global_pool"),
    "mobilenetv3_small_050": (numbered("blocks", 0, 1, 3, 5), "flatten"),
    "mobilenetv4_conv_small": (numbered("blocks", 0, 1, 2, 4), "flatten"),
    "efficientnet_b0": (numbered("blocks", 0, 1, 2, 4, 6), "global_pool"),
    "mnasnet_small": (numbered("blocks", 1, 2, 4, 6), "global_pool"),
    "ghostnet_100": (numbered("blocks", 1, 3, 5, 7), "flatten"),
    "densenet121": (
        ["features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"],
        "global_pool",
    ),
    "inception_v3": (["Mixed_5d", "Mixed_6e", "Mixed_7c"], "global_pool"),
    "cait_xxs24_224": (numbered("blocks", 5, 11, 17, 23), "norm"),
    "coat_lite_tiny": ([f"serial_blocks{i}.1" for i in range(1, 5)], "norm4"),
    "pvt_v2_b0": (numbered("stages", 0, 1, 2, 3), "stages"),
    "edgenext_xx_small": (numbered("stages", 0, 1, 2, 3), "head.flatten"),
    "nfnet_l0": ([*numbered("stages", 0, 1, 2), "final_conv"], "head.global_pool"),
    "repvgg_a0": ([*numbered("stages", 0, 1, 2), "final_conv"], "head.global_pool"),
    "mobilevit_xxs": ([*numbered("stages", 0, 1, 2, 3), "final_conv"], "head.global_pool"),
    "efficientformer_l1": (numbered("stages", 0, 1, 2, 3), "norm"),
    "davit_tiny": (numbered("stages", 0, 1, 2, 3), "head.flatten"),
    "volo_d1_224": (numbered("network", 0, 4), "norm"),
    "nest_tiny": (numbered("levels", 0, 1, 2), "global_pool"),
}
TORCHVISION = {
    "resnet18": (RESNET, "avgpool"),
    "resnet50": (RESNET, "avgpool"),
    "resnext50_32x4d": (RESNET, "avgpool"),
    "mobilenet_v2": ([*numbered("features", 1, 3, 6, 13), "features"], "features"),
    "mobilenet_v3_small": ([*numbered("features", 1, 3, 8), "features"], "classifier.1"),
    "efficientnet_b0": ([*numbered("features", 1, 2, 3, 5), "features"], "avgpool"),
    "densenet121": ([f"features.denseblock{i}" for i in (1, 2, 3)] + ["features"], "features"),
    "shufflenet_v2_x0_5": (["stage2", "stage3", "stage4"], "conv5"),
    "squeezenet1_1": ([*numbered("features", 4, 7), "features"], "features"),
    "regnet_y_400mf": ([f"trunk_output.block{i}" for i in (1, 2, 3)] + ["trunk_output"], "avgpool"),
    "googlenet": (["inception3b", "inception4e", "inception5b"], "avgpool"),
    "inception_v3": (["Mixed_5d", "Mixed_6e", "Mixed_7c"], "avgpool"),
    "mnasnet0_5": ([*numbered("layers", 8, 9, 11), "layers"], "layers"),
    "convnext_tiny": ([*numbered("features", 1, 3, 5), "features"], "classifier.1"),
    "swin_t": ([*numbered("features", 1, 3, 5), "features"], "flatten"),
    "swin_v2_t": ([*numbered("features", 1, 3, 5), "features"], "flatten"),
    "vgg11_bn": ([*numbered("features", 2, 6, 13, 20, 27), "features"], "classifier.4"),
    "vit_b_32": ([f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8, 11)], "encoder"),
    "maxvit_t": (numbered("blocks", 0, 1, 2, 3), "classifier.4"),
}
TRANSFORMERS = {  # of six blocks: 2, 3, 5 and 6, counted from one
    "vit": (numbered("vit.layers", 1, 2, 4, 5), "vit.layernorm"),
    "deit": (numbered("deit.layers", 1, 2, 4, 5), "deit.layernorm"),
    "beit": (numbered("beit.layers", 1, 2, 4, 5), "beit.pooler"),
    "dinov2": (numbered("dinov2.encoder.layer", 1, 2, 4, 5), "dinov2.layernorm"),
    "swin": (numbered("swin.encoder.layers", 0, 1, 3), "swin.pooler"),
    "convnext": (numbered("convnext.encoder.stages", 0, 1, 2, 3), "convnext.layernorm"),
    "resnet": (numbered("resnet.encoder.stages", 0, 1, 2, 3), "classifier.0"),
    "regnet": (numbered("regnet.encoder.stages", 0, 1, 2, 3), "classifier.0"),
    "pvt": ([f"pvt.encoder.block.{i}.0" for i in range(4)], "pvt.encoder.layer_norm"),
    "segformer": (numbered("segformer.stages", 0, 1, 2, 3), "decode_head.activation"),
    "bert": (numbered("bert.encoder.layer", 1, 2, 4, 5), "bert.pooler"),
    "roberta": (numbered("roberta.encoder.layer", 1, 2, 4, 5), "classifier.dense"),
    "electra": (numbered("electra.encoder.layer", 1, 2, 4, 5), "classifier.activation"),
    "distilbert": (numbered("distilbert.transformer.layer", 1, 2, 4, 5), "pre_classifier"),
    "gpt2": (numbered("transformer.h", 1, 2, 4, 5), "transformer.ln_f"),
    "llama": (numbered("model.layers", 1, 2, 4, 5), "model.norm"),
}


def followed(net, args):
    with torch.no_grad(), Trace(net.eval()) as trace:
        output = net(*args) if isinstance(args, tuple) else net(**args)
        if isinstance(output, dict):
            output = output["logits_per_image" if "logits_per_image" in output else "logits"]
        return trace.before(output)


def chosen(ran, make):
    loss = make()
    told = choose_layers(loss, ran, ran)
    assert loss.student == loss.teacher
    return loss.student, told


def check(ran, stages, features):
    names, told = chosen(ran, ATLoss)
    assert names == stages
    values = {seen.name: seen.value for seen in ran.every}
    assert told == f"student {ends(values, names)} and teacher {ends(values, names)}" or "blocks, spread" in told
    assert chosen(ran, HintLoss)[0] == stages[-1]
    assert chosen(ran, RKDLoss)[0] == features


def ends(values, names):
    return ", ".join(f"{name!r} {tuple(values[name].shape)}" for name in names)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    with torch.device("meta"):  # shapes alone, at the size that the network is published with
        net = timm.create_model(name, pretrained=False, num_classes=10)
        check(followed(net, (torch.randn(2, *net.default_cfg["input_size"]),)), *TIMM[name])


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if "regnet" in name else "meta"):  # RegNet reads numbers when it is built
        net = getattr(torchvision.models, name)(weights=None, num_classes=10, **options)
        check(followed(net, (torch.randn(2, 3, 224, 224),)), *TORCHVISION[name])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    check(followed(*zoo.of_transformers(name)), *TRANSFORMERS[name])


def test_segmentation_networks_name_the_layers_that_they_hand_to_their_heads():
    make = torchvision.models.segmentation.fcn_resnet50
    net = make(weights=None, weights_backbone=None, num_classes=5).eval()
    with torch.no_grad(), Trace(net) as trace:
        ran = trace.before(net(torch.randn(2, 3, 64, 64))["out"])
    check(ran, ["backbone.layer1", "backbone.layer4"], "classifier.2")


def test_two_towers_are_both_read_or_asked_for():
    ran = followed(*zoo.of_transformers("clip"))
    assert set(chosen(ran, ATLoss)[0]) == {"vision_model.encoder.layers.5", "text_model.encoder.layers.5"}
    with pytest.raises(ValueError, match=r"RKDLoss names no layers, and .* 'text_projection' \(2, 16\), 'visual_pro"):
        chosen(ran, RKDLoss)
    with pytest.raises(ValueError, match=r"run beside each other.*Name one, or make a loss of each: HintLoss\("):
        chosen(ran, HintLoss)


# What an activation gets


def sums(*activations):
    return [f"<input of {name}>" for name in activations]


@pytest.mark.parametrize(
    ("library", "name", "expected"),
    [
        ("torchvision", "resnet50", sums("layer1.2.relu", "layer2.3.relu", "layer3.5.relu", "layer4.2.relu")),
        ("torchvision", "vgg11_bn", numbered("features", 1, 5, 12, 19, 26)),
        ("torchvision", "mobilenet_v2", [f"features.{end}" for end in ("1.conv.0.1", "3.conv.1.1", "6.conv.1.1")]),
        ("timm", "resnet10t", sums(*(f"layer{i}.0.act2" for i in range(1, 5)))),
        ("timm", "efficientnet_b0", [f"blocks.{end}.drop" for end in ("0.0.bn1", "1.1.bn2", "2.1.bn2")]),
        ("timm", "regnetx_002", sums("s1.b1.act3", "s2.b1.act3", "s3.b4.act3", "s4.b7.act3")),
    ],
)
def test_before_the_activation(library, name, expected):
    with torch.device("meta"):
        make = timm.create_model if library == "timm" else torchvision.models.get_model
        names, _ = chosen(followed(make(name), (torch.randn(2, 3, 64, 64),)), OFDLoss)
    assert names[: len(expected)] == expected


def test_the_activation_of_a_fused_layer_gets_what_was_chosen():
    net = timm.create_model("efficientnet_b0", pretrained=False)
    x = torch.randn(2, 3, 64, 64)
    names = chosen(followed(net, (x,)), OFDLoss)[0]
    values = {}

    def keep(layer, args, output, name):
        values[name] = output.clone()  # the activation overwrites it

    for name in [*names, *(name.removesuffix(".drop") for name in names)]:
        net.get_submodule(name).register_forward_hook(partial(keep, name=name))
    net(x)
    for name in names:
        fused = name.removesuffix(".drop")
        assert isinstance(net.get_submodule(fused), torch.nn.BatchNorm2d)
        torch.testing.assert_close(values[name] * values[name].sigmoid(), values[fused])  # SiLU by its formula


def test_a_network_without_activations_on_its_maps_is_refused():
    ran = followed(*zoo.of_transformers("vit"))
    with pytest.raises(ValueError, match=r"has none of the kind that it reads \(a convolution or normalisation whose"):
        chosen(ran, OFDLoss)


# Pairs of families


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ("convnext", "resnet", [(f"convnext.encoder.stages.{i}", f"resnet.encoder.stages.{i}") for i in range(4)]),
        ("vit", "resnet", [(f"vit.layers.{i}", f"resnet.encoder.stages.{n}") for n, i in enumerate((1, 2, 4, 5))]),
        ("swin", "vit", [(f"swin.encoder.layers.{n}", f"vit.layers.{i}") for n, i in ((0, 1), (1, 3), (3, 5))]),
        (
            "distilbert",
            "bert",
            [(f"distilbert.transformer.layer.{i}", f"bert.encoder.layer.{i}") for i in (1, 2, 4, 5)],
        ),
    ],
)
def test_pairs_of_families_meet_at_the_same_depth(student, teacher, expected):
    loss = ATLoss()
    choose_layers(loss, followed(*zoo.of_transformers(student)), followed(*zoo.of_transformers(teacher)))
    assert list(zip(loss.student, loss.teacher, strict=True)) == expected


def test_stages_of_equal_size_are_paired():
    loss = ATLoss()
    x = torch.randn(2, 3, 64, 64)
    student = followed(torchvision.models.resnet18(weights=None), (x,))
    teacher = followed(timm.create_model("vgg11_bn", pretrained=False), (x,))
    choose_layers(loss, student, teacher)
    assert list(zip(loss.student, loss.teacher, strict=True)) == list(
        zip(RESNET, numbered("features", 13, 20, 27, 28), strict=True)
    )
