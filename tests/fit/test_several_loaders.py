"""Several data loaders: unlabelled beside labelled data in training, and values of each in validation and test."""

from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import Batch, DistillationModule
from lightning_kd.functional import kd_loss
from lightning_kd.losses import KDLoss
from tests import support

DOORS = ["module", "callback"]


class SemiSupervised(DistillationModule):
    """As the documentation of ``unpack_batch`` shows."""

    def unpack_batch(self, batch):
        if not isinstance(batch, dict):
            return super().unpack_batch(batch)
        (x, y), more = batch["labelled"], batch["unlabelled"]
        hidden = y.new_full((len(more),), -100)  # what CrossEntropyLoss leaves out
        return Batch(args=(torch.cat((x, more)),), target=torch.cat((y, hidden)))


class SemiSupervisedUser(support.UserModule):
    """The same by a user's own training step."""

    def training_step(self, batch, batch_idx):
        (x, y), more = batch["labelled"], batch["unlabelled"]
        return self.criterion(self.net(torch.cat((x, more)))[: len(y)], y)


def semi_supervised(door, learner):
    if door == "callback":
        callback = support.DistillationCallback(support.teacher(), [KDLoss(temperature=2.0, weight=0.9)])
        return SemiSupervisedUser(learner), [callback]
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    losses = [KDLoss(temperature=2.0, weight=0.9)]
    return SemiSupervised(learner, support.teacher(), losses, task_loss=nn.CrossEntropyLoss(), optimizer=optimizer), []


@pytest.mark.parametrize("form", ["loaders", "combined", "data module"])
@pytest.mark.parametrize("door", DOORS)
def test_the_task_learns_from_labelled_rows_and_distillation_from_all(door, form):
    labelled = support.loader(batch_size=4, count=8)
    more = DataLoader(support.data(24, seed=1).tensors[0], batch_size=8)
    loaders = {"labelled": labelled, "unlabelled": more}

    class Data(LightningDataModule):
        def train_dataloader(self):
            return CombinedLoader(loaders, "min_size")

        def val_dataloader(self):
            return labelled

    learner = support.student()
    made, callbacks = semi_supervised(door, learner)
    trainer = support.trainer(callbacks=callbacks, max_epochs=1)
    if form == "data module":
        trainer.fit(made, datamodule=Data())
    else:
        train = CombinedLoader(loaders, "min_size") if form == "combined" else loaders
        trainer.fit(made, train, labelled)

    by_hand, guide = support.student(), support.teacher().eval()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    rows = list(zip(labelled, more, strict=False))
    if form == "loaders":  # Lightning goes on until the longest is through, and takes the shorter from the start
        rows = list(zip([*labelled, *labelled][:3], more, strict=True))
    for (x, y), unlabelled in rows:
        together = torch.cat((x, unlabelled))
        logits = by_hand(together)
        task = nn.functional.cross_entropy(logits[:4], y)
        optimizer.zero_grad()
        (task + 0.9 * kd_loss(logits, guide(together).detach(), temperature=2.0)).backward()
        optimizer.step()
    torch.testing.assert_close(learner.state_dict(), by_hand.state_dict())


def sets():
    """Two validation sets of different size, on which student and teacher do differently well."""
    return [DataLoader(support.data(count, seed), batch_size=8) for count, seed in ((24, 0), (12, 5))]


def by_hand(net, guide, loader):
    x, y = loader.dataset.tensors
    with torch.no_grad():
        mine, its, loss = net.eval()(x).argmax(1), guide.eval()(x).argmax(1), nn.functional.cross_entropy(net(x), y)
    means = {"accuracy": mine == y, "teacher_accuracy": its == y, "agreement": mine == its}
    return {name: hits.float().mean().item() for name, hits in means.items()} | {"loss": loss.item()}


class Several(support.UserModule):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx)

    test_step = validation_step


def through(door):
    made, callbacks = support.through(door)
    return (made, callbacks) if door == "module" else (Several(made.net), callbacks)


@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("door", DOORS)
def test_each_loader_has_values_of_its_own(door, stage, capsys):
    made, callbacks = through(door)
    net = made.student if door == "module" else made.net
    trainer = support.trainer(callbacks=callbacks)
    results = (trainer.validate if stage == "val" else trainer.test)(made, sets())
    names = ["agreement", "teacher_accuracy", *(["accuracy", "loss"] if door == "module" else [])]
    printed = capsys.readouterr().out
    for i, (loader, logged) in enumerate(zip(sets(), results, strict=True)):
        expected = by_hand(net, support.teacher(), loader)
        for name in names:
            assert logged[f"{stage}/{name}/dataloader_idx_{i}"] == pytest.approx(expected[name], rel=1e-6), name
        assert f"{logged[f'{stage}/agreement/dataloader_idx_{i}']}" in printed
        assert not [name for name in logged if f"dataloader_idx_{1 - i}" in name]
    assert results[0][f"{stage}/agreement/dataloader_idx_0"] != results[1][f"{stage}/agreement/dataloader_idx_1"]


@pytest.mark.parametrize("door", DOORS)
def test_a_fit_watches_one_of_several_validation_sets(door, tmp_path):
    made, callbacks = through(door)
    logger = CSVLogger(tmp_path)
    saver = ModelCheckpoint(tmp_path, monitor="val/agreement/dataloader_idx_1", mode="max")
    options = {"logger": logger, "enable_checkpointing": True, "num_sanity_val_steps": 2, "max_epochs": 3}
    support.fit(made, val=sets(), callbacks=[*callbacks, saver], **options)
    written = support.rows(logger)
    scores = [row["val/agreement/dataloader_idx_1"] for row in written if "val/agreement/dataloader_idx_1" in row]
    assert len(scores) == 3
    assert saver.best_model_score == pytest.approx(max(scores))
    for i, loader in enumerate(sets()):  # once, after the sanity check
        name = f"val/teacher_accuracy/dataloader_idx_{i}"
        expected = by_hand(support.student(), support.teacher(), loader)["teacher_accuracy"]
        assert [row[name] for row in written if name in row] == [pytest.approx(expected)]


def test_an_evaluation_begins_anew_whatever_became_of_the_last_one():
    class Breaking(support.DistillationModule):
        breaks = True

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx, dataloader_idx)
            if self.breaks and batch_idx == 1:
                raise ArithmeticError

    made = Breaking(support.student(), support.teacher(), [KDLoss()], task_loss=nn.CrossEntropyLoss())
    loader = sets()[0]
    with pytest.raises(ArithmeticError):
        support.trainer().validate(made, loader)
    made.breaks = False
    (results,) = support.trainer().validate(made, sets()[1], verbose=False)
    expected = by_hand(made.student, made.teacher, sets()[1])
    assert results == pytest.approx({f"val/{name}": value for name, value in expected.items()})
