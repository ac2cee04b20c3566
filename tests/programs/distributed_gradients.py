"""Fit on two processes, of which one has a batch whose gradient is not finite; write the error and the weights.

python -m tests.programs.distributed_gradients DOOR FOLDER
"""

import os
import sys
from contextlib import suppress

import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_kd.losses import KDLoss
from tests import support
from tests.fit.test_gradients import Root, marked
from tests.support import processes

if __name__ == "__main__":
    door, folder = sys.argv[1:]
    net = support.student()
    made, callbacks = support.through(door, net, losses=[KDLoss(), Root("features.0", "features.0")])
    strategy = DDPStrategy(process_group_backend="gloo")
    said = ""
    try:
        # two processes take the rows in turn, eight in a batch: row 16 is in the second batch of the first process
        support.fit(made, train=marked(16), callbacks=callbacks, devices=2, strategy=strategy)
    except FloatingPointError as error:
        said = str(error)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    torch.save({"said": said, "weights": weights}, f"{folder}/{os.environ.get('LOCAL_RANK', '0')}")
    with suppress(ValueError):  # the Trainer may have ended the group
        processes.leave_group()
