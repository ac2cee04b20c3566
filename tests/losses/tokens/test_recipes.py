"""Published recipes, put together from the public formulas: DistilBERT, DeiT, TinyBERT's prediction layer, Liger."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.functional import hidden_state_loss, kd_loss, token_kd_loss
from tests.losses.golden import TOKENS, Golden, check_golden, golden

Arrays = dict[str, Tensor]


@pytest.mark.parametrize("record", golden("distilbert", folder=TOKENS), ids=str)
def test_distilbert(record: Golden) -> None:
    def formula(s: list[Tensor], t: list[Tensor], more: Arrays) -> Tensor:
        mask, labels = more["mask"], more["labels"]
        if record.suffix == "__mse":  # summed over the vocabulary
            return hidden_state_loss(s[0], t[0], mask=mask) * s[0].shape[-1]
        cosine = hidden_state_loss(s[1], t[1], kind="cosine", mask=mask)
        if record.suffix == "__cos":
            return cosine
        which = {"labels": labels} if record.suffix == "__restrict" else {"mask": mask}
        soft = token_kd_loss(s[0], t[0], temperature=2.0, temperature_squared=True, **which)
        logits, ids = (s[0][:, :-1], labels[:, 1:]) if record.suffix == "__clm" else (s[0], labels)
        return 5 * soft + 2 * F.cross_entropy(logits.flatten(0, 1), ids.flatten()) + cosine

    check_golden(record, formula)


@pytest.mark.parametrize("record", golden("deit", folder=TOKENS), ids=str)
def test_deit(record: Golden) -> None:
    alpha = record.hyper["alpha"]

    def formula(s: list[Tensor], t: list[Tensor], more: Arrays) -> Tensor:
        if record.hyper["type"] == "soft":  # the code divides by the number of classes too
            taught = kd_loss(s[1], t[0], temperature=record.hyper["tau"]) / s[1].shape[1]
        else:
            taught = kd_loss(s[1], t[0], temperature=1.0, hard=True)
        return (1 - alpha) * F.cross_entropy(s[0], more["labels"]) + alpha * taught

    check_golden(record, formula)


@pytest.mark.parametrize("record", golden("tinybert_soft_ce", folder=TOKENS), ids=str)
def test_tinybert_prediction(record: Golden) -> None:
    temperature = record.hyper["temperature"]

    def formula(s: list[Tensor], t: list[Tensor], _: Arrays) -> Tensor:
        entropy = torch.distributions.Categorical(logits=t[0] / temperature).entropy().mean()
        return (token_kd_loss(s[0], t[0], temperature=temperature) + entropy) / s[0].shape[-1]

    check_golden(record, formula)


@pytest.mark.parametrize("record", golden("fused_jsd", folder=TOKENS), ids=str)
def test_whole_logits_of_hidden_states_and_heads(record: Golden) -> None:
    beta, bias = record.hyper["beta"], record.hyper["bias"]
    options = {0: {"divergence": "forward_kl"}, 1: {"divergence": "reverse_kl"}}.get(
        beta, {"divergence": "jsd", "beta": beta}
    )

    def formula(s: list[Tensor], t: list[Tensor], more: Arrays) -> Tensor:
        student, teacher = (F.linear(*(side if bias else side[:2])) for side in (s, t))
        temperature = record.hyper["temperature"]
        return token_kd_loss(student, teacher, labels=more["labels"], temperature=temperature, **options)

    check_golden(record, formula)
