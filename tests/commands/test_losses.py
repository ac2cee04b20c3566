"""``lightning-kd losses``: every loss in a line, and all of one as its docstring says it."""

import inspect

import pytest
from torch import nn

from lightning_kd import losses
from lightning_kd.losses import DistillationLoss
from lightning_kd.losses.catalogue import every_loss, page_of

ALL = {
    name
    for name, one in vars(losses).items()
    if inspect.isclass(one) and issubclass(one, nn.Module) and name not in ("DistillationLoss", "AdaptiveTemperature")
}


def test_every_loss_has_one_line(call):
    code, out, err = call("losses")
    assert (code, err) == (0, "")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")][1:]
    assert sorted(listed) == sorted(ALL)
    assert "lightning-kd losses NAME" in out


def test_a_loss_is_told_with_options_defaults_weights_and_paper(call):
    code, out, err = call("losses", "SPLoss")
    assert (code, err) == (0, "")
    assert "weight  Published recipes use 3000." in out
    assert 'Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682.' in out
    assert "names   SPLoss, SIMILARITY_PRESERVING, sp" in out
    assert "weight = 1.0" in out
    assert "``" not in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("name", ["kd", "KDLoss", "kdloss", "RESPONSE_BASED", "response_based"])
def test_a_loss_is_found_by_any_of_its_names(name, call):
    out = call("losses", name)[1]
    assert out == call("losses", "--name", "KDLoss")[1]
    assert "temperature = 4.0" in out


@pytest.mark.parametrize(("name", "nearest"), [("KDLos", "'KDLoss'"), ("atention_based", "'ATTENTION_BASED'")])
def test_an_unknown_loss_is_answered_with_the_nearest(name, nearest, call):
    code, out, err = call("losses", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"there is no loss {name!r}. Did you mean {nearest}" in err


@pytest.mark.parametrize("name", sorted(ALL))
def test_nothing_is_missing_of_any_loss(name):
    page = page_of(every_loss()[name])
    assert page.does.endswith(".")
    assert page.papers
    assert all("arXiv" in paper or "20" in paper for paper in page.papers)
    assert [option.name for option in page.options if not option.meaning] == []
    signature = inspect.signature(getattr(losses, name)).parameters
    for option in page.options:
        default = signature[option.name].default
        assert option.default == (None if default is inspect.Parameter.empty else repr(default))


def test_a_loss_of_the_users_is_told_by_its_own_docstring():
    class Mine(DistillationLoss):
        """Make the student mine.

        Args:
            scale: How much.
            weight: Factor, >= 0. I use 7.
        """

        needs_target = True

        def __init__(self, scale: float, weight: float = 1.0):
            super().__init__(weight=weight)
            self.scale = scale

        def forward(self, student_logits, teacher_logits, target):
            return student_logits.sum()

    page = page_of(Mine)
    assert (page.logged_as, page.weights, page.needs) == ("mine", "I use 7.", ("labels",))
    assert (page.options[0].name, page.options[0].default, page.options[0].meaning) == ("scale", None, "How much.")


def test_every_published_weight_is_found_in_its_docstring(call):
    _, out, _ = call("losses", "MGDLoss")
    assert "2e-5" in out
    assert "No weight was published" not in out
