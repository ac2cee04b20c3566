"""The published recipes that ship: what the command line makes of them has the numbers of the authors' code."""

import json

import pytest
import torch
import yaml
from torch import Tensor

from lightning_kd import DistillationModule
from lightning_kd.commands.fit import DistillationCLI
from lightning_kd.commands.parsing.presets import FOLDER, names, path_of, with_presets
from tests.commands.recorded import Recorded, record
from tests.losses.golden import TOKENS, golden

LAST = {"student": "distilbert.transformer.layer.5", "teacher": "bert.encoder.layer.11"}
PROJECTIONS = {
    side: [f"bert.encoder.layer.{layer}.attention.self.{one}" for one in ("query", "key", "value")]
    for side, layer in (("student", 5), ("teacher", 11))
}


def built(preset: str, *options: str) -> DistillationModule:
    """The module that the command line makes of a preset."""
    words = [f"--config=preset:{preset}", "--data=DigitsDataModule", "--seed_everything=1", *options]
    return DistillationCLI(args=words, run=False).model


def total(preset: str, name: str, places: dict[str, list[str]], *options: str) -> tuple[Tensor, Recorded, Recorded]:
    """The loss that the command line makes of a preset, of the batch on record, and both networks."""
    model = {}
    for side in ("student", "teacher"):
        layers = [place for place in places[side] if "." in place]
        arguments = {"name": name, "side": side, "places": places[side], "layers": layers}
        model[side] = {"class_path": "tests.commands.recorded.Recorded", "init_args": arguments}
    words = [f"--model.{side}={json.dumps(given)}" for side, given in model.items()]
    module = built(preset, *words, *options)
    batch = batch_of(name)
    module.double().prepare(batch)
    loss = module.training_step(batch, 0)
    assert isinstance(module.student, Recorded)
    return loss, module.student, module.teacher


def batch_of(name: str) -> dict[str, Tensor]:
    arrays = record(name).arrays
    rows = len(arrays["s0"])
    length = arrays["mask"].shape[1] if "mask" in arrays else 1
    batch = {"input_ids": torch.arange(rows).unsqueeze(1).expand(rows, length)}
    if "mask" in arrays:
        batch["attention_mask"] = arrays["mask"].long()
    return batch | ({"labels": arrays["labels"]} if "labels" in arrays else {})


def check(name: str, loss: Tensor, student: Recorded) -> None:
    arrays = record(name).arrays
    assert loss.item() == pytest.approx(arrays["loss"].item(), rel=1e-10)
    loss.backward()
    for number, value in enumerate(student.values):
        expected = arrays[f"grad_s{number}"]
        assert value.grad is not None or not expected.any()
        if value.grad is not None:
            torch.testing.assert_close(value.grad, expected, rtol=1e-8, atol=1e-8 * expected.abs().max().item())


def named(name: str, *suffixes: str) -> list[str]:
    return [str(one) for one in golden(name, *suffixes, folder=TOKENS)]


@pytest.mark.parametrize("name", [*named("distilbert", "__mlm"), "distilbert-c0__restrict"])
def test_distilbert_is_that_of_the_authors(name: str) -> None:
    places = {side: ["logits", LAST[side]] for side in LAST}
    known = ["--model.losses.token_kd.shift=false", "--model.losses.hidden_state.layout=NLC"]  # classes tell elsewhere
    options = ["--model.losses.token_kd.tokens=labels"] if name.endswith("restrict") else []
    loss, student, _ = total("distilbert", name, places, *known, *options)
    check(name, loss, student)


@pytest.mark.parametrize("name", [*named("deit", "__hard_a.5"), "deit-c0__soft_a.1_t3"])
def test_deit_is_that_of_the_authors(name: str) -> None:
    options = []
    if "soft" in name:  # as the comments of the file say
        weight = 0.1 / record(name).arrays["s0"].shape[1]
        options = [f"--model.losses.kd.{one}" for one in ("hard=false", "temperature=3", f"weight={weight!r}")]
        options += ["--model.task_weight=0.9"]
    places = {"student": ["cls_logits", "distillation_logits"], "teacher": ["logits"]}
    loss, student, _ = total("deit", name, places, *options)
    check(name, loss, student)


@pytest.mark.parametrize("name", [*named("minilm_relations", "__v2"), "minilm_relations-c0__v1"])
def test_minilm_is_that_of_the_authors(name: str) -> None:
    options = [f"--model.losses.qkv_relation.relation_heads={record(name).hyper['relation_heads']}"]
    if name.endswith("v1"):
        options += ["--model.losses.qkv_relation.relations={QK: 1, VV: 1}"]
    loss, student, _ = total("minilm", name, PROJECTIONS, *options)
    check(name, loss, student)


def layers_of(number: int) -> list[str]:
    return [f"bert.encoder.layer.{i}" for i in range(number)]


@pytest.mark.parametrize(
    "name", [*named("tinybert_layers", "__sum"), "tinybert_layers-c0__att", "tinybert_layers-c0__rep"]
)
def test_tinybert_is_that_of_the_authors(name: str) -> None:
    found = record(name)
    # of the networks on record: attention i is read from (i + 1) m - 1, hidden state i from i m, of which 0 is before
    depth, whole = (int(found.hyper[f"{side}_layers"]) for side in ("student", "teacher"))
    step = whole // depth
    students = [found.arrays[f"s{i}"].clone().requires_grad_() for i in range(2 * depth + 1)]
    teachers = [found.arrays[f"t{i}"] for i in range(2 * whole + 1)]
    blocks = {"student": layers_of(depth), "teacher": layers_of(whole)[step - 1 :: step]}
    options = [f"--model.losses.attention_matrix.{side}={names}" for side, names in blocks.items()]
    states = {side: ["bert.embeddings", *names] for side, names in blocks.items()}
    options += [f"--model.losses.hidden_state.{side}={names}" for side, names in states.items()]
    networks = [
        f"--model.{side}={json.dumps({'class_path': 'tests.commands.recorded.Layers', 'init_args': {'layers': names}})}"
        for side, names in states.items()
    ]
    attention, hidden = built("tinybert", *networks, *options).losses.values()
    ours = {"__att": students[:depth], "__rep": students[depth:]}
    theirs = {"__att": teachers[step - 1 : whole : step], "__rep": teachers[whole::step]}
    loss = torch.zeros((), dtype=torch.float64)
    for part, one in (("__att", attention), ("__rep", hidden)):
        sides = (one.student_layers, ours[part]), (one.teacher_layers, theirs[part])
        one.build(*({name: tuple(value.shape) for name, value in zip(*side, strict=True)} for side in sides))
        if found.suffix in (part, "__sum"):
            loss = loss + one.weight * one(ours[part], theirs[part])
    assert loss.item() == pytest.approx(found.arrays["loss"].item(), rel=1e-10)
    loss.backward()
    for number, value in enumerate(students):
        expected = found.arrays[f"grad_s{number}"]
        grad = torch.zeros_like(value) if value.grad is None else value.grad
        torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-10)


def test_the_layers_of_tinybert_are_the_last_of_three() -> None:
    attention, hidden = yaml.safe_load(path_of("tinybert").read_text())["model"]["losses"]
    last = layers_of(12)[2::3]
    assert (attention["init_args"]["student"], attention["init_args"]["teacher"]) == (layers_of(4), last)
    assert hidden["init_args"]["student"] == ["bert.embeddings", *layers_of(4)]
    assert hidden["init_args"]["teacher"] == ["bert.embeddings", *last]


def test_every_preset_is_a_recipe_alone_and_names_its_command_and_its_source() -> None:
    assert names() == ["deit", "distilbert", "minilm", "tinybert"]
    for name in names():
        text = path_of(name).read_text()
        assert set(yaml.safe_load(text)) == {"model"}
        assert {"student", "teacher", "optimizer"}.isdisjoint(yaml.safe_load(text)["model"])
        assert f"#   lightning-kd fit --config preset:{name} --config my.yaml\n" in text
        assert "arXiv:" in text


def test_a_preset_is_named_wherever_a_configuration_is() -> None:
    path = str(FOLDER / "deit.yaml")
    for words in (["--config", "preset:deit"], ["--config=preset:deit"], ["-c", "preset:deit"], ["-c=preset:deit"]):
        assert path in " ".join(with_presets(["fit", *words]))
    others = ["fit", "--trainer.logger.name", "preset:deit", "--model.student=preset:deit", "--config=my.yaml"]
    assert with_presets(others) == others


def test_an_unknown_preset_is_told_with_the_nearest(call) -> None:
    code, _, told = call("fit", "--config", "preset:tinybret")
    assert code == 2
    assert "there is no preset 'tinybret'. Did you mean preset:tinybert? There are deit, distilbert, minilm" in told


def test_the_help_names_every_preset(call) -> None:
    code, text, _ = call("fit", "--help")
    assert code == 0
    assert f"preset:NAME              losses of a paper: {', '.join(names())}\n" in text
