"""The cases of mutual learning."""

import math

import torch
from torch import Tensor, nn

from lightning_kd.functional import mutual_learning_loss
from lightning_kd.losses import DistillationLoss, MutualLearning
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

LN3 = math.log(3.0)
EVEN, TILTED, OTHER = rows([0.0, 0.0]), rows([LN3, 0.0]), rows([0.0, LN3])  # (1/2, 1/2), (3/4, 1/4), (1/4, 3/4)
TO_EVEN = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # KL(tilted || even), and of the other as well
FROM_EVEN = 0.5 * math.log(2 / 3) + 0.5 * math.log(2.0)
ACROSS = 0.5 * LN3  # KL of the mirror images: the difference of the probabilities times the log ratio


def options(peers: int = 1, **others: object) -> dict[str, object]:
    return {"peers": [nn.Linear(1, 1) for _ in range(peers)], **others}


def cohort(*logits: Tensor, target: tuple[int, ...] = (0,)) -> Inputs:
    return Inputs(list(logits), None, {"target": torch.tensor(target)})


REFERENCES = (
    Reference(options(supervised=False), cohort(EVEN, TILTED), TO_EVEN + FROM_EVEN),
    # the peer's task: its probability of class 0 is 3/4
    Reference(options(), cohort(EVEN, TILTED), TO_EVEN + FROM_EVEN + math.log(4 / 3)),
    Reference(options(), cohort(EVEN, TILTED, target=(-100,)), TO_EVEN + FROM_EVEN),
    # two samples, the mean of each divergence over both, and of the task over the labelled one
    Reference(
        options(),
        cohort(EVEN.repeat(2, 1), torch.cat([TILTED, EVEN]), target=(0, -100)),
        (TO_EVEN + FROM_EVEN) / 2 + math.log(4 / 3),
    ),
    # three members: each loses the mean of what it loses against the two others
    Reference(
        options(2, supervised=False), cohort(EVEN, TILTED, OTHER), (2 * TO_EVEN + 2 * FROM_EVEN + 2 * ACROSS) / 2
    ),
    # the same probabilities at temperature 2 from twice the logits, T^2 = 4; the peer's task is at temperature 1
    Reference(
        options(temperature=2.0),
        cohort(EVEN, 2 * TILTED),
        4 * (TO_EVEN + FROM_EVEN) + math.log(10 / 9),
    ),
)
MUTANTS = (
    Mutant("sum over the teachers", " / (len(cohort) - 1)", ""),
    Mutant("the student alone learns", "for learner in cohort\n", "for learner in cohort[:1]\n"),
    Mutant("the student's task as well", "for peer in cohort[1:]]", "for peer in cohort]"),
    Mutant("forget the task", "if target is not None:", "if False:"),
    Mutant("forget the temperature", "guide, temperature=temperature)", "guide, temperature=1.0)"),
    Mutant("ignore the option", "target if self.supervised else None", "target"),
    Mutant("detach the members", "[upcast(one) for one", "[upcast(one.detach() + 0 * one) for one"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, MutualLearning)
    target = inputs.extra["target"] if component.supervised else None
    return mutual_learning_loss(inputs.students, target, temperature=component.now(component.temperature))


def case(name: str, peers: int, **others: object) -> Case:
    return Case(
        name,
        MutualLearning,
        lambda: Inputs(
            [random(4, 3, seed=seed) for seed in range(peers + 1)], None, {"target": torch.tensor([0, 2, 1, 1])}
        ),
        options(peers, **others),
        mutual_learning_loss,
        by_function,
        REFERENCES,
        MUTANTS,
        zero_at_match=False,  # a cohort of equals still has its task
        frozen="peers",  # they learn through their logits
        slope=False,
        plain_options=False,
    )


CASES = (case("mutual", 1), case("mutual-three", 2, temperature=2.0, supervised=False))
