"""The command ``lightning-kd export``: the student inside a checkpoint as a file of its own."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from lightning_kd.capture.example import zeros_for
from lightning_kd.commands.parsing import yaml_text
from lightning_kd.commands.parsing.messages import condense
from lightning_kd.commands.parsing.parser import Parser, call_with
from lightning_kd.export.student import Format, choose_format, export_student, write_weights
from lightning_kd.files.checkpoint import CHECKPOINT_KEY
from lightning_kd.files.class_paths import check_value
from lightning_kd.files.precision import Precision, dtype_of
from lightning_kd.files.reading import check_class_names, load_plain
from lightning_kd.files.weights import from_checkpoint, read_weights


def export(words: list[str]) -> None:
    """Write the student inside a checkpoint as a file of its own.

    Args:
        words: Arguments as on the command line, after ``export``.
    """
    call_with(words, export_checkpoint, "export")


def export_checkpoint(
    checkpoint: str,
    output: str,
    format: Format | None = None,  # noqa: A002  --format is the option's name; the builtin is not needed here
    dtype: Precision | None = None,
    config: str | None = None,
    prefix: str = "student.",
) -> None:
    """Write the student inside a Lightning checkpoint as a file of its own.

    Weights alone (.safetensors, .pt, .pth) need nothing but the checkpoint. For a program (.pt2, .onnx) the student is
    built: as the checkpoint says, if the command line has written it, or as the configuration of the fit says. A
    checkpoint that was written from Python does not say how its student is built; there, call
    module.export("student.onnx").

    Args:
        checkpoint: The checkpoint that a fit has written.
        output: File to write; its ending decides the format.
        format: What to write, if the ending does not say it: state_dict (.pt, .pth), safetensors, torch.export (.pt2)
            or onnx.
        dtype: Format of the weights, and of a program's floating inputs; by default that of the checkpoint.
        config: YAML file of the fit, to build the student of a program as it says; a student of your own module is
            built only so, since a checkpoint may not import code.
        prefix: What the student's keys begin with; for a LightningModule of your own, the name of the student in it;
            for one of several students, "NAME.student.".

    Raises:
        FileNotFoundError: If there is no such checkpoint or configuration.
        ValueError: If no key begins with the prefix, the format is unknown, or the student cannot be built.
    """
    path, chosen = Path(output), choose_format(Path(output), format)
    if chosen in ("state_dict", "safetensors"):
        write_weights(read_weights(checkpoint, prefix), path, chosen, dtype=dtype_of(dtype))
        return
    content = load_plain(checkpoint)
    content = content if isinstance(content, Mapping) else {}
    saved = content.get(CHECKPOINT_KEY, {})
    name = prefix.partition(".")[0]
    names = list(saved.get("students", {}))
    if names and name not in names:
        raise ValueError(
            f"{checkpoint!r} holds the students {names}; say which one to write: --prefix {names[0]}.student."
        )
    inputs = saved["students"][name].get("inputs") if names else saved.get("inputs")
    if inputs is None:
        raise ValueError(
            f"{checkpoint!r} does not say what its student is called with, which {chosen} needs; in Python, call "
            "lightning_kd.export_student(student, path, example=...)."
        )
    several = name if names else None
    student = _build(_described(content, checkpoint, several) if config is None else _configured(config, several))
    export_student(from_checkpoint(student, checkpoint, prefix), path, chosen, dtype=dtype, example=zeros_for(inputs))


def _described(content: Mapping[str, Any], checkpoint: str, name: str | None) -> object:
    """Return how a checkpoint says that its student is made, or the one of that name."""
    options = content.get("hyper_parameters", {})
    described = options.get("student") if name is None else (options.get("students") or {}).get(name)
    if described is None:
        raise ValueError(
            f"{checkpoint!r} does not say how its student is made; give the YAML file of its fit by --config, or call "
            "module.export in Python."
        )
    check_class_names({"hyper_parameters": {"student": described}}, checkpoint)
    return described


def _configured(config: str, name: str | None) -> object:
    """Return how a configuration says that the student is made, or the one of that name."""
    if not Path(config).is_file():
        raise FileNotFoundError(f"There is no file {config!r} (looked from {os.getcwd()!r}).")
    content = yaml_text.load(Path(config).read_text(), config)
    model = content.get("model") if isinstance(content, Mapping) else None
    found = None
    if isinstance(model, Mapping):
        found = model.get("student") if name is None else (model.get("students") or {}).get(name)
    if found is None:
        wanted = "model.student" if name is None else f"model.students.{name}"
        raise ValueError(f"{config!r} has no {wanted}; give the YAML file of the fit.")
    return found


def _build(described: object) -> nn.Module:
    parser = Parser(exit_on_error=False)
    # LightningCLI parses the student with fail_untyped=False too, so an argument without a type is accepted
    parser.add_subclass_arguments(nn.Module, "student", fail_untyped=False)
    try:
        parsed = parser.parse_object({"student": described})
    except argparse.ArgumentError as error:
        raise ValueError(f"The student cannot be built: {condense(str(error))}.") from error
    check_value(parsed.student, nn.Module, "student")
    return cast(nn.Module, parser.instantiate_classes(parsed).student)
