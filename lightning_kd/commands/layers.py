"""The command ``lightning-kd layers``: both networks layer by layer, and which layers to compare."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_kd.capture.batch import call_in_words
from lightning_kd.capture.networks import isolated_random_state, num_parameters, original
from lightning_kd.capture.trace import Ran
from lightning_kd.commands.building.data import loader_of, prepare_data, transferred
from lightning_kd.commands.building.fit import build
from lightning_kd.commands.building.students import of_student
from lightning_kd.commands.parsing import yaml_text
from lightning_kd.commands.parsing.fit_words import call_with_fit
from lightning_kd.doctor.layers import Cost, counting, rows_of
from lightning_kd.doctor.pairs import Pair, suggest
from lightning_kd.engine.first_call import FirstCall
from lightning_kd.module import DistillationModule


def layers(words: list[str]) -> None:
    """Print both networks of a fit.

    Args:
        words: Arguments as on the command line, after ``layers``.
    """
    call_with_fit(words, show, "layers")


def show(config: str | Sequence[str], depth: int | None = 2, rows: int = 32, student: str = "") -> None:
    """Show the layers of a fit's student and teacher on a batch of its data, and suggest pairs to compare.

    The losses of the configuration need not be right yet. A cost is in floating point operations a sample.

    Args:
        config: YAML file of the fit, or the words that follow ``lightning-kd fit``.
        depth: How deep in a network a layer may lie to be shown; null for all.
        rows: How many samples the networks are called with; CKA needs a few dozen to mean much.
        student: Which of several students to show; by default each of them.

    Raises:
        FileNotFoundError: If there is no such configuration.
        ValueError: If there is no such student.
    """
    fit = build(config, with_losses=False)
    chosen = fit.chosen(student)
    prepare_data(fit, "train")
    with isolated_random_state():
        batch = transferred(next(iter(_small(loader_of(fit.data, "train"), rows))), fit.data, fit.module)
        texts = {name: _of_one(name, member, batch, depth) for name, member in chosen.items()}
    print("\n\n".join(of_student(name, text) for name, text in texts.items()))


def _of_one(name: str, module: DistillationModule, batch: Any, depth: int | None) -> str:
    """Return the tables of a student and its teacher, with the suggested pairs."""
    run = module.run
    teacher = None if run.teacher is None else run.teacher.layered

    def call(given: Any) -> object:
        read = module.unpack_batch(given)
        return run.step.capture.call(*read.args, **read.kwargs)

    networks = [original(network) for network in (run.student, teacher) if network is not None]
    with isolated_random_state(), counting(*networks) as cost:
        ran = FirstCall(run.step, batch, lambda given: call_in_words(call, given), module).trace()
    pairs = [] if teacher is None else suggest(*ran)
    own = _table("student", ran[0], cost, depth, {pair.student for pair in pairs})
    if teacher is None:
        return (
            f"{own}\n\nteacher: {'none' if run.teacher is None else type(run.teacher).__name__}, which has no layers."
        )
    its = _table("teacher", ran[1], cost, depth, {pair.teacher for pair in pairs})
    return f"{own}\n\n{its}\n\n{_suggested(pairs, name)}"


def _small(loader: DataLoader[Any], rows: int) -> DataLoader[Any]:
    """Return a loader of batches of at most so many samples, where they can be chosen."""
    size = min(rows, loader.batch_size or rows)
    if isinstance(loader.dataset, IterableDataset) or size == loader.batch_size:
        return loader
    generator = torch.Generator().manual_seed(0)
    return DataLoader(loader.dataset, size, shuffle=True, collate_fn=loader.collate_fn, generator=generator)


def _table(role: str, ran: Ran, cost: Cost, depth: int | None, also: Collection[str]) -> str:
    total = max(cost.of(ran.network), 1)
    samples = 1 if ran.output is None else max(len(ran.output), 1)
    rows = rows_of(ran, cost, depth, also)
    cells = [("layer", "kind", "output", "parameters", "cost")]
    cells += [(row.name, row.kind, str(row.shape), f"{row.parameters:,}", f"{row.flops / total:.1%}") for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = [
        f"{role}: {type(ran.network).__name__}, {num_parameters(ran.network):,} parameters, "
        f"{_short(total / samples)}FLOP a sample"
    ]
    for line in cells:
        left = "  ".join(f"{cell:<{width}}" for cell, width in zip(line[:3], widths[:3], strict=True))
        right = "  ".join(f"{cell:>{width}}" for cell, width in zip(line[3:], widths[3:], strict=True))
        lines.append(f"  {left}  {right}")
    return "\n".join(lines)


def _short(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} T"


def _suggested(pairs: list[Pair], student: str) -> str:
    """Return the pairs as YAML to paste, each with its reason."""
    if not pairs:
        return "No pair of layers is suggested: the networks have no stages in common."
    lines = [
        "# Suggested pairs, each as a loss of its own. Take one or more; `lightning-kd losses` lists other losses."
    ]
    lines += ["model:", "  losses:"]
    if student:
        lines.append(f"    {yaml_text.dump(student)}:")
    indent = "      " if student else "    "
    for pair in pairs:
        lines += [f"{indent}# {pair.reason}", f"{indent}- class_path: {pair.loss.__name__}", f"{indent}  init_args:"]
        names = {"student": pair.student, "teacher": pair.teacher}  # those of a Sequential are numbers, read as text
        lines += [f"{indent}    {role}: {yaml_text.dump(name)}" for role, name in names.items()]
    return "\n".join(lines)
