"""The published recipes on the networks that they name: the value is that of what these networks return themselves."""

import json

import pytest
import torch
import torch.nn.functional as F

from lightning_kd.commands.fit import DistillationCLI
from lightning_kd.functional import qkv_relation_loss

ROLES = ("student", "teacher")
SIZES = {"vocab_size": 50, "hidden_size": 48, "intermediate_size": 16, "num_attention_heads": 12}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
BERT = {"model_type": "bert", **SIZES, **NO_DROPOUT}
DISTIL = {"vocab_size": 50, "dim": 48, "hidden_dim": 16, "n_heads": 12, "n_layers": 6, "initializer_range": 0.3}
DISTIL |= {"model_type": "distilbert", "dropout": 0.0, "attention_dropout": 0.0}
IMAGE = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 8}
IMAGE |= {"patch_size": 4, "num_labels": 5, **NO_DROPOUT}


def of(config, task="masked_lm"):
    return {"class_path": "lightning_kd.hf.from_config", "init_args": {"config": config, "task": task}}


def built(preset, student, teacher, *options):
    models = [f"--model.student={json.dumps(student)}", f"--model.teacher={json.dumps(teacher)}"]
    words = [f"--config=preset:{preset}", "--data=DigitsDataModule", "--seed_everything=3", *models, *options]
    module = DistillationCLI(args=words, run=False).model
    for network in (module.student, module.teacher):  # layers that change little, or all tokens would become alike
        for name, part in network.named_modules():
            if name.endswith(("output.dense", "out_lin", "lin2")):
                part.weight.data.mul_(0.1)
    return module


def texts(*, with_labels):
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1] * 7, [1] * 7, [1] * 4 + [0] * 3])
    batch = {"input_ids": torch.randint(5, 50, (3, 7), generator=generator), "attention_mask": mask}
    if with_labels:
        batch["labels"] = torch.full((3, 7), -100)
        batch["labels"][:, 1:3] = torch.tensor([[9, 12], [30, 41], [7, 5]])
    return batch


def loss_of(module, batch):
    module.prepare(batch)
    return module.training_step(batch, 0)


def close(ours, theirs):
    assert theirs > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("cut", [False, True])
def test_distilbert(cut):
    student, names = of(DISTIL), []
    if cut:
        arguments = {"teacher": of(BERT | {"num_hidden_layers": 12}), "layers": [0, 2, 4, 7, 9, 11]}
        student = {"class_path": "lightning_kd.hf.student_from_teacher", "init_args": arguments}
        names = ["--model.losses.hidden_state.student=bert.encoder.layer.5"]
    module = built("distilbert", student, of(BERT | {"num_hidden_layers": 12}), *names)
    batch = texts(with_labels=True)
    ours = module.student(**batch, output_hidden_states=True)
    with torch.no_grad():
        theirs = module.teacher(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
    real = batch["attention_mask"].bool()
    log_p, log_q = (one.logits[real].div(2).log_softmax(-1) for one in (theirs, ours))
    cosine = F.cosine_similarity(ours.hidden_states[-1][real], theirs.hidden_states[-1][real], dim=-1)
    soft = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * 4
    close(loss_of(module, batch), 5 * soft + 2 * ours.loss + (1 - cosine).mean())


def test_minilm():
    module = built("minilm", of(BERT | {"num_hidden_layers": 6}), of(BERT | {"num_hidden_layers": 12}))
    batch = texts(with_labels=False)
    projections = []
    for network in (module.student, module.teacher):
        hidden = network(**batch, output_hidden_states=True).hidden_states[-2]
        attention = network.bert.encoder.layer[-1].attention.self
        projections.append([attention.query(hidden), attention.key(hidden), attention.value(hidden)])
    relations = dict.fromkeys(("QQ", "KK", "VV"), 1 / 3)
    expected = qkv_relation_loss(*projections, mask=batch["attention_mask"], relation_heads=48, relations=relations)
    close(loss_of(module, batch), expected)


def test_deit():
    teacher = of(IMAGE | {"model_type": "vit"}, "image_classification")
    config = {"class_path": "transformers.DeiTConfig", "dict_kwargs": IMAGE}
    name = "transformers.DeiTForImageClassificationWithTeacher"
    module = built("deit", {"class_path": name, "init_args": {"config": config}}, teacher)
    generator = torch.Generator().manual_seed(0)
    batch = {"pixel_values": torch.randn(6, 3, 8, 8, generator=generator), "labels": torch.tensor([0, 4, 1, 2, 3, 3])}
    ours = module.student(batch["pixel_values"])
    with torch.no_grad():
        decision = module.teacher(batch["pixel_values"]).logits.argmax(-1)
    task, taught = (
        F.cross_entropy(logits, labels)
        for logits, labels in ((ours.cls_logits, batch["labels"]), (ours.distillation_logits, decision))
    )
    assert task != taught
    close(loss_of(module, batch), 0.5 * task + 0.5 * taught)


def test_tinybert():
    module = built("tinybert", of(BERT | {"num_hidden_layers": 4}), of(BERT | {"num_hidden_layers": 12}))
    batch = texts(with_labels=False)
    real = batch["attention_mask"].bool()
    pairs = real[:, None, :, None] & real[:, None, None, :]
    scores, states = [], []
    for network in (module.student, module.teacher):
        hidden = network(**batch, output_hidden_states=True).hidden_states
        of_blocks = []
        for block, given in zip(network.bert.encoder.layer, hidden, strict=False):
            attention = block.attention.self
            q, k = (one(given).unflatten(-1, (12, 4)).transpose(1, 2) for one in (attention.query, attention.key))
            of_blocks.append((q @ k.mT / 2)[pairs.expand(-1, 12, -1, -1)])
        scores.append(of_blocks)
        states.append([one[real] for one in hidden])
    expected = sum(F.mse_loss(scores[0][i], scores[1][3 * i + 2].detach()) for i in range(4))
    expected += sum(F.mse_loss(states[0][i], states[1][3 * i].detach()) for i in range(5))
    close(loss_of(module, batch), expected)


@pytest.mark.parametrize(
    ("preset", "loss", "how", "pairs"),
    [
        ("distilbert", "hidden_state", "last", [(2, 5)]),
        ("minilm", "qkv_relation", "last", [(2, 5)] * 3),
        ("tinybert", "attention_matrix", "uniform", [(0, 1), (1, 3), (2, 5)]),
    ],
)
def test_maps_fit_presets_to_networks_of_other_depths(preset, loss, how, pairs):
    options = [f"--model.losses.{loss}.{side}={how}" for side in ("student", "teacher")]
    sizes = (3, 6)
    if preset == "tinybert":
        side = [[f"bert.encoder.layer.{pair[i]}" for pair in pairs] for i in range(2)]
        options += [f"--model.losses.hidden_state.{role}={json.dumps(side[i])}" for i, role in enumerate(ROLES)]
    networks = [of(BERT | {"num_hidden_layers": count}) for count in sizes]
    module = built(preset, *networks, *options)
    assert loss_of(module, texts(with_labels=preset == "distilbert")) > 0
    found = dict(module.run.objective.leaves)[loss]
    read = zip(found.student_layers, found.teacher_layers, strict=True)
    numbers = [tuple(int(name.rstrip(">").rpartition(".")[2]) for name in pair) for pair in read]
    assert numbers == pairs
