"""Students that are trained to be quantised, by torch.ao and by torchao, learn as in a loop of torch alone."""

import copy
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.export import Dim

from lightning_kd import export_student
from lightning_kd.functional import attention_transfer_loss, kd_loss
from lightning_kd.losses import ATLoss, HintLoss, KDLoss
from lightning_kd.teachers import EMATeacher, FrozenTeacher
from tests import support

pytestmark = pytest.mark.filterwarnings("ignore")  # torch deprecates torch.ao, and torchao reads what torch deprecates

TEMPERATURE = 4.0
DOORS = ["module", "callback"]


def floating():
    return support.seeded(partial(support.StagedNet, 3), 3)


def traced_by_torch():
    """``torch.ao``, which comes with torch."""
    quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qat_qconfig_mapping

    mapping = get_default_qat_qconfig_mapping("x86")
    return quantize_fx.prepare_qat_fx(floating().train(), mapping, (torch.zeros(2, 1, 4, 4),))


def exported():
    """``torchao``, which torch names in its place. Its train() and eval() rewrite the graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao.quantization.pt2e")
        from torchao.quantization.pt2e import allow_exported_model_train_eval
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
            X86InductorQuantizer,
            get_default_x86_inductor_quantization_config,
        )

        quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=True))
        sizes = ({0: Dim("batch")},)
        program = torch.export.export(floating().train(), (torch.zeros(2, 1, 4, 4),), dynamic_shapes=sizes)
        return allow_exported_model_train_eval(prepare_qat_pt2e(program.module(), quantizer))


FLOWS = [traced_by_torch, pytest.param(exported, marks=pytest.mark.slow)]
STAGE1 = {traced_by_torch: "activation_post_process_1", exported: "activation_post_process_2"}
"""The part that rounds what the first stage returns."""


def seen(net, layer):
    """Have the values of a layer kept in a list."""
    values = []
    net.get_submodule(layer).register_forward_hook(lambda *call: values.append(call[-1]))
    return values


def by_hand(net, layer=None):
    """SGD in torch alone, on what the rounded student returns."""
    guide = support.teacher().eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    maps = [seen(net, layer), seen(guide, "features")] if layer else None
    for x, y in support.loader():
        with torch.no_grad():
            shown = guide(x)
        logits = net(x)
        loss = nn.functional.cross_entropy(logits, y) + kd_loss(logits, shown, temperature=TEMPERATURE)
        if maps is not None:
            loss = loss + attention_transfer_loss(maps[0][-1], maps[1][-1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def distilled(net, door, other=None, callbacks=(), **options):
    losses = [
        KDLoss(temperature=TEMPERATURE),
        *([] if other is None else [other]),
    ]
    made, own = support.through(door, net, losses=losses)
    options = {"max_epochs": 1, "limit_val_batches": 0, "callbacks": [*own, *callbacks]} | options
    return support.fit(made, train=support.loader(), **options)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("make", FLOWS)
def test_a_student_that_is_rounded_learns_as_in_torch_alone(make, door):
    """Set-up also leaves the ranges that its observers have seen, and what its BatchNorm counts."""
    net, expected = make(), make()
    before = copy.deepcopy(net.state_dict())
    by_hand(expected)
    distilled(net, door)
    support.assert_same_weights(net, expected)
    ranges = [name for name in before if name.endswith(".max_val")]
    assert len(ranges) > 5
    assert all(not torch.equal(net.state_dict()[name], before[name]) for name in ranges)


def normalises_by_its_batch(net):
    return {node.args[5] for node in net.graph.nodes if node.target is torch.ops.aten.batch_norm.default}


@pytest.mark.slow
def test_copies_of_an_exported_student_are_put_in_eval_mode(tmp_path):
    """Torch's own copy of one keeps the graph that it has in training."""
    net = exported()
    mean = EMATeacher(decay=0.9)
    made = support.module(net, teacher=None, losses=[KDLoss()])
    support.fit(made, train=support.loader(), callbacks=[mean], max_epochs=1, limit_val_batches=0)
    assert normalises_by_its_batch(net) == {True}
    assert normalises_by_its_batch(mean.teacher.module) == {False}
    export_student(net, tmp_path / "student.pt2", example=support.data()[:2][0])
    assert normalises_by_its_batch(torch.export.load(tmp_path / "student.pt2")) == {False}
    assert normalises_by_its_batch(net) == {True}
    assert normalises_by_its_batch(FrozenTeacher(net).module) == {False}


@pytest.mark.parametrize("make", FLOWS)
def test_a_loss_reads_the_rounded_map_behind_a_layer(make):
    net, expected = make(), make()
    by_hand(expected, layer=STAGE1[make])
    distilled(net, "module", ATLoss(STAGE1[make], "features", layout="NCHW"))
    support.assert_same_weights(net, expected)


@pytest.mark.parametrize("make", FLOWS)
def test_a_layer_that_the_traced_network_does_not_call_is_refused_with_the_part_behind_it(make):
    with pytest.raises(RuntimeError, match=rf"in place of 'stage1' name '{STAGE1[make]}'"):
        distilled(make(), "module", HintLoss("stage1", "features"))
    distilled(make(), "module", HintLoss(STAGE1[make], "features", layout="NCHW"))


@pytest.mark.parametrize(
    ("make", "door"), [(traced_by_torch, "module"), pytest.param(exported, "callback", marks=pytest.mark.slow)]
)
def test_a_validation_leaves_the_student_training(make, door):
    """Torchao's eval() has BatchNorm normalise by its running statistics until train() is called."""
    net = make()
    running = [name for name in net.state_dict() if name.endswith("running_mean")]
    assert running
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, *_):
            seen.append([net.state_dict()[name].clone() for name in running])

        def on_train_batch_end(self, *_):
            seen[-1] = [torch.equal(net.state_dict()[name], old) for name, old in zip(running, seen[-1], strict=True)]

    distilled(net, door, callbacks=[Watch()], limit_val_batches=1, max_epochs=2)
    assert seen == [[False] * len(running)] * 6


@pytest.mark.parametrize(
    ("make", "door"),
    [
        (traced_by_torch, "module"),
        (traced_by_torch, "callback"),
        pytest.param(exported, "module", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_goes_on_with_the_ranges_that_it_had(make, door, tmp_path):
    whole, net = make(), make()
    distilled(whole, door, callbacks=[support.SaveEveryStep(tmp_path)], max_epochs=2)
    distilled(net, door, max_epochs=2, ckpt_path=tmp_path / "3.ckpt")
    support.assert_same_weights(net, whole)
    kept = torch.load(tmp_path / "3.ckpt", weights_only=True)["state_dict"]
    ranges = {name: value for name, value in kept.items() if name.endswith(".max_val")}
    assert len(ranges) > 5
    assert all(value.isfinite().all() and value.numel() for value in ranges.values())
