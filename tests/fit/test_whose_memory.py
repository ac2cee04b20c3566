"""What a loss has learned and remembers belongs to its data and its run: another fit begins anew, or is refused."""

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.data import Indexed
from lightning_kd.losses import (
    ABLoss,
    ATLoss,
    BYOTLoss,
    CCLoss,
    CRDLoss,
    DistillationLoss,
    FSPLoss,
    FTLoss,
    HintLoss,
    HybridLoss,
    ICKDLoss,
    InfoNCELoss,
    KDLoss,
    MutualLearning,
    OFDLoss,
    PKTLoss,
    ReviewKDLoss,
    TripletLoss,
    VIDLoss,
)
from lightning_kd.projectors import Projector
from tests import support
from tests.support import StagedNet, UserModule, assert_same_weights

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
DOORS = ["module", "callback"]
ROWS = 24


def labelled(seed, rows=ROWS):
    generator = torch.Generator().manual_seed(seed)
    classes = (torch.arange(rows) % support.CLASSES)[torch.randperm(rows, generator=generator)]
    return TensorDataset(torch.randn(rows, 1, 4, 4, generator=generator), classes)


A, B = labelled(1), labelled(2)
ONE, TWO = (
    {"student": "stage2", "teacher": "stage2"},
    {"student": ["stage1", "stage2"], "teacher": ["stage1", "stage2"]},
)
LOSSES = {
    "hint": lambda: HintLoss(**ONE),
    "hint by default": lambda: HintLoss(),
    "hint, own projector": lambda: HintLoss(**ONE, projector=OwnProjector()),
    "ofd": lambda: OFDLoss(**TWO),
    "review": lambda: ReviewKDLoss(**TWO),
    "ab": lambda: ABLoss(**TWO, stage_length=1),
    "fsp": lambda: FSPLoss(**TWO, stage_length=1),
    "ft": lambda: FTLoss(**ONE, stage_length=1),
    "cc": lambda: CCLoss("embedding", "embedding", variant="repdistiller", weight=1e-3),
    "crd": lambda: CRDLoss("embedding", "embedding", dim=4, negatives=8),
    "infonce": lambda: InfoNCELoss("embedding", "embedding", dim=4),
    "triplet": lambda: TripletLoss("embedding", "embedding", dim=4),
    "ickd": lambda: ICKDLoss(**ONE),
    "vid": lambda: VIDLoss(**ONE),
    "byot": lambda: BYOTLoss(["stage1", "stage2"]),
    "pkt": lambda: PKTLoss("embedding", "embedding"),
    "uncertainty": lambda: HybridLoss([KDLoss(), HintLoss(**ONE)], balance="uncertainty"),
    "magnitude": lambda: HybridLoss([KDLoss(), HybridLoss([ATLoss(**ONE)])], balance="magnitude"),
}


class OwnProjector(Projector):
    """A projector of the user's, with weights before it is built."""

    def __init__(self):
        super().__init__()
        self.conv = support.seeded(partial(nn.Conv2d, 6, 12, 1), 2)

    def make_layers(self, student_shape, teacher_shape):
        pass

    def forward(self, student):
        return self.conv(student)


def nets():
    return support.seeded(partial(StagedNet, 3), 3), support.seeded(partial(StagedNet, 6), 7)


def made(door, losses, student=None):
    net, guide = nets()
    net = net if student is None else student
    if door == "module":
        return DistillationModule(
            net, guide, losses, task_loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.05)
        ), []
    return UserModule(net), [DistillationCallback(guide, losses)]


def fit(module, data, callbacks=(), epochs=2, **options):
    trainer = support.trainer(max_epochs=epochs, callbacks=list(callbacks), limit_val_batches=0)
    torch.manual_seed(5)
    trainer.fit(module, DataLoader(data, 8, shuffle=True), **options)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", LOSSES)
def test_one_loss_object_in_two_folds_begins_anew(door, name):
    loss = LOSSES[name]()
    fit(*_split(made(door, [loss]), Indexed(A)))
    again, callbacks = made(door, [loss])
    second = fit(again, Indexed(B), callbacks)
    fresh, callbacks = made(door, [LOSSES[name]()])
    assert second == fit(fresh, Indexed(B), callbacks)
    assert_same_weights(again, fresh)


def _split(pair, data):
    module, callbacks = pair
    return module, data, callbacks


@pytest.mark.parametrize("name", ["crd", "hint by default", "magnitude"])
def test_one_callback_for_two_modules_begins_anew(name):
    guide = nets()[1]
    callback = DistillationCallback(guide, [LOSSES[name]()])
    fit(UserModule(nets()[0]), Indexed(A), [callback])
    second = UserModule(nets()[0])
    metrics = fit(second, Indexed(B), [callback])
    fresh = UserModule(nets()[0])
    assert metrics == fit(fresh, Indexed(B), [DistillationCallback(nets()[1], [LOSSES[name]()])])
    assert_same_weights(second, fresh)


class Other(nn.Module):
    """A student whose layers have other names and sizes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 5, 3, padding=1)
        self.last = nn.Linear(80, support.CLASSES)

    def forward(self, x):
        return self.last(self.first(x).relu().flatten(1))


@pytest.mark.parametrize("door", DOORS)
def test_layers_that_were_chosen_for_one_student_are_chosen_again_for_another(door):
    loss = CRDLoss(dim=4, negatives=8)
    fit(*_split(made(door, [loss]), Indexed(A)))
    fit(*_split(made(door, [loss], Other()), Indexed(A)))
    assert loss.student in ("first", "last") or "first" in loss.student or loss.student == ""
    assert loss.student_embedding is not None


def test_modules_that_are_made_before_the_first_fit_begin_anew_too():
    loss = LOSSES["crd"]()
    folds = [made("module", [loss])[0] for _ in range(3)]
    metrics = [fit(fold, Indexed(A)) for fold in (*folds, folds[0])]
    assert metrics[0] == metrics[1] == metrics[2]
    assert loss.student_bank.isfinite().all()


def test_options_that_were_set_between_two_folds_hold():
    loss = HintLoss(**ONE, weight=1.0)
    fit(made("module", [loss])[0], A)
    loss.weight = 3.0
    second = fit(made("module", [loss])[0], A)
    assert second == fit(made("module", [HintLoss(**ONE, weight=3.0)])[0], A)


def test_a_second_fit_of_one_module_goes_on_with_its_memory():
    module, _ = made("module", [LOSSES["crd"](), LOSSES["magnitude"]()])
    fit(module, Indexed(A))
    bank, loss = module.losses["crd"].student_bank.clone(), module.losses["crd"]
    embedding = loss.student_embedding
    fit(module, Indexed(A), epochs=1)
    assert loss.student_embedding is embedding
    assert not torch.equal(bank, loss.student_bank)
    assert (loss.student_bank.norm(dim=1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "other", [B, labelled(4, 32), labelled(4, 16)], ids=["other labels", "more rows", "fewer rows"]
)
def test_other_data_for_the_same_module_empties_the_banks(door, other):
    loss = CRDLoss("embedding", "embedding", dim=4, negatives=200)
    module, callbacks = made(door, [loss])
    fit(module, Indexed(A), callbacks)
    fit(module, Indexed(other), callbacks)
    rows = torch.arange(len(other))
    drawn = loss.draw(rows)[:, 1:]
    classes = other.tensors[1]
    assert len(loss.student_bank) == len(loss.teacher_bank) == len(other)
    assert not (classes[drawn] == classes[:, None]).any()
    assert (loss.student_bank.norm(dim=1) - 1).abs().max() < 1e-5, "every row was reached"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("inside", [False, True])
def test_peers_begin_with_their_first_weights_beside_another_student(door, inside):
    def part(peer):
        return HybridLoss([MutualLearning([peer])]) if inside else MutualLearning([peer])

    peer, twin = (support.seeded(partial(StagedNet, 3), 5) for _ in range(2))
    loss = part(peer)
    fit(*_split(made(door, [loss]), A))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="MutualLearning was trained")
        again, callbacks = made(door, [loss])
        second = fit(again, B, callbacks)
    fresh, callbacks = made(door, [part(twin)])
    assert second == fit(fresh, B, callbacks)
    assert_same_weights(again, fresh)
    assert_same_weights(peer, twin)
    assert any(one is peer for one in loss.modules())


def test_peers_go_on_with_the_student_that_they_have_learned_with():
    peer = support.seeded(partial(StagedNet, 3), 5)
    module, _ = made("module", [MutualLearning([peer])])
    fit(module, A)
    learned = copy.deepcopy(peer)
    fit(module, A, epochs=0)
    assert_same_weights(peer, learned)


class WithNetwork(DistillationLoss):
    """A loss of the user's with a network of its own, of which it does not say that it learns."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, student):
        return self.network(student).square().mean()

    def evaluate(self, step):
        return self(step.student_logits)


def test_another_network_that_has_learned_is_told_of():
    network = nn.Linear(support.CLASSES, 1)
    loss = WithNetwork(network)
    fit(made("module", [loss])[0], A)
    with pytest.warns(UserWarning, match="WithNetwork was trained in the fit of another module"):
        fit(made("module", [loss])[0], A)
    assert loss.network is network


def test_what_cannot_be_copied_is_refused_in_words():
    loss = HintLoss(**ONE)
    loss.lines = (line for line in "ab")
    fit(made("module", [loss])[0], A)
    with pytest.raises(RuntimeError, match=r"HintLoss was built in the fit of another module.*construct a new"):
        fit(made("module", [loss])[0], A)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_of_a_module_goes_on(copied):
    module, _ = made("module", [LOSSES["crd"]()])
    fit(module, Indexed(A))
    twin = copied(module)
    assert fit(twin, Indexed(A), epochs=1) == fit(module, Indexed(A), epochs=1)
    assert_same_weights(twin, module)


# The rows that samples carry


def indexed_inside():
    first, last = random_split(Indexed(A), [16, 8], generator=torch.Generator().manual_seed(0))
    return {
        "the first rows": Subset(Indexed(A), range(16)),
        "the last rows": Subset(Indexed(A), range(8, 24)),
        "all rows in another order": Subset(Indexed(A), range(23, -1, -1)),
        "one part of a random split": first,
        "the other part": last,
        "joined": ConcatDataset([Indexed(A), Indexed(B)]),
        "joined, the same twice": ConcatDataset([Indexed(A), Indexed(A)]),
        "a subset of joined ones": Subset(ConcatDataset([Indexed(A), Indexed(B)]), range(24)),
        "own wrapper of joined ones": Wrapper(ConcatDataset([Indexed(A), Indexed(B)])),
    }


class Wrapper(Dataset):
    def __init__(self, dataset, rows=None):
        self.dataset = dataset
        self.rows = range(len(dataset)) if rows is None else rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.dataset[self.rows[row]]

    @property
    def targets(self):
        return self.dataset.targets


@pytest.mark.parametrize("negatives_from", ["other_classes", "any"])
@pytest.mark.parametrize("name", indexed_inside())
def test_indexed_inside_is_refused(name, negatives_from):
    loss = CRDLoss("embedding", "embedding", dim=4, negatives=8, negatives_from=negatives_from)
    with pytest.raises(ValueError, match=r"Indexed must be the last wrapper: Indexed\("):
        fit(made("module", [loss])[0], indexed_inside()[name])


@pytest.mark.parametrize(
    "data",
    [
        Indexed(ConcatDataset([A, B])),
        Indexed(Subset(A, range(8, 24))),
        Indexed(random_split(A, [16, 8])[0]),
        Wrapper(Indexed(A)),
        Subset(Indexed(A), range(24)),
    ],
)
def test_rows_of_the_data_itself_train(data):
    loss = CRDLoss("embedding", "embedding", dim=4, negatives=8)
    fit(made("module", [loss])[0], data)
    assert (loss.student_bank.norm(dim=1) - 1).abs().max() < 1e-5


class Coarse(Dataset):
    """Samples carry other labels than ``targets`` tells, as with a ``target_transform``."""

    targets = list(range(ROWS))

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return A[row][0], row % 3


class Backwards(Wrapper):
    """Gives the rows in another order than it says, with ``targets`` in its own."""

    def __init__(self):
        super().__init__(Indexed(A), range(ROWS - 1, -1, -1))

    @property
    def targets(self):
        return A.tensors[1].flip(0)


@pytest.mark.parametrize("data", [Indexed(Coarse()), Backwards()], ids=["coarse", "backwards"])
@pytest.mark.parametrize("door", DOORS)
def test_a_label_that_is_not_that_of_its_row_is_refused(data, door):
    loss = CRDLoss("embedding", "embedding", dim=4, negatives=8)
    module, callbacks = made(door, [loss])
    with pytest.raises(ValueError, match=r"CRDLoss: the sample of row \d+ has the label \d.*Indexed\(dataset, targets"):
        fit(module, data, callbacks)


def test_labels_that_are_given_take_the_place_of_targets():
    loss = CRDLoss("embedding", "embedding", dim=4, negatives=200)
    coarse = torch.arange(ROWS) % 3
    fit(made("module", [loss])[0], Indexed(Coarse(), targets=coarse.tolist()))
    drawn = loss.draw(torch.arange(ROWS))[:, 1:]
    assert not (coarse[drawn] == coarse[:, None]).any()
    with pytest.raises(ValueError, match="one class id for each of 24 rows"):
        Indexed(Coarse(), targets=[1, 2])


def test_samples_without_a_label_and_soft_targets_are_not_compared():
    class Hidden(Wrapper):
        def __getitem__(self, row):
            x, y = super().__getitem__(row)
            return x, torch.where(torch.tensor(row % 2 == 0), y, -100)

    class Soft(DistillationModule):
        def unpack_batch(self, batch):
            read = super().unpack_batch(batch)
            return type(read)(read.args, {}, nn.functional.one_hot(read.target, support.CLASSES).float(), read.index)

    loss = LOSSES["crd"]()
    fit(made("module", [loss])[0], Indexed(Hidden(A), targets=A.tensors[1]))
    net, guide = nets()
    fit(Soft(net, guide, [LOSSES["crd"]()], task_loss=nn.CrossEntropyLoss()), Indexed(A))


# A checkpoint and other data


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("other", "words"),
    [(B, "other class ids"), (labelled(4, 32), "has 32 rows, but the losses of the checkpoint remember 24")],
)
def test_a_checkpoint_of_other_data_is_refused(door, other, words, tmp_path):
    module, callbacks = made(door, [LOSSES["crd"]()])
    trainer = support.trainer(max_epochs=1, callbacks=callbacks, limit_val_batches=0)
    trainer.fit(module, DataLoader(Indexed(A), 8))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    module, callbacks = made(door, [LOSSES["crd"]()])
    with pytest.raises(ValueError, match=words):
        fit(module, Indexed(other), callbacks, ckpt_path=tmp_path / "a.ckpt")
    module, callbacks = made(door, [LOSSES["crd"]()])
    fit(module, Indexed(A), callbacks, ckpt_path=tmp_path / "a.ckpt")
    if door == "module":
        loaded = DistillationModule.load_from_checkpoint(
            tmp_path / "a.ckpt", student=nets()[0], teacher=nets()[1], losses=[LOSSES["crd"]()]
        )
        with pytest.raises(ValueError, match=words):
            fit(loaded, Indexed(other))


def test_a_loop_of_ones_own_with_one_loss_object():
    loss = CRDLoss("embedding", "embedding", dim=4, negatives=200)
    for data in (A, B, labelled(4, 32)):
        loss.set_dataset(len(data), data.tensors[1])
        module, _ = made("module", [loss])
        module.prepare((*(part[:8] for part in data.tensors), torch.arange(8)))
        drawn = loss.draw(torch.arange(len(data)))[:, 1:]
        classes = data.tensors[1]
        assert not (classes[drawn] == classes[:, None]).any()
        assert len(loss.student_bank) == len(data)
        module.training_step((*(part[:8] for part in data.tensors), torch.arange(8)), 0)
