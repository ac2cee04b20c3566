"""The command ``lightning-kd init``: files to start a distillation of one's own from."""

import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import nn

from lightning_kd.commands.parsing import yaml_text
from lightning_kd.commands.parsing.parser import call_with

_FIT = """\
# Distil a student from a teacher:
#   lightning-kd fit --config {folder}/fit.yaml
# Before a long fit:
#   lightning-kd check --config {folder}/fit.yaml     what is wrong, and what to do
#   lightning-kd layers --config {folder}/fit.yaml    which layers losses of features may read
seed_everything: 1
trainer:
  max_epochs: 20
  accelerator: auto
  # precision: bf16-mixed
  # devices: 2
  enable_model_summary: false
  logger: {{class_path: CSVLogger, init_args: {{save_dir: {folder}/runs, name: fit}}}}
model:
  student:
{student}
  teacher:
{teacher}
  # The teacher's weights: a state dict, .safetensors, or a Lightning checkpoint.
  # teacher_weights: teacher.safetensors
  # What the teacher is to see where that is not what the student sees:
  # teacher_inputs: {{class_path: lightning_kd.teachers.Resize, init_args: {{size: 224}}}}
  losses:
    # `lightning-kd losses` lists all; `lightning-kd losses KDLoss` tells all of one
    - class_path: KDLoss
      init_args: {{temperature: 4.0, weight: 0.9}}
    # - class_path: HintLoss
    #   init_args: {{student: LAYER, teacher: LAYER, weight: 1.0}}
  # The task's own loss on (logits, target); leave it out where there are no labels.
  task_loss: torch.nn.CrossEntropyLoss
  task_weight: 0.1
  optimizer:
    class_path: torch.optim.AdamW
    init_args: {{lr: 0.01}}
  lr_scheduler:
    class_path: torch.optim.lr_scheduler.CosineAnnealingLR
    init_args: {{T_max: 20}}  # as many as max_epochs
data:
{data}
"""
_TEACHER = """\
# Train the teacher, without a teacher of its own (half a minute on 2 cores):
#   lightning-kd fit --config {folder}/teacher.yaml
# `teacher` in parts.py reads what this writes.
seed_everything: 1
trainer:
  max_epochs: 20
  accelerator: auto
  enable_model_summary: false
  logger: false
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {{dirpath: {folder}, filename: teacher, enable_version_counter: false}}
model:
  student: {{class_path: parts.Teacher}}
  task_loss: torch.nn.CrossEntropyLoss
  optimizer:
    class_path: torch.optim.AdamW
    init_args: {{lr: 0.003}}
data:
{data}
"""
_HEAD = '''\
"""Networks and data of your own. The names in fit.yaml, such as parts.Student, are those of this file."""

{imports}
'''
_STUDENT = '''

class Student(nn.Module):
    """The network that learns. Put yours in its place; it returns logits (B, classes)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.head(self.features(images).mean((2, 3)))
'''
_TEACHER_CLASS = '''

class Teacher(nn.Module):
    """The large network. Put yours in its place; it returns logits of the student's classes."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
        )
        self.head = nn.Linear(2 * width * 16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.head(self.features(images).flatten(1))


def teacher() -> nn.Module:
    """Return the teacher with its weights, which teacher.yaml trains."""
    weights = Path(__file__).with_name("teacher.ckpt")
    if not weights.is_file():
        print(f"There is no {weights} yet, so the teacher is untrained: run teacher.yaml first.")
        return Teacher()
    return from_checkpoint(Teacher(), str(weights), "student.")
'''
_DATA = '''

class Data(LightningDataModule):
    """The data. Put your data sets in the place of the digits; a batch is (inputs, class ids)."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Read the data."""
        train, held_out = DigitsDataModule().read()
        self.train_set, self.held_out_set = TensorDataset(*train), TensorDataset(*held_out)

    def train_dataloader(self) -> DataLoader:
        """Serve what is learnt from, in random order."""
        return DataLoader(self.train_set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Serve what is held out."""
        return DataLoader(self.held_out_set, self.batch_size)
'''


def init(words: list[str]) -> None:
    """Write files to start from.

    Args:
        words: Arguments as on the command line, after ``init``.
    """
    call_with(words, write, "init")


def write(output: str, student: str | None = None, teacher: str | None = None, data: str | None = None) -> None:
    """Write a commented fit.yaml, and parts.py with the networks and the data that you do not name.

    What is written runs as it stands: lightning-kd fit --config DIR/fit.yaml. Without names it distils small networks
    on handwritten digits, which come with scikit-learn. Nothing is overwritten.

    Args:
        output: Folder to write into; it is made if it is not there.
        student: Class of your student, such as my_package.nets.Small.
        teacher: Class of your teacher, or a function that returns it.
        data: Class of your data, a LightningDataModule.

    Raises:
        FileExistsError: If one of the files is there already.
        ValueError: If a name cannot be imported, or is of another kind.
    """
    folder = Path(output)
    for name in (student, teacher, data):
        if name is not None and ":" in name:
            raise ValueError(f"{name!r}: write the class after a dot, {name.replace(':', '.')!r}.")
    own = {"student": student, "teacher": teacher, "data": data}
    blocks = {
        "student": _block(student or "parts.Student", _made("student", student, nn.Module), 4),
        "teacher": _block(teacher or "parts.teacher", _made("teacher", teacher, nn.Module), 4),
        "data": _block(data or "parts.Data", _made("data", data, LightningDataModule), 2),
    }
    files = {"fit.yaml": _FIT.format(folder=folder, **blocks)}
    if not all(own.values()):
        files["parts.py"] = _parts({name for name, given in own.items() if given is None})
    if teacher is None:
        files["teacher.yaml"] = _TEACHER.format(folder=folder, data=blocks["data"])
    for name in files:
        if (folder / name).exists():
            raise FileExistsError(
                f"{str(folder / name)!r} is there already, and nothing is overwritten. Give another "
                "folder, or move it away."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        with (folder / name).open("x", encoding="utf-8") as file:
            file.write(text)
        print(f"wrote {folder / name}")
    if teacher is None:
        print(f"First:  lightning-kd fit --config {folder}/teacher.yaml   (trains the teacher)")
    if data is None and (student or teacher):
        print(f"Before: put your data into {folder}/parts.py; the class Data there serves handwritten digits.")
    print(f"{'Then' if teacher is None else 'Next'}:   lightning-kd fit --config {folder}/fit.yaml")


def _parts(missing: set[str]) -> str:
    imports = {
        "student": ("import torch", "from torch import nn"),
        "teacher": (
            *("from pathlib import Path", "import torch", "from torch import nn"),
            "from lightning_kd.teachers import from_checkpoint",
        ),
        "data": (
            *("from lightning.pytorch import LightningDataModule", "from lightning_kd.data import DigitsDataModule"),
            "from torch.utils.data import DataLoader, TensorDataset",
        ),
    }
    texts = {"student": _STUDENT, "teacher": _TEACHER_CLASS, "data": _DATA}
    found = {line for name in missing for line in imports[name]}
    lines = sorted(found, key=lambda line: ("pathlib" not in line, line.startswith("from"), line))
    if "pathlib" in lines[0]:
        lines.insert(1, "")
    return _HEAD.format(imports="\n".join(lines)) + "".join(text for name, text in texts.items() if name in missing)


def _made(option: str, name: str | None, kind: type) -> Callable[..., Any] | None:
    """Return what a name stands for, ``None`` without one."""
    if name is None:
        return None
    try:
        found = pkgutil.resolve_name(name if "." in name or ":" in name else f"lightning_kd.data.{name}")
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--{option} {name}: {error}. Give the dotted name of a class that can be imported from this folder."
        ) from None
    if inspect.isclass(found) and not issubclass(found, kind):
        raise ValueError(f"--{option} {name}: expected a {kind.__name__}, got the class {found.__name__}.")
    if not callable(found):
        raise ValueError(f"--{option} {name}: expected a class or a function, got {found!r:.60}.")
    made: Callable[..., Any] = found
    return made


def _block(name: str, made: Callable[..., Any] | None, indent: int) -> str:
    """Return the YAML of a class: its options as comments with their defaults; those that must be given are open."""
    lines = [f"class_path: {name}"]
    if made is not None:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = [one for one in inspect.signature(made).parameters.values() if one.kind in kinds]
        needed = [one for one in parameters if one.default is inspect.Parameter.empty]
        lines += [f"{'' if needed else '# '}init_args:"] if parameters else []
        lines += [f"  {one.name}: null  # must be given" for one in needed]
        lines += [f"#   {one.name}: {_in_yaml(one.default)}" for one in parameters if one not in needed]
    return "\n".join(" " * indent + line for line in lines)


def _in_yaml(value: Any) -> str:
    return yaml_text.dump(value) if isinstance(value, str | int | float | bool | list | dict | None) else repr(value)
