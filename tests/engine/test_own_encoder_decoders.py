"""A network of one's own with encoder and decoder: the mask of the encoder's tokens is not that of the decoder's."""

import pytest
import torch
from torch import nn

from lightning_kd import Batch, DistillationModule
from lightning_kd.losses import HiddenStateLoss, RegressionKDLoss, TokenKDLoss
from tests import support

V, C = 9, 4
SOURCES, TARGETS = (5, 2, 3), (2, 5, 4)


class Translator(nn.Module):
    """Its decoder sees of the encoder what does not depend on the padding; of its layers some tell their side."""

    def __init__(self):
        super().__init__()
        self.encoder, self.dec_layers, self.middle = nn.Embedding(V, C), nn.Embedding(V, C), nn.Linear(C, C)
        self.head = nn.Linear(C, V)

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        source = self.encoder(input_ids)[:, :1]
        return self.head(self.middle(self.dec_layers(decoder_input_ids)) + source)


def padded(rows, size, filling):
    made = torch.full((len(rows), size), filling)
    for row, values in enumerate(rows):
        made[row, : len(values)] = values
    return made


def ids(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, V, (length,), generator=generator) for length in lengths]


def batch(source, target, *, labels=True):
    sources, targets = ids(SOURCES, 0), ids(TARGETS, 1)
    made = {
        "input_ids": padded(sources, source, 0),
        "attention_mask": padded([torch.ones_like(one) for one in sources], source, 0),
        "decoder_input_ids": padded([one.roll(1) for one in targets], target, 0),
    }
    return made | {"labels": padded(targets, target, -100)} if labels else made


def nets():
    return support.seeded(Translator, 1), support.seeded(Translator, 2)


def of_each(read):
    """By hand: what each token of each row costs, row by row without padding."""
    student, teacher = nets()
    values = []
    with torch.no_grad():
        for source, target in zip(ids(SOURCES, 0), ids(TARGETS, 1), strict=True):
            given = (source[None], torch.ones(1, len(source)), target.roll(1)[None])
            if read == "logits":
                log_p, log_q = teacher(*given).log_softmax(-1), student(*given).log_softmax(-1)
                values.append((log_p.exp() * (log_p - log_q)).sum(-1)[0])
            elif read == "numbers":
                values.append((teacher(*given) - student(*given)).square().mean(-1)[0])
            else:
                tokens = given[0] if read == "encoder" else given[2]
                student_, teacher_ = (getattr(net, read)(tokens) for net in (student, teacher))
                values.append((teacher_ - student_).square().mean(-1)[0])
    return torch.cat(values).mean().item()


LOSSES = {
    "logits": lambda: TokenKDLoss(shift=False),
    "numbers": RegressionKDLoss,
    "encoder": lambda: HiddenStateLoss("encoder", "encoder"),
    "dec_layers": lambda: HiddenStateLoss("dec_layers", "dec_layers"),
}


def fit(loss, data, base=DistillationModule):
    module = base(*nets(), [loss])
    train = support.batches(data)
    return float(support.fit(module, train=train, max_epochs=1, limit_val_batches=0).callback_metrics["train/loss"])


@pytest.mark.parametrize("sizes", [(5, 5), (6, 6), (5, 7), (7, 5)])
@pytest.mark.parametrize("read", LOSSES)
def test_padding_is_that_of_the_side_that_is_read(read, sizes):
    assert fit(LOSSES[read](), batch(*sizes)) == pytest.approx(of_each(read), rel=1e-5)


def test_a_layer_of_neither_side_is_refused_where_both_have_as_many_tokens():
    with pytest.raises(ValueError, match=r"'hidden_state'.*\['middle'\].*Override unpack_batch"):
        fit(HiddenStateLoss("middle", "middle"), batch(5, 5))


def test_a_mask_of_the_users_own_is_that_of_all():
    class Reads(DistillationModule):
        def unpack_batch(self, batch):
            return Batch(kwargs={k: v for k, v in batch.items() if k != "labels"}, mask=batch["labels"] != -100)

    for loss in (HiddenStateLoss("dec_layers", "dec_layers"), TokenKDLoss(shift=False)):
        read = "logits" if isinstance(loss, TokenKDLoss) else "dec_layers"
        assert fit(loss, batch(5, 5), Reads) == pytest.approx(of_each(read), rel=1e-5)


def test_it_is_told_where_nothing_says_what_is_padding():
    with pytest.warns(UserWarning, match="nothing tells which of the decoder's are padding"):
        fit(TokenKDLoss(shift=False), batch(5, 5, labels=False))


def test_the_metrics_are_of_the_decoders_tokens():
    module = DistillationModule(*nets(), [LOSSES["dec_layers"]()])
    found = support.trainer().validate(module, support.batches(batch(5, 5)), verbose=False)[0]
    student, teacher = nets()
    given = batch(5, 5)
    labels = given.pop("labels")
    same = student(**given).argmax(-1) == teacher(**given).argmax(-1)
    assert found["val/agreement"] == pytest.approx(same[labels != -100].float().mean().item())
