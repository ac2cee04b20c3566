"""A file in which a bit has flipped is refused by its name, whoever reads it."""

import io
import json
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_kd import DistillationModule, export_student
from lightning_kd.commands.export import export_checkpoint
from lightning_kd.files.integrity import with_checksums
from lightning_kd.files.reading import load_plain
from lightning_kd.teachers import from_checkpoint, materialize
from tests import support

DOORS = ["module", "callback"]


def flipped(path, at, bit=0):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return path


def place_of(path, value):
    """Where the bytes of a tensor stand in a file."""
    found = path.read_bytes().find(value.detach().numpy().tobytes())
    assert found > 0
    return found


def outcome(read, *args):
    """What reading gives, and the words of its refusal."""
    try:
        return read(*args), None
    except ValueError as error:
        return None, str(error)


@pytest.fixture
def damaged(tmp_path):
    """A checkpoint of ours in which one bit of the student's head has flipped."""

    def write(door="module"):
        made, callbacks = support.through(door)
        path = tmp_path / "bad.ckpt"
        support.fit(made, callbacks=callbacks, max_epochs=1).save_checkpoint(path)
        net = made.student if door == "module" else made.net
        return flipped(path, place_of(path, net.head.weight) + 3, 6)

    return write


SAYS = r"bad.ckpt' is damaged: what it holds at '\w+/data/\d+' is not what was written"


@pytest.mark.parametrize("door", DOORS)
def test_a_fit_does_not_go_on_from_a_damaged_checkpoint(door, damaged):
    path = damaged(door)
    made, callbacks = support.through(door)
    with pytest.raises(ValueError, match=SAYS):
        support.fit(made, callbacks=callbacks, ckpt_path=path)


@pytest.mark.parametrize(
    ("door", "task"), [("module", "validate"), ("module", "test"), ("module", "predict"), ("callback", "validate")]
)
def test_an_evaluation_reads_no_damaged_checkpoint(door, task, damaged):
    path = damaged(door)
    made, callbacks = support.through(door)
    with pytest.raises(ValueError, match=SAYS):
        getattr(support.trainer(callbacks=callbacks), task)(made, support.loader(), ckpt_path=path)


def test_load_from_checkpoint_reads_no_damaged_one_from_a_path_or_an_open_file(damaged):
    path, parts = damaged(), {"student": support.student(), "teacher": support.teacher()}
    with pytest.raises(ValueError, match=SAYS):
        DistillationModule.load_from_checkpoint(path, **parts)
    with path.open("rb") as file, pytest.raises(ValueError, match="An open file is damaged"):
        DistillationModule.load_from_checkpoint(file, **parts)
    with pytest.raises(ValueError, match=SAYS):
        load_plain(f"file://{path}")


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "onnx"])
def test_a_damaged_checkpoint_is_not_exported(suffix, damaged, tmp_path):
    with pytest.raises(ValueError, match=SAYS):
        export_checkpoint(str(damaged()), str(tmp_path / f"a.{suffix}"))
    assert not (tmp_path / f"a.{suffix}").exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("bit", range(8))
def test_a_damaged_teacher_is_refused(suffix, bit, tmp_path):
    path = tmp_path / f"teacher.{suffix}"
    net = support.teacher()
    export_student(net, path)
    flipped(path, place_of(path, net.head.bias) + 2, bit)
    with pytest.raises(ValueError, match=rf"teacher.{suffix}' is damaged: what it holds at '(head.bias|\w+/data/\d+)'"):
        from_checkpoint(support.student(), path)
    with torch.device("meta"):
        empty = support.ConvNet(8)
    with pytest.raises(ValueError, match=rf"teacher.{suffix}' is damaged"):
        materialize(empty, path, "cpu")


def test_no_flipped_bit_of_a_file_of_torch_changes_a_weight(tmp_path):
    """Of every byte one bit: the file is refused, or holds what was written (padding, dates)."""
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
    good = tmp_path / "good.pt"
    torch.save(state, good)
    content, kept = good.read_bytes(), 0
    for at in range(len(content)):
        path = tmp_path / "bad.pt"
        path.write_bytes(content)
        flipped(path, at, at % 8)
        loaded, refusal = outcome(load_plain, path)
        assert refusal is None or "bad.pt" in refusal
        assert loaded is None or all(torch.equal(loaded[name], value) for name, value in state.items())
        kept += refusal is None
    assert kept < len(content) / 2


def test_no_flipped_bit_of_our_safetensors_changes_a_weight(tmp_path):
    net = nn.Linear(3, 2)
    good, path = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    export_student(net, good)
    content = good.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content)
        flipped(path, at, at % 7)
        again = nn.Linear(3, 2)
        loaded, refusal = outcome(from_checkpoint, again, path)
        assert refusal is None or "bad.safetensors" in refusal
        assert loaded is None or (torch.equal(again.weight, net.weight) and torch.equal(again.bias, net.bias))


def test_the_checksums_stand_in_the_header_and_others_read_the_file(tmp_path):
    net = support.teacher()
    for i in range(3):
        export_student(net, tmp_path / f"{i}.safetensors")
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(3)}) == 1
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["sha256"]).keys() == net.state_dict().keys()
    support.assert_unchanged(net, load_file(tmp_path / "0.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float64])
def test_every_type_and_size_is_read_back(dtype, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for i, size in enumerate([(), (0,), (3,), (2, 0, 1), (2, 5)]):
                self.register_buffer(f"b{i}", torch.ones(size).to(dtype))

    export_student(Net(), tmp_path / "a.safetensors")
    made = Net()
    for buffer in made.buffers():
        buffer.zero_()
    from_checkpoint(made, tmp_path / "a.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(made.buffers(), Net().buffers(), strict=True))


def test_files_without_checksums_are_read(tmp_path):
    state = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
    save_file(state, tmp_path / "a.safetensors")
    save_file(state, tmp_path / "b.safetensors", metadata={"sha256": "of something else"})
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "none.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("a.safetensors", "b.safetensors", "old.pt", "none.pt"):
        assert from_checkpoint(nn.Linear(2, 1), tmp_path / name).weight.tolist() == [[1.0, 1.0]]


def test_a_file_that_is_no_state_dict_is_told(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(ValueError, match=r"a.pt' holds no checkpoint"):
        from_checkpoint(nn.Linear(2, 1), path)
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.safetensors' \(0 bytes\) cannot be read to its end"):
        from_checkpoint(nn.Linear(2, 1), tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError, match="no file"):
        from_checkpoint(nn.Linear(2, 1), tmp_path)


def test_an_open_file_is_read_from_where_it_stands():
    file = io.BytesIO()
    file.write(b"before")
    torch.save({"a": torch.ones(3)}, file)
    file.seek(6)
    rest = io.BytesIO(file.getvalue()[6:])
    assert load_plain(rest)["a"].tolist() == [1, 1, 1]


def test_a_header_of_ours_is_in_one_order():
    pieces = with_checksums(b"".join([(2).to_bytes(8, "little"), b"{}"]))
    assert b"".join(pieces)[8:].strip() == b'{"__metadata__":{"sha256":"{}"}}'
