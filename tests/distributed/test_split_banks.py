"""CRD's banks split by rows over processes give what whole banks give, and go on from a checkpoint exactly."""

import os

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.data import Indexed
from lightning_kd.losses import CRDLoss
from lightning_kd.losses.samples import crd_blocks
from tests import support
from tests.support import processes

ROWS, DIM = 23, 4
SIZES = ([6, 5, 0, 6], [6, 4, 3, 6])
KINDS = ("products", "picked rows", "16 bits")
CLASSES = torch.arange(ROWS) % 3


def built(split, kind="products"):
    torch.manual_seed(2)
    options = {"bank_dtype": "float16"} if kind == "16 bits" else {}
    loss = CRDLoss("s", "t", dim=DIM, negatives=7, split_banks=split, weight=1.0, **options)
    loss.set_dataset(ROWS, CLASSES)
    loss.build({"s": (2, 5)}, {"t": (2, 6)})
    return loss.train()


def steps(loss, rank):
    """Values and gradients of some steps, of other sizes in each process; the draws depend on the rows alone."""
    generator = torch.Generator().manual_seed(4)
    features = [torch.randn(4, ROWS, width, generator=generator) for width in (5, 6)]
    found = []
    for step in range(4):
        order = torch.randperm(ROWS, generator=generator)
        start = sum(SIZES[r][step] for r in range(rank))
        index = order[start : start + SIZES[rank][step]]
        if step == 3:
            index = order[:6]  # the same rows in both processes, as a sampler fills up its last batch
        drawn = torch.stack([index, *((index * 5 + 3 * k + 1) % ROWS for k in range(7))], dim=1)
        loss.zero_grad()
        value = loss(*(one[step][index] for one in features), index=index, contrast_index=drawn)
        value.backward()
        found += [value.detach(), *(one.grad.clone() for one in loss.parameters())]
    return found


def of_both(loss):
    """The whole banks, put together of the parts of both processes."""
    whole = []
    for bank in (loss.student_bank, loss.teacher_bank):
        parts = [torch.empty_like(bank) for _ in range(2)]
        dist.all_gather(parts, bank)
        whole.append(torch.cat(parts)[:ROWS] if len(bank) < ROWS else bank)
    return whole


def fitted(path, epochs, resume=None):
    data = Indexed(TensorDataset(*support.data(24).tensors))
    loss = CRDLoss("embedding", "embedding", dim=4, negatives=8, split_banks=True)
    torch.manual_seed(0)
    made = support.module(
        support.seeded(lambda: support.StagedNet(3), 3),
        teacher=support.seeded(lambda: support.StagedNet(6), 7),
        losses=[loss],
    )
    support.fit(
        made,
        train=DataLoader(data, 4, shuffle=True),
        strategy=DDPStrategy(process_group_backend="gloo"),
        devices=2,
        max_epochs=epochs,
        limit_val_batches=0,
        enable_checkpointing=True,
        callbacks=[ModelCheckpoint(path, filename=f"{epochs}", save_on_train_epoch_end=True)],
        ckpt_path=resume,
    )
    return [loss.student_bank.clone(), loss.teacher_bank.clone(), *(one.detach() for one in made.student.parameters())]


def work(rank, folder):
    port = (folder / "port").read_text()
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    found = {}
    with processes.process_group(rank, folder / "store", limit=100):
        for kind in KINDS:
            crd_blocks.PRODUCT_RATIO = 0 if kind == "picked rows" else 16
            whole, split = built(False, kind), built(True, kind)
            found[kind] = [(*steps(loss, rank), *of_both(loss), loss.log_normalizers) for loss in (whole, split)]
            found[f"{kind}, rows"] = [len(split.student_bank), len(split.teacher_bank)]
    crd_blocks.PRODUCT_RATIO = 16
    processes.leave_group()
    os.environ["MASTER_PORT"] = port
    straight = fitted(folder / "straight", 2)
    fitted(folder / "first", 1)
    found["fits"] = [straight, fitted(folder / "second", 2, folder / "first" / "1.ckpt")]
    torch.save(found, folder / str(rank))
    processes.leave_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    (folder / "port").write_text(support.free_port())
    processes.spawned(work, folder, limit=120)
    return folder, [torch.load(folder / str(rank), weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_split_banks_give_what_whole_ones_give(kind, ranks):
    for found in ranks[1]:
        assert found[f"{kind}, rows"] == [12, 12]
        whole, split = found[kind]
        tolerance = {"rtol": 1e-3, "atol": 1e-3} if kind == "16 bits" else {"rtol": 1e-5, "atol": 1e-6}
        for one, other in zip(whole, split, strict=True):
            torch.testing.assert_close(other, one, **tolerance)
        assert whole[0].abs() > 0.1


@pytest.mark.slow
def test_a_fit_goes_on_with_every_part_and_another_number_of_processes_is_refused(ranks):
    folder, found = ranks
    for one in found:
        straight, resumed = one["fits"]
        for a, b in zip(straight, resumed, strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(found[0]["fits"][0][0], found[1]["fits"][0][0])
    data = Indexed(TensorDataset(*support.data(24).tensors))
    loss = CRDLoss("embedding", "embedding", dim=4, negatives=8, split_banks=True)
    made = support.module(support.StagedNet(3), teacher=support.StagedNet(6), losses=[loss])
    words = r"CRDLoss: the banks of this checkpoint are split over 2 process\(es\), and there are 1 now"
    with pytest.raises(ValueError, match=words):
        support.fit(
            made,
            train=DataLoader(data, 8),
            max_epochs=2,
            limit_val_batches=0,
            ckpt_path=folder / "first" / "1.ckpt",
        )


def test_one_process_alone_trains_bit_for_bit_what_it_trains_with_whole_banks():
    whole, split = built(False), built(True)
    found = [steps(loss, 0) for loss in (whole, split)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.equal(whole.student_bank, split.student_bank)
    assert torch.equal(whole.teacher_bank, split.teacher_bank)


def test_banks_of_each_process_alone_are_not_split():
    with pytest.raises(ValueError, match="split_banks=True is for banks that remember the samples of all"):
        CRDLoss("s", "t", split_banks=True, gather=False)


def test_whole_and_split_banks_are_not_mistaken_for_each_other():
    whole, split = built(False), built(True)
    with pytest.raises(ValueError, match=r"split by rows over processes; write CRDLoss\(split_banks=True\)"):
        whole.load_state_dict(split.state_dict())
    split.load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match=r"are not split, and there are 1 now.*split_banks=False"):
        steps(split, 0)
