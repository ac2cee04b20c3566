"""Of a teacher with several outputs those are stored that the losses read, and they teach as the teacher itself."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationModule, cache
from lightning_kd.cache.items import Format
from lightning_kd.cache.write import writer_of
from lightning_kd.losses import EmbeddingLoss, HintLoss, KDLoss
from lightning_kd.teachers import CachedTeacher
from tests import support


class TwoOutputs(nn.Module):
    """Two heads on one body, returned as a dictionary or as a tuple."""

    def __init__(self, width, form):
        super().__init__()
        self.body, self.form = support.ConvNet(width), form
        self.other = nn.Linear(support.CLASSES, support.CLASSES)

    def forward(self, x):
        main = self.body(x)
        return {"main": main, "aux": self.other(main)} if self.form == "names" else (main, self.other(main))


def networks(form):
    return support.seeded(partial(TwoOutputs, 3, form), 1), support.seeded(partial(TwoOutputs, 5, form), 2)


def fitted(form, guide, losses, **options):
    module = DistillationModule(networks(form)[0], guide, losses(), task_loss=nn.CrossEntropyLoss(), **options)
    support.fit(module, train=DataLoader(support.data(), batch_size=8, shuffle=True), max_epochs=1)
    weights = torch.cat([value.double().flatten() for value in module.student.state_dict().values()])
    logged = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    return weights, {name: value for name, value in logged.items() if name.startswith("train/")}


OF_BOTH = {
    "names": (lambda: [KDLoss(), KDLoss(head="aux", weight=0.5)], {"logits": "main"}),
    "the other alone": (lambda: [KDLoss(head="aux", weight=0.5)], {"logits": "main"}),
    "numbers": (lambda: [KDLoss(head=0), KDLoss(head=1)], {"logits": 0}),
    "another name": (lambda: [KDLoss(head="main", teacher_head="aux")], {"logits": "main"}),
    "as a layer": (lambda: [EmbeddingLoss("<output.aux>", "<output.aux>")], {"logits": "main"}),
    "with a layer": (lambda: [KDLoss(head="aux"), HintLoss("body.features", "body.features")], {"logits": "main"}),
}


@pytest.mark.parametrize("with_student", [False, True])
@pytest.mark.parametrize("case", OF_BOTH)
def test_they_train_the_student_that_the_teacher_would(case, with_student, tmp_path):
    losses, options = OF_BOTH[case]
    form = "numbers" if case == "numbers" else "names"
    student, guide = networks(form)
    chosen = {"losses": losses(), "dtype": "float32", "teacher_logits": options["logits"]}
    if with_student:
        module = DistillationModule(student, guide, losses(), task_loss=nn.CrossEntropyLoss(), **options)
        form_of = {"form": Format(torch.float32), "folder": tmp_path / "store", "transfer": lambda batch: batch}
        folder = writer_of(module, support.data(), **form_of).write()
    else:
        folder = cache.write(guide, support.data(), tmp_path / "store", **chosen)
    live, logged = fitted(form, networks(form)[1], losses, **options)
    stored, said = fitted(form, CachedTeacher(folder), losses, **options)
    assert torch.equal(live, stored)
    assert said == logged


def test_an_output_that_was_not_stored_is_refused_with_those_that_were(tmp_path):
    folder = cache.write(
        networks("names")[1], support.data(), tmp_path, losses=[KDLoss(head="aux")], teacher_logits="main"
    )
    with pytest.raises(ValueError, match=r"reads the teacher's output 'main' by name.*\['aux'\].*lightning-kd cache"):
        fitted("names", CachedTeacher(folder), lambda: [KDLoss(head="main")], logits="main")
