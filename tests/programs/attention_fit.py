"""Fit Hugging Face's models by their attention in one process or two, and write the weights; a program.

python -m tests.programs.attention_fit one|ddp|fsdp2 FOLDER
"""

import os
import sys
from functools import partial

import torch
from torch.utils.data import DataLoader

from lightning_kd import DistillationModule
from lightning_kd.distributed.whole_state import whole_state
from lightning_kd.losses import AttentionMatrixLoss, HiddenStateLoss, KDLoss, QKVRelationLoss
from tests import support
from tests.programs.distributed_fit import STRATEGIES
from tests.support import processes

VOCABULARY, LENGTHS = 50, torch.tensor([9, 4, 6, 5, 7, 8, 3, 9])


def llama(hidden, layers):
    import transformers  # which the other tests do without

    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, intermediate_size=32, pad_token_id=0, **sizes)
    return transformers.LlamaForCausalLM(config)


def bert(hidden, layers):
    import transformers  # which the other tests do without

    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 32}
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=VOCABULARY, num_labels=3, **sizes, **without)
    )


def of_llama():
    layers = ("model.layers.1", "model.layers.3")
    relations = QKVRelationLoss(*layers, relation_heads=4, relations={"VV": 1.0, "KK": 1.0}, weight=50.0)
    return [AttentionMatrixLoss(*layers, weight=50.0), relations, HiddenStateLoss(*layers)]


def of_bert():
    scores = AttentionMatrixLoss("bert.encoder.layer.0", "bert.encoder.layer.1", kind="scores_kl", weight=50.0)
    return [AttentionMatrixLoss("bert.encoder.layer.1", "bert.encoder.layer.3", weight=50.0), scores, KDLoss()]


MODELS = {"llama": (llama, of_llama), "bert": (bert, of_bert)}


def batches(devices, rank):
    """Two batches of texts of unequal length; of two processes each gets half of the rows."""
    ids = torch.randint(1, VOCABULARY, (8, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9)[None] < LENGTHS[:, None]).long()
    size = 4 // devices
    rows = [slice(4 * i + size * rank, 4 * i + size * (rank + 1)) for i in range(2)]
    return [{"input_ids": (ids * mask)[of], "attention_mask": mask[of]} for of in rows]


def fit(mode, name, path):
    make, losses = MODELS[name]
    student, teacher = (support.seeded(partial(make, *sizes), sizes[0]) for sizes in ((16, 2), (32, 4)))
    torch.manual_seed(5)  # for the projectors
    module = DistillationModule(student, teacher, losses(), optimizer=partial(torch.optim.SGD, lr=0.5))
    options = STRATEGIES[mode]()
    loader = DataLoader(batches(options.get("devices", 1), int(os.environ.get("LOCAL_RANK", "0"))), batch_size=None)
    trainer = support.trainer(use_distributed_sampler=False, **options)
    trainer.fit(module, loader, loader)
    torch.save(whole_state(student), f"{path}.{trainer.global_rank}")


if __name__ == "__main__":
    for name in MODELS:
        fit(sys.argv[1], name, f"{sys.argv[2]}/{name}")
    processes.leave_group()
