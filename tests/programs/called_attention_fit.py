"""Fit networks of plain torch by their attention in one process or two, and write the weights; a program.

python -m tests.programs.called_attention_fit one|ddp|fsdp2 FOLDER
"""

import sys
from functools import partial

from torch import nn

from lightning_kd.losses import AttentionMatrixLoss, QKVRelationLoss
from tests.capture.attending import Called, Layered, Net
from tests.programs import attention_fit
from tests.support import processes

KINDS = {"called": (Called, {}), "layer": (Layered, {"batch_first": True})}


class Text(nn.Module):
    """Texts whose tokens attend to those that are no padding."""

    def __init__(self, kind, width, depth):
        super().__init__()
        attention, options = KINDS[kind]
        self.kind = kind
        self.embedding = nn.Embedding(attention_fit.VOCABULARY, 5)
        self.net = Net(attention, depth, width, **options)

    def forward(self, input_ids, attention_mask):
        real = attention_mask.bool()
        masks = (real[:, None, None],) if self.kind == "called" else (None, ~real)
        return self.net(self.embedding(input_ids), *masks)


def losses():
    relations = QKVRelationLoss("net.blocks.0", "net.blocks.1", relation_heads=4, relations={"VV": 1.0})
    return [AttentionMatrixLoss("net.blocks.1", "net.blocks.3"), relations]


MODELS = {kind: (partial(Text, kind), losses) for kind in KINDS}


if __name__ == "__main__":
    attention_fit.MODELS.update(MODELS)
    mode, folder = sys.argv[1:]
    for name in MODELS:
        try:
            attention_fit.fit(mode, name, f"{folder}/{name}")
        except ValueError as error:
            print(f"{name} {mode}: {error}", flush=True)
    processes.leave_group()
