"""A record holds what the networks did, and recording leaves the training as it was."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationModule
from lightning_kd.functional import kd_loss
from lightning_kd.losses import HintLoss, KDLoss, MultiLabelKDLoss, RegressionKDLoss
from lightning_kd.report import RecordRun
from lightning_kd.report.curve import Curve
from lightning_kd.report.kept import distances
from lightning_kd.report.record import Record
from tests import support


class CheckpointedNet(support.StagedNet):
    """Computes its first stage again in the backward pass, where BatchNorm would count a batch twice."""

    def forward(self, x):
        return self.head(self.embedding(self.stage2(checkpoint(self.stage1, x, use_reentrant=False))))


def recorded(folder, made, callbacks=(), **options):
    support.fit(made, callbacks=[*callbacks, RecordRun(folder)], **options)
    return Record.read(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fit of two epochs, its record, and both networks as they are at its end."""
    folder = tmp_path_factory.mktemp("run")
    made = support.module()
    record = recorded(folder, made)
    return made, record, folder


def weights_of(made):
    return {name: value.clone() for name, value in made.state_dict().items()}


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("network", [support.student, lambda: support.seeded(lambda: CheckpointedNet(3), 4)])
def test_training_is_the_same_bit_for_bit_with_and_without_a_record(door, network, tmp_path):
    results = []
    for callbacks in ([], [RecordRun(tmp_path)]):
        losses = [KDLoss(weight=0.7), RegressionKDLoss(weight=0.2)]
        made, doors = support.through(door, network(), losses=losses)
        support.fit(made, callbacks=[*doors, *callbacks])
        results.append((weights_of(made), torch.get_rng_state()))
    assert Record.read(tmp_path).facts["gradients"][0]["parts"] == ["task", "kd", "regression_kd"]
    (plain, state), (other, its_state) = results
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    assert torch.equal(state, its_state)


def test_outputs_are_those_of_both_networks(run):
    made, record, _ = run
    x, y = support.data(24).tensors
    made.student.eval()
    with torch.no_grad():
        torch.testing.assert_close(record.outputs["student_logits"], made.student(x))
        torch.testing.assert_close(record.outputs["teacher_logits"], made.run.teacher.module(x))
    assert torch.equal(record.outputs["target"], y)
    assert record.facts["run"]["finished"]
    assert (record.facts["run"]["rows"], record.facts["run"]["seen"]) == (24, 24)


def test_pictures_are_of_the_rows_that_are_farthest_apart(run):
    _, record, _ = run
    apart = distances(record.outputs["student_logits"], record.outputs["teacher_logits"])
    rows = record.outputs["picture_rows"]
    assert rows.tolist() == sorted(range(24), key=lambda row: -float(apart[row]))[:12]
    x = support.data(24).tensors[0][rows[0]]
    expected = ((x - x.min()) / (x.max() - x.min()) * 255).round().to(torch.uint8)
    assert torch.equal(record.outputs["pictures"][0], expected)


def test_curve_and_metrics_are_what_the_run_logged(run):
    made, record, _ = run
    curve = record.facts["curve"]
    assert curve["steps"] == [0, 1, 2, 3, 4, 5]
    weights = {name: column[-1] for name, column in curve["weights"].items()}
    total = sum(weights[name] * curve["values"][name][-1] for name in weights)
    assert total == pytest.approx(curve["values"]["loss"][-1], rel=1e-5)
    means = made.run.log.epoch_means
    for name, value in means.items():
        assert np.mean(curve["values"][name][3:]) == pytest.approx(value, rel=1e-5)
    assert [one["epoch"] for one in record.facts["metrics"]] == [0, 1]
    assert record.facts["metrics"][-1]["values"]["val/accuracy"] == pytest.approx(made.run.results["accuracy"])


def test_gradients_are_those_of_the_weighted_parts(tmp_path):
    x, y = support.data(8).tensors
    x = x.flatten(1)
    student, teacher = (support.seeded(lambda: nn.Linear(16, support.CLASSES), seed) for seed in (1, 2))
    parts = {}
    for name, loss in (
        ("task", lambda logits: 0.3 * nn.functional.cross_entropy(logits, y)),
        ("kd", lambda logits: 0.7 * kd_loss(logits, teacher(x).detach(), temperature=4.0)),
    ):
        found = torch.autograd.grad(loss(student(x)), list(student.parameters()))
        parts[name] = torch.cat([one.flatten() for one in found]).double()
    module = DistillationModule(
        student, teacher, [KDLoss(temperature=4.0, weight=0.7)], task_loss=nn.CrossEntropyLoss(), task_weight=0.3
    )
    rows = DataLoader(TensorDataset(x, y), batch_size=8)
    record = recorded(tmp_path, module, train=rows, val=rows, max_epochs=1)
    (found,) = record.facts["gradients"]
    assert found["parts"] == ["task", "kd"]
    expected = [[float(a @ b) for b in parts.values()] for a in parts.values()]
    np.testing.assert_allclose(found["products"], expected, rtol=1e-4)


def test_costs_and_likeness_are_those_of_the_networks(tmp_path):
    x, y = support.data(16).tensors
    x = x.flatten(1)
    student = nn.Sequential(nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 4))
    teacher = nn.Sequential(nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 4))
    teacher.load_state_dict(student.state_dict())
    # trained at a rate of 0, both stay equal
    module = DistillationModule(
        student, teacher, [HintLoss("1", "1")], optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    )
    rows = DataLoader(TensorDataset(x, y), batch_size=8)
    facts = recorded(tmp_path, module, train=rows, val=rows, max_epochs=1).facts
    assert facts["student"]["parameters"] == 16 * 5 + 5 + 5 * 4 + 4
    assert facts["student"]["flops"] == facts["teacher"]["flops"] == 8 * 2 * (16 * 5 + 5 * 4)
    assert facts["student"]["latency"] > 0
    layers = facts["layers"]
    assert layers["samples"] == 16
    assert "1" in layers["student"]
    assert layers["student"] == layers["teacher"]
    np.testing.assert_allclose(np.diag(layers["cka"]), 1.0, atol=1e-6)
    assert facts["notes"] == {}


def test_a_wide_layer_is_compared_exactly(tmp_path):
    from lightning_kd.metrics import LinearCKA
    from lightning_kd.report.likeness import _cka, _whole

    x, y = torch.randn(12, 40), torch.randn(12, 3)
    whole = LinearCKA(40, 3, debiased=True)
    whole.update(x, y)
    narrow = _whole({"x": [x[:5], x[5:]], "y": [y[:5], y[5:]]}, batches=2)
    assert narrow["x"].shape == (12, 12)
    assert _cka(narrow["x"], narrow["y"]) == pytest.approx(float(whole.compute()), abs=1e-6)


def test_the_files_are_plain(run):
    _, record, folder = run
    assert sorted(path.name for path in folder.iterdir()) == ["outputs.safetensors", "record.json"]
    facts = json.loads((folder / "record.json").read_text())
    assert facts == record.facts
    assert facts["format"] == 1


def test_a_fit_that_breaks_off_leaves_what_is_known(tmp_path):
    class Breaks(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4:
                raise RuntimeError("broken off")

    made = support.module()
    with pytest.raises(RuntimeError, match="broken off"):
        support.fit(made, callbacks=[RecordRun(tmp_path), Breaks()])
    facts = Record.read(tmp_path).facts
    assert not facts["run"]["finished"]
    assert facts["curve"]["steps"] == [0, 1, 2, 3]
    assert not made.run.lines.readers
    assert not made.run.evaluation.readers


def test_a_resumed_fit_goes_on_with_its_curves(tmp_path):
    whole = recorded(tmp_path / "whole", support.module(), max_epochs=3)
    first = support.module()
    trainer = support.fit(first, callbacks=[RecordRun(tmp_path / "run")], max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = recorded(tmp_path / "run", support.module(), max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.facts["curve"]["steps"] == whole.facts["curve"]["steps"]
    assert [one["epoch"] for one in resumed.facts["metrics"]] == [0, 1, 2]
    assert [one["epoch"] for one in resumed.facts["gradients"]] == [0, 1, 2]
    assert len(recorded(tmp_path / "run", support.module(), max_epochs=1).facts["metrics"]) == 1


def test_each_of_several_students_has_its_folder(tmp_path):
    students = {
        "small": support.seeded(lambda: support.ConvNet(2), 1),
        "tiny": support.seeded(lambda: support.ConvNet(1), 2),
    }
    made = DistillationModule(students=students, teacher=support.teacher(), losses=[KDLoss()])
    support.fit(made, callbacks=[RecordRun(tmp_path)], max_epochs=1)
    sizes = [Record.read(tmp_path / name).facts["student"]["parameters"] for name in students]
    assert sizes == [sum(p.numel() for p in network.parameters()) for network in students.values()]
    with pytest.raises(FileNotFoundError, match="holds the records small, tiny; name one"):
        Record.read(tmp_path)


@pytest.mark.parametrize(
    ("loss", "task", "name", "target"),
    [
        (RegressionKDLoss, nn.MSELoss, "val/mse", torch.rand(16, 4)),
        (MultiLabelKDLoss, nn.BCEWithLogitsLoss, "val/f1", torch.eye(4).repeat(4, 1)),  # as if each had one class
    ],
)
def test_what_has_no_classes_is_recorded_without_outputs(loss, task, name, target, tmp_path):
    rows = DataLoader(TensorDataset(support.data(16).tensors[0].flatten(1), target), batch_size=8)
    module = DistillationModule(nn.Linear(16, 4), nn.Linear(16, 4), [loss()], task_loss=task())
    record = recorded(tmp_path, module, train=rows, val=rows, max_epochs=1)
    assert record.outputs == {}
    assert record.facts["notes"]["outputs"] == "the outputs are no class scores of samples"
    assert name in record.facts["metrics"][0]["values"]


def test_what_is_no_record_is_refused_in_a_line(tmp_path, run):
    with pytest.raises(FileNotFoundError, match=r"holds no record of a run. A fit writes one with .*RecordRun"):
        Record.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        Record.read(tmp_path / "missing")
    for text, message in (
        ("{", "is no record of a run"),
        ("[]", "names no format"),
        ('{"format": 99}', "later version"),
        ('{"format": 1, "run": {}}', "it lacks student, teacher, losses"),
    ):
        (tmp_path / "record.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Record.read(tmp_path)
    (tmp_path / "record.json").write_bytes((run[2] / "record.json").read_bytes())
    (tmp_path / "outputs.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="cannot be read"):
        Record.read(tmp_path)


def test_a_fit_that_is_no_distillation_is_refused(tmp_path):
    class Plain(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = support.student()

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(ValueError, match="this fit is none; train a DistillationModule"):
        support.trainer(callbacks=[RecordRun(tmp_path)]).fit(Plain(), support.loader())
    with pytest.raises(ValueError, match="expected points > 1"):
        RecordRun(tmp_path, points=1)


def test_a_long_curve_keeps_means_over_all_steps():
    curve = Curve(most=4)
    for step in range(1000):
        curve.add(
            step, {"loss": float(step)} | ({"late": 1.0} if step >= 600 else {}), {"late": 2.0} if step >= 600 else {}
        )
    state = curve.state()
    assert 4 <= len(state["steps"]) <= 8
    assert state["steps"][-1] == 999
    assert sum(state["counts"]) == 1000
    weighted = sum(value * count for value, count in zip(state["values"]["loss"], state["counts"], strict=True))
    assert weighted / 1000 == pytest.approx(499.5)
    assert state["values"]["late"][0] is None
    assert state["values"]["late"][-1] == 1.0
    again = Curve(most=4)
    again.restore(json.loads(json.dumps(state)), before=10**9)
    assert again.state() == state
