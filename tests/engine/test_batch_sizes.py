"""Batches of another size than the others, down to one sample and to none, on one process and on two."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from lightning_kd.losses import ABLoss, KDLoss, RKDLoss
from tests import support
from tests.programs.distributed_batches import SIZES, Batches, OwnModule, networks
from tests.support import processes

DOORS = ["module", "callback"]
NO_SAMPLES = "ignore:.*holds no samples on process 0:UserWarning"


def fitted(door, losses, sizes, epochs=2):
    learner, guide = networks()
    torch.manual_seed(5)
    if door == "module":
        optimizer = partial(torch.optim.SGD, lr=0.05)
        made, callbacks = support.module(learner, teacher=guide, losses=losses, optimizer=optimizer), []
    else:
        made, callbacks = OwnModule(learner), [support.DistillationCallback(guide, losses)]
    parts = callbacks[0].losses if callbacks else made.losses
    trainer = support.fit(made, train=Batches(sizes), callbacks=callbacks, max_epochs=epochs, limit_val_batches=0)
    return learner, parts, trainer


@pytest.mark.parametrize("last", [1, 3])
@pytest.mark.parametrize("name", support.exported_losses())
def test_every_loss_takes_a_last_batch_of_another_size(name, last):
    fits = [fitted(door, [support.default_loss(name)], [8, 8, last]) for door in DOORS]
    support.assert_same_weights(fits[0][0], fits[1][0])
    support.assert_same_weights(fits[0][1], fits[1][1])
    without, _, _ = fitted("module", [support.default_loss(name)], [8, 8])
    for learner, parts, trainer in fits:
        assert trainer.global_step == 6
        assert all(value.isfinite().all() for part in (learner, parts) for value in part.state_dict().values())
        assert not torch.equal(learner.head.weight, without.head.weight)


@pytest.mark.parametrize("door", DOORS)
def test_a_projector_that_cannot_normalise_one_sample_says_so(door):
    class Pooled(support.StagedNet):
        def __init__(self, width, norm=False):
            super().__init__(width, norm)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.head = nn.Linear(2 * width, support.CLASSES)

        def forward(self, x):
            return self.head(self.pool(self.stage2(self.stage1(x))).flatten(1))

    learner, guide = (support.seeded(partial(Pooled, width), width) for width in (3, 5))
    made, callbacks = support.through(door, learner, guide=guide, losses=[ABLoss("pool", "pool", stage_length=0)])
    words = re.escape("Part 'ab' normalises over the batch in its projector") + ".*" + re.escape("drop_last=True")
    with pytest.raises(ValueError, match=words):
        support.fit(made, train=Batches([8, 1]), callbacks=callbacks, limit_val_batches=0)


# No samples


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("sizes", [[8, 0, 8], [0, 8, 8]])
@pytest.mark.parametrize("name", support.exported_losses())
@pytest.mark.filterwarnings(NO_SAMPLES)
def test_a_batch_without_samples_changes_nothing(name, sizes, door):
    net, parts, trainer = fitted(door, [support.default_loss(name)], sizes)
    same, its, _ = fitted(door, [support.default_loss(name)], [8, 8])
    assert trainer.global_step == 6
    support.assert_same_weights(net, same)
    mine, its = parts.state_dict(), its.state_dict()
    counted = [key for key in its if key.endswith("num_batches_tracked")]  # torch counts such a batch
    assert all(torch.equal(mine[key], value) for key, value in its.items() if key not in counted)


@pytest.mark.parametrize("door", DOORS)
def test_a_batch_without_samples_is_told_once(door):
    with pytest.warns(UserWarning, match="The batch of step 1 holds no samples on process 0") as found:
        _, _, trainer = fitted(door, [KDLoss()], [8, 0, 8, 0])
    assert len([one for one in found if "holds no samples" in str(one.message)]) == 1
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_a_validation_batch_without_samples_weighs_nothing():
    found = []
    for sizes in ([8, 8], [8, 0, 8]):
        learner, guide = networks()
        made = support.module(learner, teacher=guide, losses=[KDLoss()])
        trainer = support.fit(made, train=Batches([8]), val=Batches(sizes), max_epochs=1)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert found[0] == found[1]
    assert "val/loss" in found[0]


@pytest.mark.parametrize("door", DOORS)
def test_data_without_any_sample_is_refused_at_setup(door):
    with pytest.raises(ValueError, match="has no batch with samples"):
        fitted(door, [KDLoss()], [0, 0])


# Two processes

SCENARIOS = {"module": ["average", "balanced", *support.exported_losses()], "callback": ["average", "KDLoss", "SPLoss"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What both processes have after every scenario, by door and scenario."""
    found = {}
    for door, scenarios in SCENARIOS.items():
        folder = tmp_path_factory.mktemp(door)
        processes.program("programs.distributed_batches", door, folder, *scenarios, limit=600)
        for name in scenarios:
            found[door, name] = [torch.load(folder / f"{name}.{rank}", weights_only=True) for rank in (0, 1)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("door", "scenario"), [(door, name) for door, names in SCENARIOS.items() for name in names])
def test_processes_with_batches_of_unequal_size_stay_equal(door, scenario, runs):
    first, second = runs[door, scenario]
    assert first["state"].keys() == second["state"].keys()
    for name, value in first["state"].items():
        assert value.isfinite().all(), name
        # DDP sends the statistics of the first process before a step, not after the last
        assert torch.equal(value, second["state"][name]) or "running_" in name or "num_batches" in name, name
    steps = [next((i for i, pair in enumerate(SIZES) if pair[rank] == 0), None) for rank in (0, 1)]
    for rank, (run, step) in enumerate(zip((first, second), steps, strict=True)):
        if rank == 0 and scenario == "average":
            assert run["told"] == []
        else:
            (told,) = run["told"]
            assert f"step {step} holds no samples on process {rank}" in told


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_a_process_without_samples_adds_nothing_to_the_average(door, runs):
    """Losses of each process count half; the gathered loss, and the module's own, are those of all samples."""
    net, guide = networks()
    (x, y, _), (more, labels, _) = Batches([4, 4]).batches
    seen = {}
    for network in (net, guide):
        network.embedding.register_forward_hook(lambda module, args, output: seen.update({module: output}))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    # the second process has none of four samples, then four of eight
    for images, target, share in ((x, y, 0.5), (torch.cat((more, x)), torch.cat((labels, y)), 1.0)):
        logits = net(images)
        with torch.no_grad():
            its = guide(images)
        task, kd = nn.functional.cross_entropy(logits, target), KDLoss(temperature=2.0)(logits, its)
        # the module's cross entropy is a mean over the labels of all processes; under the callback it is the user's
        local = (1.0 if door == "module" else share) * task + share * kd
        total = local + 2.0 * RKDLoss()(seen[net.embedding], seen[guide.embedding])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    for run in runs[door, "average"]:
        for name, expected in net.state_dict().items():
            torch.testing.assert_close(run["state"][name], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_bad_value_on_one_process_ends_both(tmp_path):
    with pytest.raises(AssertionError, match=r"not finite at step 2.*'kd' is nan"):  # and no HangError
        processes.program("programs.distributed_batches", "module", tmp_path, "broken", limit=300)
    assert not list(tmp_path.iterdir())
