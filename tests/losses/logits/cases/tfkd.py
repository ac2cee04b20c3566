"""The cases of teacher-free distillation (Tf-KD)."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import tfkd_loss
from lightning_kd.losses import DistillationLoss, TfKDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

LN2 = math.log(2.0)
SURE, UNSURE = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(1.0))
STUDENT = [math.log(4.0), math.log(3.0), 0.0]  # p = (1/2, 3/8, 1/8)
# A gap of ln 2 gives (1, 2, 1) / 4 where the second class is the target: 1/4 ln(1/2) + 1/2 ln(4/3) + 1/4 ln 2.
VALUE = 0.5 * math.log(4 / 3)
REFERENCES = (
    # two classes, .9 - .1 over .8 is a gap of 1, against (1/2, 1/2)
    Reference(
        {"correct_probability": 0.9, "temperature": 0.8},
        Inputs(rows([0.0, 0.0]), None, {"target": torch.tensor([1])}),
        LN2 + SURE * math.log(SURE) + UNSURE * math.log(UNSURE),
    ),
    # three classes: .6 against .2 is a gap of .4 / T; the second sample has no label
    Reference(
        {"correct_probability": 0.6, "temperature": 0.4 / LN2},
        Inputs(rows(STUDENT, [9.0, 0.0, 0.0]), None, {"target": torch.tensor([1, -100])}),
        VALUE,
    ),
    # the same at the first of two positions; the second puts 1/2 on the target too, 1/4 ln(2/3) + 1/4 ln 2 over 2
    Reference(
        {"correct_probability": 1.0, "temperature": 1 / LN2},
        Inputs(rows(STUDENT, STUDENT).T.reshape(1, 3, 1, 2), None, {"target": torch.tensor([[[1, 0]]])}),
        (VALUE + 0.25 * math.log(2 / 3) + 0.25 * LN2) / 2,
    ),
)
MUTANTS = (
    Mutant("the rest to every other class", "(1.0 - correct_probability) / others", "(1.0 - correct_probability)"),
    Mutant("forget the temperature", " / others) / temperature", " / others)"),
    Mutant("soften the student too", "F.log_softmax(student, dim=1)", "F.log_softmax(student / 20.0, dim=1)"),
    Mutant("the target alone", " + math.exp(wrong) * (others * wrong - of_others)", ""),
    Mutant("cross-entropy", "(right - of_target)", "(-of_target)"),
    Mutant("one of the others", "(others * wrong - of_others)", "(wrong - of_others)"),
    Mutant("mean over the classes", "mean_over_labelled(divergence,", "mean_over_labelled(divergence / (others + 1),"),
    Mutant("count what has no label", "mean_over_labelled(divergence, labelled)", "divergence.mean()"),
    Mutant("detach the student", "upcast(student_logits)", "upcast(student_logits.detach()) + 0 * student_logits"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, TfKDLoss)
    options = {name: getattr(component, name) for name in ("correct_probability", "temperature", "ignore_index")}
    return tfkd_loss(inputs.students[0], inputs.extra["target"], **options)


def tfkd(name: str, *shape: int) -> Case:
    target = torch.arange(math.prod(shape) // shape[1]).reshape(shape[0], *shape[2:]) % shape[1]
    return Case(
        name,
        TfKDLoss,
        lambda: Inputs(random(*shape, seed=1), None, {"target": target}),
        {"temperature": 0.5},
        tfkd_loss,
        by_function,
        REFERENCES,
        MUTANTS,
        bad_calls=(
            (random(*shape, seed=1), torch.zeros(3, dtype=torch.long)),
            (random(4, 5, seed=1), random(4, 5, seed=2)),
        ),
        zero_at_match=False,
    )


CASES = (tfkd("tfkd", 4, 5), tfkd("tfkd-dense", 4, 3, 2, 2))
