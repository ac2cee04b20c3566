"""The cases of the distance of embeddings."""

from torch import Tensor

from lightning_kd.functional import embedding_loss
from lightning_kd.losses import DistillationLoss, EmbeddingLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, EmbeddingLoss)
    return embedding_loss(*inputs.args, kind=component.kind, normalize=component.normalize)  # type: ignore[arg-type]


NAMES = {"student": "a", "teacher": "b"}
PAIR = Inputs(rows([3.0, 4.0], [0.0, 2.0]), rows([2.0, 0.0], [0.0, 1.0]))
COSINE = Case(
    "embedding-cosine",
    EmbeddingLoss,
    lambda: Inputs(random(4, 5, seed=1), random(4, 5, seed=2)),
    NAMES,
    embedding_loss,
    by_function,
    # cosines 3/5 and 1
    (Reference(NAMES, PAIR, 0.2),),
    (
        Mutant("cosine for its distance", "1.0 - (unit", "(unit"),
        Mutant("sum over the batch", ".sum(dim=-1)).mean()", ".sum(dim=-1)).sum()"),
        Mutant("raw product", "unit(student, dim=-1) * unit(teacher, dim=-1)).sum", "student * teacher).sum"),
    ),
    bad_calls=((random(4, 5, seed=1), random(4, 6, seed=2)), (random(4, 5, 2, 2, seed=1), random(4, 5, 2, 2, seed=2))),
    bad_builds=(((8, 10), (8, 3, 10)), ((8, 10, 4, 4), (8, 10, 4, 4))),
)
MSE = Case(
    "embedding-mse",
    EmbeddingLoss,
    lambda: Inputs(random(4, 3, 5, seed=3), random(4, 3, 5, seed=4)),
    NAMES | {"kind": "mse"},
    embedding_loss,
    by_function,
    (
        # (1 + 16 + 0 + 1) / 4, and at length one (.16 + .64 + 0) / 4
        Reference(NAMES | {"kind": "mse"}, PAIR, 4.5),
        Reference(NAMES | {"kind": "mse", "normalize": True}, PAIR, 0.2),
    ),
    (
        Mutant(
            "normalize the student only",
            "F.mse_loss(unit(student, dim=-1), unit(teacher, dim=-1))",
            "F.mse_loss(unit(student, dim=-1), teacher)",
        ),
        Mutant("ignore normalize", " if normalize else", " if False else"),
        Mutant("normalize always", " if normalize else", " if True else"),
    ),
)
CASES = (COSINE, MSE)
