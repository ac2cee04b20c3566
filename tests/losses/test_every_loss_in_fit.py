"""Every exported loss in a fit: it resumes at any step, in its stage and after it, through both doors."""

import pytest
import torch

from lightning_kd.data import Indexed
from tests import support


class Rows(support.ResumableLoader):
    """Batches with their rows, that go on in the middle of an epoch."""

    def __init__(self):
        super().__init__()
        self.dataset = Indexed(support.data())
        self.batches = list(torch.utils.data.DataLoader(self.dataset, batch_size=8))


def fitted(door, name, *callbacks, **options):
    learner, guide = (support.seeded(lambda width=width: support.StagedNet(width), width) for width in (3, 5))
    torch.manual_seed(5)
    made, doors = support.through(door, learner, guide=guide, losses=[support.default_loss(name)])
    parts = doors[0].losses if doors else made.losses
    support.fit(made, callbacks=[*doors, *callbacks], train=Rows(), max_epochs=2, limit_val_batches=0, **options)
    return learner, parts


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Fit once and keep a checkpoint of every step."""
    made = {}

    def fit(door, name):
        if (door, name) not in made:
            folder = tmp_path_factory.mktemp(f"{door}-{name}")
            made[door, name] = (*fitted(door, name, support.SaveEveryStep(folder)), folder)
        return made[door, name]

    return fit


@pytest.mark.parametrize("at", [2, 4])
@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("name", support.exported_losses())
def test_it_resumes_bit_for_bit(name, door, at, uninterrupted):
    whole, parts, folder = uninterrupted(door, name)
    resumed, its = fitted(door, name, ckpt_path=folder / f"{at}.ckpt", seed=99)
    support.assert_same_weights(whole, resumed)
    support.assert_same_weights(parts, its)


@pytest.mark.parametrize("name", support.exported_losses())
def test_both_doors_train_alike(name, uninterrupted):
    (one, mine, _), (two, its, _) = (uninterrupted(door, name) for door in ("module", "callback"))
    support.assert_same_weights(one, two)
    support.assert_same_weights(mine, its)
