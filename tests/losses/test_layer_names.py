"""Whatever is given in the place of a layer's name is told when the loss is constructed."""

import inspect

import pytest
from torch import nn

from tests import support

READ_LAYERS = [
    name
    for name, loss in support.exported_losses().items()
    if {"student", "teacher"} <= set(inspect.signature(loss).parameters)
]
WRONG = {
    "pairs": ([("a", "b")], r"the tuple \('a', 'b'\) in the list; name one layer after another"),
    "modules": ([nn.Linear(1, 1)], r"a module Linear in the list; name it as in named_modules\(\)"),
    "a module": (nn.Sequential(nn.ReLU()), r"a module Sequential; name it as in named_modules\(\)"),
    "a number": (3, r"the int 3; name"),
    "nothing": (["a", None], r"the NoneType None in the list; name"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", READ_LAYERS)
def test_what_is_no_name_is_told(name, wrong):
    given, words = WRONG[wrong]
    more = {"relation_heads": 1, "relations": {"QQ": 1.0}} if name == "QKVRelationLoss" else {}
    with pytest.raises(ValueError, match=f"{name}: expected the student layers as names.*{words}"):
        support.exported_losses()[name](given, given, **more)
