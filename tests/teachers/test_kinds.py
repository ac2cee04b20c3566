"""The table of teachers: every row is run, and what a configuration can say of them."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader

import lightning_kd.losses
import lightning_kd.teachers
from lightning_kd import cache, teachers
from lightning_kd.commands.fit import run
from lightning_kd.losses import HintLoss, KDLoss, MutualLearning
from tests import support
from tests.test_readme import rows

PAGE = Path(teachers.__file__).with_name("README.md")
TABLE = [(kind, name.strip("`")) for kind, name, _ in rows(PAGE.read_text())]
SEED = ["pretrained", "ensemble", "curriculum", "self", "adaptive", "online", "distributed", "quantized"]
SEED += ["transformer", "multi-modal"]


class Attending(nn.Module):
    """One block of attention over the rows of a picture."""

    def __init__(self):
        super().__init__()
        self.block = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, support.CLASSES)

    def forward(self, x):
        rows = x.flatten(1, 2)
        return self.head(self.block(rows, rows, rows)[0].mean(1))


class Hearing(nn.Module):
    """Reads another part of the batch than the student."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, support.CLASSES)

    def forward(self, sound):
        return self.head(sound)


def dictionaries(**more):
    x, y = support.data().tensors
    return DataLoader([{"x": x[i], "y": y[i], **{n: v[i] for n, v in more.items()}} for i in range(24)], batch_size=8)


def two():
    return [support.seeded(lambda: support.ConvNet(8), seed) for seed in (1, 2)]


def onnx(folder):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    shapes = {"x": {0: torch.export.Dim("batch")}}
    example = (torch.zeros(2, 1, 4, 4),)
    path = folder / "teacher.onnx"
    torch.onnx.export(support.teacher().eval(), example, path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    return teachers.OnnxTeacher(path, threads=1)


def made(kind, name, folder):
    """Return the teacher of a row, and what else differs from an ordinary fit: options, callbacks, data."""
    cls = getattr(teachers, name, None)
    sound = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    if (kind, name) == ("multi-modal", "OwnColumns"):
        return Hearing(), {"teacher_inputs": cls()}, [], dictionaries(teacher_sound=sound)
    if (kind, name) == ("multi-modal", "Ensemble"):
        return cls([support.teacher(), Hearing()]), {}, [], dictionaries(sound=sound)
    if (kind, name) == ("transformer", "FrozenTeacher"):
        return cls(Attending()), {}, [], None
    if name in ("BornAgain", "EMATeacher"):
        return None, {}, [cls(2) if name == "BornAgain" else cls()], None
    if name == "MutualLearning":
        return None, {"losses": [MutualLearning(two())]}, [], None
    if name == "RoutedTeacher":
        kinds = torch.arange(24) % 2
        return cls(dict(zip("01", two(), strict=True)), key="domain"), {}, [], dictionaries(domain=kinds)
    if name == "CachedTeacher":
        data = support.data()
        folder = cache.write(support.teacher(), data, folder, losses=[KDLoss()])
        return cls(folder), {}, [], DataLoader(data, batch_size=8)
    if name == "BatchTeacher":
        return cls(logits="stored"), {}, [], dictionaries(stored=torch.randn(24, 4))
    teacher = {
        "FrozenTeacher": lambda: cls(support.teacher()),
        "Ensemble": lambda: cls(two(), "confidence" if kind == "adaptive" else "geometric"),
        "SwitchingTeacher": lambda: cls(two(), [1]),
        "FunctionTeacher": lambda: cls(lambda x: torch.stack([x.flatten(1).sum(1)] * 4, 1)),
        "OnnxTeacher": lambda: onnx(folder),
        "QuantizedTeacher": lambda: cls(support.teacher()),
    }[name]()
    return teacher, {}, [], None


@pytest.mark.parametrize(("kind", "name"), TABLE)
def test_every_kind_teaches(kind, name, tmp_path):
    teacher, options, callbacks, loader = made(kind, name, tmp_path)
    net = support.student()
    before = support.snapshot(net)
    module = support.module(net, **{"teacher": teacher, "losses": [KDLoss()], "task_loss": None, **options})
    if name in ("BornAgain", "MutualLearning"):
        module = support.module(net, **{"teacher": None, "losses": [KDLoss()], **options})
    trainer = support.fit(module, train=loader, val=loader, callbacks=callbacks)
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert any(not torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_every_kind_of_the_system_has_a_row():
    assert list(dict.fromkeys(kind for kind, _ in TABLE)) == SEED
    assert all(hasattr(lightning_kd.teachers, name) or hasattr(lightning_kd.losses, name) for _, name in TABLE)


def test_every_teacher_that_is_exported_has_a_row():
    exported = {
        name
        for name, cls in vars(teachers).items()
        if isinstance(cls, type) and issubclass(cls, teachers.Teacher | teachers.TeacherSource | teachers.Ensemble)
    }
    assert exported - {"Teacher", "TeacherSource", "Ensemble"} <= {name for _, name in TABLE}


OWN = "tests.teachers.test_kinds"
NETWORK = "{class_path: tests.support.ConvNet, init_args: {width: 8}}"


@pytest.mark.parametrize(
    "described",
    [
        f"{{class_path: Ensemble, init_args: {{members: [{NETWORK}, {NETWORK}], average: vote, weights: [1, 3]}}}}",
        "{class_path: Ensemble, init_args: {members: ["
        "{class_path: tests.support.ConvNet, init_args: {width: 8, classes: 2}}, "
        f"{NETWORK}], classes: [[0, 1], [0, 1, 2, 3]]}}}}",
        f"{{class_path: SwitchingTeacher, init_args: {{teachers: [{NETWORK}, {NETWORK}], milestones: [2]}}}}",
        f"{{class_path: RoutedTeacher, init_args: {{teachers: {{a: {NETWORK}}}, route: {OWN}.all_a}}}}",
        "{class_path: FunctionTeacher, init_args: {function: tests.teachers.test_kinds.sums}}",
        f"{{class_path: QuantizedTeacher, init_args: {{network: {NETWORK}}}}}",
    ],
)
def test_a_configuration_can_say_it(described, tmp_path):
    described = described.replace("class_path: ", "class_path: lightning_kd.teachers.", 1)
    (tmp_path / "fit.yaml").write_text(
        f"seed_everything: 1\ntrainer: {{default_root_dir: {tmp_path}, "
        "max_epochs: 1, accelerator: cpu, logger: false, enable_checkpointing: false, "
        "enable_progress_bar: false, enable_model_summary: false, log_every_n_steps: 1}\n"
        f"model:\n  student: {NETWORK}\n  teacher: {described}\n"
        "  losses: [{class_path: KDLoss}]\n"
        "data: {class_path: tests.teachers.test_kinds.Data}\n"
    )
    cli = run(["fit", f"--config={tmp_path / 'fit.yaml'}"])
    assert cli.trainer.callback_metrics["train/kd"].isfinite()


def all_a(batch):
    return ["a"] * len(batch[0])


def sums(x):
    return torch.stack([x.flatten(1).sum(1)] * 4, 1)


class Data(LightningDataModule):
    def train_dataloader(self):
        return support.loader()

    def val_dataloader(self):
        return support.loader()


def test_a_loss_of_layers_reads_a_teacher_that_hears():
    """A layer of a teacher on its own columns has the student's rows."""
    sound = torch.randn(24, 3)
    teacher = support.seeded(Hearing, 4)
    module = support.module(teacher=teacher, losses=[HintLoss("head", "head")], task_loss=None)
    trainer = support.fit(module, train=dictionaries(sound=sound), val=dictionaries(sound=sound), max_epochs=1)
    assert trainer.callback_metrics["train/hint"].isfinite()
