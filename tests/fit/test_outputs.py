"""How outputs are read through both doors: heads, classes, probabilities, and other inputs for the teacher."""

import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import (
    DISTLoss,
    DKDLoss,
    EmbeddingLoss,
    HintLoss,
    HybridLoss,
    KDLoss,
    MultiLabelKDLoss,
    RKDLoss,
    TfKDLoss,
)
from lightning_kd.teachers import Chain, Keys, Renormalize, Resize
from tests import support

DOORS = ["module", "callback"]
X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(12) % 3


def net(width=3, seed=1):
    return support.seeded(lambda: nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, width)), seed)


class Ends(nn.Module):
    """A network, and what a function makes of its output."""

    def __init__(self, inner, end):
        super().__init__()
        self.inner, self.end = inner, end

    def forward(self, *args, **kwargs):
        return self.end(self.inner(*args, **kwargs))


class TwoHeads(nn.Module):
    """Two heads in training, in evaluation too if ``always``; as a tuple, or by name."""

    def __init__(self, form=tuple, always=False, seed=3):
        super().__init__()
        self.body, self.one, self.two = support.seeded(
            lambda: nn.ModuleList([nn.Linear(8, 6), nn.Linear(6, 3), nn.Linear(6, 3)]), seed
        )
        self.form, self.always = form, always

    def forward(self, x):
        features = self.body(x).relu()
        one, two = self.one(features), self.two(features)
        if not self.training and not self.always:
            return (one + two) / 2
        return (one, two) if self.form is tuple else {"main": one, "aux": two}


class Mine(LightningModule):
    """The user's own module, whose task reads a head."""

    def __init__(self, network, head=None, loss=F.cross_entropy):
        super().__init__()
        self.net, self.head, self.loss = network, head, loss

    def task(self, batch):
        output = self.net(batch[0])
        if self.head is not None and not isinstance(output, torch.Tensor):
            output = output[self.head]
        return self.loss(output, batch[1])

    def training_step(self, batch, batch_idx):
        return self.task(batch)

    def validation_step(self, batch, batch_idx):
        self.task(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(door, student, teacher, losses, *, y=IDS, task=None, head=None, x=X, warned="ignore", **options):
    """One step without a change of weights; return what was logged, and the door."""
    loader = DataLoader(TensorDataset(x, y), batch_size=12)
    if door == "module":
        task = nn.CrossEntropyLoss() if task is None else task
        made = DistillationModule(
            student,
            teacher,
            losses,
            task_loss=task or None,
            optimizer=lambda weights: torch.optim.SGD(weights, lr=0.0),
            **({} if head is None else {"logits": head}) | options,
        )
        callbacks = []
    else:
        made = Mine(student, head, task or F.cross_entropy)
        callbacks = [
            DistillationCallback(teacher, losses, **({} if head is None else {"logits": head}) | options),
        ]
    trainer = support.trainer(max_epochs=1, callbacks=callbacks)
    with warnings.catch_warnings():
        warnings.simplefilter(warned)
        trainer.fit(made, loader, loader)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def kl(student, teacher, temperature):
    student, teacher = (F.log_softmax(z.double() / temperature, 1) for z in (student, teacher))
    return float((teacher.exp() * (teacher - student)).sum(1).mean() * temperature**2)


def refused(words, *args, **kwargs):
    with pytest.raises(ValueError, match=words):
        fit(*args, **kwargs)


# The teacher's classes


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("loss", [KDLoss, DKDLoss, DISTLoss, lambda: HybridLoss([KDLoss(), DISTLoss()])])
def test_permuted_classes_named_in_the_students_order_change_no_bit(door, loss):
    order = [2, 0, 1]  # the teacher's class that stands at each place
    plain = fit(door, net(), net(seed=2), [loss()])
    permuted = Ends(net(seed=2), lambda z: z[:, order])
    metrics = fit(door, net(), permuted, [loss()], teacher_classes=[order.index(i) for i in range(3)])
    assert metrics == plain
    assert "val/teacher_accuracy" in metrics


@pytest.mark.parametrize("door", DOORS)
def test_a_teacher_of_more_classes_teaches_those_that_are_named(door):
    student, teacher = net(), net(6, seed=2)
    metrics = fit(door, student, teacher, [KDLoss(temperature=2.0)], teacher_classes=[5, 0, 3])
    with torch.no_grad():
        z, t = student(X), teacher(X)[:, [5, 0, 3]]
    assert metrics["train/kd"] == pytest.approx(kl(z, t, 2.0), rel=1e-5)
    assert metrics["val/teacher_accuracy"] == pytest.approx(float((t.argmax(1) == IDS).float().mean()))
    assert metrics["val/agreement"] == pytest.approx(float((t.argmax(1) == z.argmax(1)).float().mean()))


@pytest.mark.parametrize("door", DOORS)
def test_a_teacher_of_old_classes_teaches_the_students_that_are_named(door):
    student, teacher = net(5), net(3, seed=2)
    y = torch.arange(12) % 5
    metrics = fit(door, student, teacher, [KDLoss(temperature=2.0)], y=y, student_classes=[0, 1, 2])
    with torch.no_grad():
        z = student(X)
        assert metrics["train/kd"] == pytest.approx(kl(z[:, :3], teacher(X), 2.0), rel=1e-5)
        if door == "module":
            assert metrics["train/task"] == pytest.approx(float(F.cross_entropy(z, y)), rel=1e-5)
            assert metrics["val/accuracy"] == pytest.approx(float((z.argmax(1) == y).float().mean()))
    refused("Part 'dkd' reads the label", door, net(5), net(3), [DKDLoss()], y=y, student_classes=[0, 1, 2])


@pytest.mark.parametrize("door", DOORS)
def test_other_classes_are_refused_with_both_numbers_and_the_remedy(door):
    words = r"the teacher has 6 classes, the student 3.*teacher_classes=\[\.\.\.\]"
    refused(words, door, net(), net(6), [KDLoss()])
    refused("names 2 classes, but the student has 3", door, net(), net(6), [KDLoss()], teacher_classes=[0, 1])
    refused("names the class 6, but the teacher's", door, net(), net(6), [KDLoss()], teacher_classes=[0, 1, 6])
    for classes, words in (([0, 1, 1], "names the class 1 twice"), ([0, -1], "from 0 on"), ([], "from 0 on")):
        refused(words, door, net(), net(6), [KDLoss()], teacher_classes=classes)
    words = "as many teacher_classes as student_classes"
    refused(words, door, net(), net(6), [KDLoss()], teacher_classes=[0, 1, 2], student_classes=[0])


# Probabilities in the place of logits


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("loss", [KDLoss, DKDLoss, DISTLoss, lambda: HybridLoss([KDLoss(), HintLoss("0", "inner.0")])])
def test_a_teacher_that_ends_in_softmax_is_refused_and_served(door, loss):
    student, teacher = net(), net(seed=2)
    refused(
        r"reads logits, but the teacher's outputs \(2, 3\) are probabilities.*teacher_outputs='probabilities'",
        door,
        student,
        Ends(teacher, lambda z: z.softmax(1)),
        [loss()],
    )
    if loss is KDLoss:
        for kind, end in (
            ("probabilities", lambda z: z.softmax(1)),
            ("log_probabilities", lambda z: z.log_softmax(1)),
            (None, lambda z: z.log_softmax(1)),  # logits too, at any temperature
        ):
            metrics = fit(door, net(), Ends(net(seed=2), end), [KDLoss(temperature=4.0)], teacher_outputs=kind)
            with torch.no_grad():
                assert metrics["train/kd"] == pytest.approx(kl(student(X), teacher(X), 4.0), rel=1e-4), kind


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("loss", [KDLoss, TfKDLoss])
def test_a_student_that_ends_in_softmax_is_refused(door, loss):
    words = "the student's outputs .* are probabilities.*Let the student end with the layer before"
    refused(words, door, Ends(net(), lambda z: z.softmax(1)), net(), [loss()])


@pytest.mark.parametrize("door", DOORS)
def test_sigmoids_of_labels_are_refused_and_served(door):
    y = (torch.rand(12, 3, generator=torch.Generator().manual_seed(1)) > 0.4).float()
    task = nn.BCEWithLogitsLoss() if door == "module" else F.binary_cross_entropy_with_logits
    teacher = net(seed=2)
    given = {"y": y, "task": task}
    words = "come out of a sigmoid. Say teacher_outputs='label_probabilities'"
    refused(words, door, net(), Ends(teacher, torch.sigmoid), [MultiLabelKDLoss()], **given)
    refused(
        "are probabilities of classes.*Use KDLoss",
        door,
        net(),
        Ends(teacher, lambda z: z.softmax(1)),
        [MultiLabelKDLoss()],
        **given,
    )
    plain = fit(door, net(), net(seed=2), [MultiLabelKDLoss(temperature=2.0)], **given)
    served = fit(
        door, net(), Ends(net(seed=2), torch.sigmoid), [MultiLabelKDLoss(temperature=2.0)],
        teacher_outputs="label_probabilities", **given,
    )  # fmt: skip
    assert served["train/multi_label_kd"] == pytest.approx(plain["train/multi_label_kd"], rel=1e-4)
    assert served["val/agreement"] == plain["val/agreement"]
    one = {"y": y[:, :1], "task": task}
    plain = fit(door, net(1), net(1, seed=2), [KDLoss(binary=True)], **one)
    sigmoid = Ends(net(1, seed=2), torch.sigmoid)
    refused(words, door, net(1), sigmoid, [KDLoss(binary=True)], **one)
    for kind in ("probabilities", "label_probabilities"):
        served = fit(door, net(1), sigmoid, [KDLoss(binary=True)], teacher_outputs=kind, **one)
        assert served["train/kd"] == pytest.approx(plain["train/kd"], rel=1e-4)


@pytest.mark.parametrize("door", DOORS)
def test_outputs_between_0_and_1_are_told_where_their_maker_does_not_tell(door):
    given = {"y": (torch.rand(12, 9, generator=torch.Generator().manual_seed(1)) > 0.4).float()}
    given["task"] = nn.BCEWithLogitsLoss() if door == "module" else F.binary_cross_entropy_with_logits
    by_hand = Ends(net(9, seed=2), lambda z: 1 / (1 + torch.exp(-z)))
    with pytest.warns(UserWarning, match=r"lie between 0\.\d+ and 0\.\d+.*teacher_outputs='label_probabilities'"):
        fit(door, net(9), by_hand, [MultiLabelKDLoss()], warned="default", **given)
    with warnings.catch_warnings(record=True) as seen:
        for said in ("logits", "label_probabilities"):
            fit(door, net(9), by_hand, [MultiLabelKDLoss()], teacher_outputs=said, warned="always", **given)
    assert not [one for one in seen if "lie between" in str(one.message)]


@pytest.mark.parametrize("door", DOORS)
def test_what_teacher_outputs_says_is_compared_with_what_there_is(door):
    for kind in ("probabilities", "log_probabilities", "label_probabilities"):
        refused(
            f"teacher_outputs='{kind}', but the teacher's outputs", door, net(), net(), [KDLoss()], teacher_outputs=kind
        )
    refused("Expected teacher_outputs to be one of", door, net(), net(), [KDLoss()], teacher_outputs="softmax")
    # and whoever knows better is believed
    trusted = fit(door, net(), Ends(net(seed=2), lambda z: z.softmax(1)), [KDLoss()], teacher_outputs="logits")
    with torch.no_grad():
        assert trusted["train/kd"] == pytest.approx(kl(net()(X), net(seed=2)(X).softmax(1), 4.0), rel=1e-4)


# Heads


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", [tuple, dict])
@pytest.mark.parametrize("make", [KDLoss, lambda **heads: HybridLoss([KDLoss(**heads), KDLoss()])])
def test_the_task_and_a_loss_read_heads_of_their_own(door, form, make):
    main, aux = (0, 1) if form is tuple else ("main", "aux")
    student, teacher = TwoHeads(form), net()
    metrics = fit(door, student, teacher, [make(head=aux)], head=main)
    student.train()
    with torch.no_grad():
        output, t = student(X), teacher(X)
    if make is KDLoss:
        assert metrics["train/kd"] == pytest.approx(kl(output[aux], t, 4.0), rel=1e-5)
    else:
        expected = kl(output[aux], t, 4.0) + kl(output[main], t, 4.0)
        assert metrics["train/hybrid"] == pytest.approx(expected, rel=1e-5)
    assert metrics["train/task"] == pytest.approx(float(F.cross_entropy(output[main], IDS)), rel=1e-5)


class Paired(nn.Module):
    """Has a loss of its own and scores under a name of its own, as CLIP has ``logits_per_image``."""

    def __init__(self, seed):
        super().__init__()
        self.net = net(seed=seed)

    def forward(self, x):
        scores = self.net(x)
        return {"loss": scores.square().mean(), "scores": scores, "double": scores * 2}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("aligned", [False, True])
def test_a_loss_that_names_its_output_needs_no_other_logits(door, aligned):
    student, teacher = Paired(1), Paired(2)
    order = list(range(student(X)["scores"].shape[1]))
    if aligned:
        order.reverse()
        student.config = SimpleNamespace(id2label={i: str(i) for i in range(len(order))})
        teacher.config = SimpleNamespace(id2label={i: str(name) for i, name in enumerate(order)})
    task = {"task": lambda output, y: output["loss"]} if door == "callback" else {"task": False}
    with warnings.catch_warnings(record=True) as said:
        metrics = fit(door, student, teacher, [KDLoss(temperature=2.0, head="scores")], warned="always", **task)
    assert not [one for one in said if "frozen" in str(one.message)]
    with torch.no_grad():
        z, t = student(X)["scores"], teacher(X)["scores"][:, order]
    assert metrics["train/kd"] == pytest.approx(kl(z, t, 2.0), rel=1e-5)
    refused(
        r"\['loss', 'scores', 'double'\]; name one, such as logits='scores'", door, student, teacher, [KDLoss()], **task
    )


@pytest.mark.parametrize("door", DOORS)
def test_heads_of_other_names_in_the_teacher(door):
    class Teacher(TwoHeads):
        def forward(self, x):
            output = super().forward(x)
            return {"class": output["main"], "distillation": output["aux"]}

    student, teacher = TwoHeads(dict, always=True), Teacher(dict, always=True, seed=4)
    loss = KDLoss(temperature=2.0, head="aux", teacher_head="distillation")
    metrics = fit(door, student, teacher, [loss], head="main", teacher_logits="class")
    with torch.no_grad():
        z, t = student(X), teacher(X)
    assert metrics["train/kd"] == pytest.approx(kl(z["aux"], t["distillation"], 2.0), rel=1e-5)
    agree = z["main"].argmax(1) == t["class"].argmax(1)
    assert metrics["val/agreement"] == pytest.approx(float(agree.float().mean()))
    words = r"has no head 'main'; it has \['class', 'distillation'\]"
    refused(words, door, TwoHeads(dict, always=True), teacher, [loss], head="main")


@pytest.mark.parametrize("door", DOORS)
def test_heads_that_are_not_named_are_not_guessed(door):
    task = {"head": None, "task": lambda z, y: F.cross_entropy(z[0], y)} if door == "callback" else {}
    words = r"elements \[0, 1\] have the same shape .*logits=0.*KDLoss\(head=1\)"
    refused(words, door, TwoHeads(tuple, always=True), net(), [KDLoss()], **task)
    words = r"has none \(it has \['main', 'aux'\]; name one, such as logits='main'\)"
    refused(words, door, TwoHeads(dict, always=True), net(), [KDLoss()])
    words = r"has no head 'side'; it has \['main', 'aux'\]"
    refused(words, door, TwoHeads(dict, always=True), net(), [KDLoss(head="side")], head="main")
    refused("The head 1 is named, but the student returned a single tensor", door, net(), net(), [KDLoss(head=1)])


def test_losses_of_layers_do_not_ask_which_head_is_meant():
    losses = [HintLoss("body", "0")]
    metrics = fit("callback", TwoHeads(always=True), net(), losses, task=lambda z, y: F.cross_entropy(z[0], y))
    assert metrics["train/hint"] > 0
    assert "val/agreement" not in metrics


# The output as the embedding


@pytest.mark.parametrize("door", DOORS)
def test_the_output_is_read_where_it_is_named(door):
    student, teacher = net(4), net(4, seed=2)
    losses = [EmbeddingLoss("<output>", "<output>"), HintLoss("<output>", "<output>")]
    metrics = fit(door, student, teacher, losses, y=IDS)
    with torch.no_grad():
        expected = (1 - F.cosine_similarity(student(X), teacher(X))).mean()
    assert metrics["train/embedding"] == pytest.approx(float(expected), rel=1e-5)
    student, teacher = TwoHeads(dict, always=True), net(3)
    metrics = fit(door, student, teacher, [EmbeddingLoss("<output.aux>", "<output>")], head="main")
    with torch.no_grad():
        expected = (1 - F.cosine_similarity(student(X)["aux"], teacher(X))).mean()
    assert metrics["train/embedding"] == pytest.approx(float(expected), rel=1e-5)


class Anything(nn.Module):
    def forward(self, z, y):
        return z.square().mean()


OUTPUT = ("<output>", "<output>")
FEATURES = ("1", "1")


@pytest.mark.parametrize(
    ("losses", "task", "read"),
    [
        ([RKDLoss()], nn.CosineEmbeddingLoss(), OUTPUT),
        ([RKDLoss()], nn.TripletMarginLoss(), OUTPUT),
        ([RKDLoss()], None, OUTPUT),
        ([EmbeddingLoss()], Anything(), OUTPUT),
        ([EmbeddingLoss(), RKDLoss()], Anything(), OUTPUT),
        ([RKDLoss()], Anything(), FEATURES),
        ([RKDLoss()], nn.CrossEntropyLoss(), FEATURES),
        ([EmbeddingLoss()], nn.CrossEntropyLoss(), FEATURES),
        ([KDLoss(), RKDLoss()], None, FEATURES),
        ([KDLoss(), EmbeddingLoss()], None, FEATURES),
        ([RKDLoss()], nn.MSELoss(), FEATURES),
    ],
    ids=str,
)
def test_what_is_known_decides_whether_the_output_is_the_embedding(losses, task, read):
    loss = losses[-1]
    module = DistillationModule(net(4), net(4, seed=2), losses, task_loss=task)
    module.prepare((X, IDS))
    assert (loss.student, loss.teacher) == read


def test_outputs_of_length_one_are_embeddings():
    for end, read in ((F.normalize, "<output>"), (lambda z: 2 * F.normalize(z), "inner.1")):
        loss = RKDLoss()
        module = DistillationModule(Ends(net(4), end), Ends(net(4), end), [loss], task_loss=Anything())
        module.prepare((X, IDS))
        assert loss.student == read


def test_what_is_read_is_told_with_the_reason(monkeypatch):
    told = []
    monkeypatch.setattr("lightning_kd.engine.setup.rank_zero_info", told.append)
    DistillationModule(net(4), net(4), [RKDLoss()]).prepare((X, IDS))
    assert told == [
        "Part 'rkd' reads the output of student and teacher as the embedding, since nothing else trains the last "
        "layer; name layers to read others."
    ]


def test_a_task_that_shows_itself_in_the_first_step_is_compared_with_what_was_taken():
    def triplet(z, y):
        return F.triplet_margin_loss(z, z.roll(1, 0), z.roll(2, 0))

    words = "takes the student's output for an embedding, but part 'rkd' reads the features"
    refused(words, "callback", net(4), net(4), [RKDLoss()], task=triplet)
    words = "takes the student's output for scores, but part 'embedding' reads it"
    refused(words, "callback", net(4), net(4), [EmbeddingLoss()])
    fit("callback", net(4), net(4), [RKDLoss("<output>", "<output>")], task=triplet)
    fit("callback", net(4), net(4), [EmbeddingLoss("1", "1")])


def test_the_last_layer_of_an_encoder_learns():
    student = net(4)
    module = DistillationModule(student, net(4, seed=2), [RKDLoss()])
    module.prepare(X)
    module.training_step(X, 0).backward()
    assert student[2].weight.grad.abs().sum() > 0


def test_an_output_of_tokens_is_refused():
    loss = EmbeddingLoss("<output>", "<output>")
    module = DistillationModule(Ends(net(4), lambda z: z[:, None]), net(4), [loss])
    with pytest.raises(ValueError, match=r"'<output>' of shape \(12, 1, 4\).*Name the layer"):
        module.prepare(X)


# Inputs for the teacher


@pytest.mark.parametrize("door", DOORS)
def test_ready_parts_and_functions_give_the_teacher_its_view(door):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = support.seeded(lambda: nn.Linear(64, support.CLASSES), 5)

        def forward(self, x):
            return self.head(x.flatten(1))

    x, y = support.data(12).tensors
    parts = Chain([Renormalize([0.5], [0.25], [0.25], [0.5]), Resize(8, antialias=False)])

    def function(args, kwargs):
        return (F.interpolate(args[0] * 0.5 + 0.5, (8, 8), mode="bilinear"),), kwargs

    # x' = (x / 4 + 1/2 - 1/4) / (1/2) = x / 2 + 1/2
    student, teacher = support.student(), Wide()
    values = []
    for view in (parts, function):
        metrics = fit(door, support.student(), Wide(), [KDLoss()], x=x, y=y, teacher_inputs=view)
        values.append(metrics["train/kd"])
    student.train()
    with torch.no_grad():
        expected = kl(student(x), teacher(function((x,), {})[0][0]), 4.0)
    assert values == pytest.approx([expected] * 2, rel=1e-4)
    refused("cannot be called with", door, support.student(), Wide(), [KDLoss()], x=x, y=y)


@pytest.mark.parametrize("door", [DistillationModule, DistillationCallback])
def test_a_view_that_has_no_effect_or_cannot_be_called_is_refused(door):
    class Own(door):
        def teacher_inputs(self, batch, args, kwargs):
            return args, kwargs

    given = (net(), net(), [KDLoss()]) if door is DistillationModule else (net(), [KDLoss()])
    with pytest.raises(ValueError, match="has no effect, since Own overrides the method teacher_inputs"):
        Own(*given, teacher_inputs=Keys(drop=["a"]))
    with pytest.raises(TypeError, match="Expected teacher_inputs to be a part"):
        door(*given, teacher_inputs=[Keys(drop=["a"])])


# Checkpoints


def saved(module, path):
    """Write what Lightning writes of a module that is not fitted."""
    torch.save(
        {
            "pytorch-lightning_version": "2.6.0",
            "state_dict": module.state_dict(),
            "hyper_parameters": dict(module.hparams),
            "hparams_name": "kwargs",
        },
        path,
    )


def test_options_come_back_from_a_checkpoint(tmp_path):
    options = {
        "logits": "main",
        "teacher_logits": 0,
        "teacher_outputs": "probabilities",
        "teacher_classes": [2, 0, 1],
        "student_classes": [0, 1, 2],
        "teacher_inputs": Chain([Renormalize([0.5], [0.5], [0.0], [1.0]), Resize(4)]),
    }
    module = DistillationModule(net(), net(), [KDLoss(head="aux", teacher_head=1)], **options)
    path = tmp_path / "last.ckpt"
    saved(module, path)
    loaded = DistillationModule.load_from_checkpoint(path, student=net(), teacher=net())
    assert loaded.output_options == module.output_options
    assert loaded.teacher_view.options() == module.teacher_view.options()
    assert (loaded.losses["kd"].head, loaded.losses["kd"].teacher_head) == ("aux", 1)
    plain = DistillationModule(net(), net(), [KDLoss()])
    assert not {*options} & {*plain.hparams}


def test_a_function_must_be_given_again_to_a_checkpoint_that_was_made_with_one(tmp_path):
    module = DistillationModule(net(), net(), [KDLoss()], teacher_inputs=lambda args, kwargs: (args, kwargs))
    path = tmp_path / "last.ckpt"
    saved(module, path)
    with pytest.raises(ValueError, match=r"made with teacher_inputs=.*lambda.*pass it again"):
        DistillationModule.load_from_checkpoint(path, student=net(), teacher=net())
    given = {"student": net(), "teacher": net(), "teacher_inputs": Keys()}
    assert isinstance(DistillationModule.load_from_checkpoint(path, **given).teacher_view, Keys)


@pytest.mark.parametrize("door", DOORS)
def test_a_resumed_fit_says_which_options_of_outputs_differ(door, tmp_path):
    def made(**options):
        if door == "module":
            return support.module(losses=[KDLoss()], **options), []
        return support.UserModule(support.student()), [DistillationCallback(support.teacher(), [KDLoss()], **options)]

    path = tmp_path / "last.ckpt"
    module, callbacks = made(teacher_classes=[0, 1, 2, 3])
    support.fit(module, callbacks=callbacks, max_epochs=1).save_checkpoint(path)
    module, callbacks = made(teacher_classes=[1, 0, 2, 3], teacher_inputs=Resize(4))
    words = r"teacher_classes was \[0, 1, 2, 3\], is \[1, 0, 2, 3\]; teacher_inputs was None, is "
    with pytest.warns(UserWarning, match=words):
        support.fit(module, callbacks=callbacks, ckpt_path=path)


@pytest.mark.parametrize("form", [lambda f, z: (f, {"logits": z}), lambda f, z: (f, [z])], ids=["dictionary", "list"])
def test_the_first_of_a_tuple_with_more_inside_is_told(form, caplog):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            features = self.body(x)
            return form(features, self.head(features))

    module = DistillationModule(Nested(), Nested(), [KDLoss()], optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    with caplog.at_level("INFO"):
        module.prepare(torch.randn(4, 4))
    assert "The student returns [(4, 5), (4, 3)], of which the first is read as logits; or override" in caplog.text
