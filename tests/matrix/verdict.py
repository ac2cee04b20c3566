"""What must hold of a fit: a list of complaints, empty if the cell is right."""

import torch

from tests import support
from tests.matrix.cells import Cell
from tests.matrix.fit import BOUND, STEPS

Facts = dict
LOSS_TOLERANCE, COSINE = 0.05, 0.95
"""How far loss and direction of the gradient may be from float32's in 16 bits."""
FORMAT = {"32-true": "float32", "bf16-mixed": "float32", "bf16-true": "bfloat16"}
OWN_DRAWS = ("CRDLoss", "MGDLoss")
"""Every process draws its own negatives, or its own masks."""
OWN_STATISTICS = ("OFDLoss",)
"""Its margins are the mean of all batches so far, so that one large batch is not several small ones."""


def complaints(cell: Cell, runs: dict[Cell, list[Facts]]) -> list[str]:
    """Judge a cell by the facts that each of its processes found, and those of the cells it is compared with."""
    ranks = runs[cell]
    broken = [f"process {rank}: {facts['error']}" for rank, facts in enumerate(ranks) if "error" in facts]
    if broken:
        return broken
    first = ranks[0]
    found = [complaint for facts in ranks for complaint in _alone(cell, facts)]
    for other in ranks[1:]:
        for part in ("state", "own"):
            found += [f"{name} differs between processes" for name in _unequal(first[part], other[part], 0.0, 0.0)]
    for shared, reference in cell.references.items():
        facts = runs[reference][0]
        if "error" in facts:
            found.append(f"{shared}, which it is compared with: {facts['error']}")
        else:
            found += _compared(cell, shared, first, facts)
    return list(dict.fromkeys(found))


def _alone(cell: Cell, facts: Facts) -> list[str]:
    found = []
    if not all(torch.isfinite(torch.tensor(facts["losses"]))):
        found.append(f"losses {facts['losses']}")
    if not any(facts["changed"].values()):
        found.append("the student is as it was")
    if not facts["teacher intact"]:
        found.append("the teacher changed")
    expected = {"student": [FORMAT[cell.precision]], "teacher": [FORMAT[cell.precision]]}
    for part, formats in expected.items():
        if facts["formats"][part] != formats:
            found.append(f"the {part}'s parameters are {facts['formats'][part]}, not {formats}")
    if facts["formats"]["memory"] not in ([], ["float32"]):
        found.append(f"what the loss remembers is {facts['formats']['memory']}")
    return found + _clipping(cell, facts)


def _clipping(cell: Cell, facts: Facts) -> list[str]:
    bound = BOUND[cell.clip]
    rounding = 2e-2 if cell.precision == "bf16-true" else 1e-4  # norm and factor are rounded to 8 bits each
    before, after = ([size[cell.clip] for size in facts[when]] for when in ("before", "after"))
    if len(after) != STEPS or before[-1] <= bound:
        return [f"clipping to {bound} did not bind in the last of {STEPS} steps: {before}"]
    sizes = zip(before, after, strict=True)
    return [f"{was} clipped to {size}" for was, size in sizes if abs(size - min(was, bound)) > rounding * size]


def _compared(cell: Cell, shared: str, facts: Facts, reference: Facts) -> list[str]:
    if shared == "float32":
        return _rounded(facts, reference)
    if cell.precision != "32-true":
        return []  # other orders of addition round otherwise, by more than the updates
    if shared != "eager" and (cell.loss in OWN_DRAWS or facts["normalises"]):
        return []
    if shared == "one process" and not cell.gather:
        return []
    compares_samples = support.exported_losses()[cell.loss].relational
    if shared == "one large batch" and (compares_samples or cell.loss in OWN_STATISTICS):
        return []
    tolerance = 1e-5 if shared == "eager" else 1e-6
    differing = _unequal(facts["state"], reference["state"], tolerance, tolerance)
    return [f"{name} is not that of {shared}" for name in differing]


def _rounded(facts: Facts, reference: Facts) -> list[str]:
    """In 16 bits the first loss, and the direction of the first gradient, are those of float32 within a tolerance."""
    first, exact = facts["losses"][0], reference["losses"][0]
    found = []
    if first == exact:
        found.append("the loss is float32's to the last bit")
    if abs(first - exact) > LOSS_TOLERANCE * abs(exact):
        found.append(f"loss {first}, in float32 {exact}")
    mine, its = facts["gradient"], reference["gradient"]
    cosine = float(torch.nn.functional.cosine_similarity(mine, its, dim=0))
    if its.any() and cosine < COSINE:
        found.append(f"cosine {cosine} with the gradient in float32")
    return found


def _unequal(one: dict, other: dict, rtol: float, atol: float) -> list[str]:
    if one.keys() != other.keys():
        return [f"{sorted(one.keys() ^ other.keys())}"]
    return [name for name in one if not torch.allclose(one[name], other[name], rtol=rtol, atol=atol)]
