"""A training loop with Fabric, in which the module's losses need no Trainer."""

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from lightning_kd.functional import hint_loss, kd_loss
from lightning_kd.losses import CRDLoss, FTLoss, KDLoss
from lightning_kd.schedules import LinearSchedule
from tests import support
from tests.support import processes


def steps(module, batches, **options):
    """Train as the documentation of ``prepare`` shows."""
    fabric = Fabric(**({"accelerator": "cpu", "devices": 1} | options))
    module.prepare(batches[0])
    model, optimizer = fabric.setup(module, module.configure_optimizers())
    losses = []
    for step, batch in enumerate(batches):
        module.set_moment(step)
        with fabric.autocast():
            loss = model.training_step(batch, step)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_two_steps_equal_a_loop_that_is_written_by_hand():
    module, batches = support.module(task_weight=0.1), list(support.loader())[:2]
    torch.manual_seed(5)
    losses = steps(module, batches)

    learner, guide, projector = support.student(), support.teacher().eval(), nn.Conv2d(3, 8, 1)
    other = support.module()
    torch.manual_seed(5)
    other.prepare(batches[0])
    projector.load_state_dict(other.losses["hint"].projectors[0].conv.state_dict())
    optimizer = torch.optim.SGD([*learner.parameters(), *projector.parameters()], lr=0.1, momentum=0.9)
    expected = []
    for x, y in batches:
        mine, its = learner.features(x), guide.features(x).detach()
        logits, shown = learner.head(mine.flatten(1)), guide.head(its.flatten(1)).detach()
        task = nn.functional.cross_entropy(logits, y)
        loss = 0.1 * task + 0.9 * kd_loss(logits, shown, temperature=2.0) + 2.0 * hint_loss(projector(mine), its)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected)
    support.assert_same_weights(module.student, learner)


def test_a_fabric_loop_trains_as_a_trainer_does():
    by_hand, by_trainer = support.module(), support.module()
    batches = list(support.loader())
    torch.manual_seed(11)
    steps(by_hand, batches)
    support.fit(by_trainer, train=support.batches(*support.loader()), max_epochs=1)
    support.assert_same_weights(by_hand, by_trainer)


def test_the_teacher_follows_to_the_precision_of_fabric():
    fabric, module = Fabric(accelerator="cpu", devices=1, precision="bf16-true"), support.module()
    x, y = next(iter(support.loader()))
    module.prepare((x, y))
    model, _ = fabric.setup(module, module.configure_optimizers())
    assert model.training_step((x.bfloat16(), y), 0).isfinite()
    assert module.teacher.head.weight.dtype == module.student.head.weight.dtype == torch.bfloat16


def test_mixed_precision_computes_in_the_format_of_fabric():
    seen = []
    module = support.module()
    module.student.head.register_forward_hook(lambda layer, args, output: seen.append(output.dtype))
    steps(module, list(support.loader()), precision="bf16-mixed")
    assert seen[2:] == 3 * [torch.bfloat16]  # the first two were the look at the sizes
    assert module.student.head.weight.dtype == torch.float32


def test_schedules_follow_the_moment_and_the_log_has_the_means():
    module = support.module(losses=[KDLoss(weight=LinearSchedule(0.0, 3.0, length=3, unit="step"))])
    losses = steps(module, list(support.loader()))
    means = module.run.log.flush()
    assert means["loss"] == pytest.approx(sum(losses) / 3)
    assert module.losses["kd"].weight_now == 2.0
    unweighted = support.module(losses=[KDLoss(weight=0.0)])
    tasks = steps(unweighted, list(support.loader()))
    assert losses[0] == pytest.approx(tasks[0])
    assert losses[2] != pytest.approx(tasks[2])


def test_a_first_stage_comes_before_the_main_training():
    module = support.module(losses=[FTLoss("features", "features", stage_length=2)])
    before = support.snapshot(module.student)
    batches = list(support.loader())
    steps(module, batches)  # epoch 0 throughout, so the stage is going on
    support.assert_unchanged(module.student, before)
    module.set_moment(6, epoch=2)
    module.training_step(batches[0], 0).backward()
    assert module.student.head.weight.grad.abs().sum() > 0


def test_what_only_a_trainer_knows_is_asked_for():
    batch = next(iter(support.loader()))
    with pytest.raises(ValueError, match=r"first stage of \['ft'\].*no Trainer; give stage_length"):
        support.module(losses=[FTLoss("features", "features")]).prepare(batch)
    with pytest.raises(RuntimeError, match=r"call set_dataset\(num_samples, targets\) first"):
        support.module(losses=[CRDLoss("features", "features")]).prepare((*batch, torch.arange(8)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """What every process has after every scenario."""
    folder = tmp_path_factory.mktemp("fabric")
    for devices in (1, 2):
        processes.program("programs.distributed_fabric", devices, folder, limit=300)
    return lambda name: torch.load(folder / name, weights_only=True)


@pytest.mark.slow
def test_two_processes_that_share_a_batch_equal_one(weights):
    one, first, second = (
        weights("default.1.0")["state"],
        weights("default.2.0")["state"],
        weights("default.2.1")["state"],
    )
    for name, expected in one.items():
        torch.testing.assert_close(first[name], expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(first[name], second[name])


@pytest.mark.slow
def test_the_banks_agree_on_every_process_and_are_not_sent(weights):
    first, second = weights("bank.2.0"), weights("bank.2.1")
    assert {"losses.crd.student_bank", "losses.crd.teacher_bank"} <= first["state"].keys()
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    assert not [name for name in first["sent"] if "bank" in name]
