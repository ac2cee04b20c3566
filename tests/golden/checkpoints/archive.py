"""One file for each scenario: its checkpoints, where its runs ended, their curves, and what wrote them."""

import functools
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from tests import support
from tests.golden.checkpoints.scenarios import SCENARIOS, Run, fit

FOLDER = Path(__file__).parent


def path_of(name: str, folder: Path = FOLDER) -> Path:
    """Return where the file of a scenario is."""
    return folder / f"{name}.tar.xz"


@functools.cache
def environment() -> dict[str, str]:
    """Return what the bits of a result depend on, beside the code: torch, and how this processor computes.

    The capability alone does not tell: of two processors with AVX-512 each may be served by other kernels. So a short
    training in plain torch, without this package, is a part of it.
    """
    net = support.seeded(partial(support.StagedNet, 3), 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for x, y in support.loader():
        optimizer.zero_grad()
        logits = net(x)
        (
            nn.functional.cross_entropy(logits, y) + (x @ x.mT).softmax(-1).log().std() * logits.square().mean()
        ).backward()
        optimizer.step()
    trained = b"".join(bits(value) for value in net.state_dict().values())
    return {
        "torch": torch.__version__.partition("+")[0],
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "a short training": hashlib.sha256(trained).hexdigest()[:16],
    }


def bits(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor's values."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@dataclass
class Golden:
    """What the file of a scenario holds.

    Args:
        written: The environment, the commit and the versions that it was written with.
        runs: How the uninterrupted run went, by door.
        checkpoints: The checkpoints' bytes by door and point.
    """

    written: dict[str, str]
    runs: dict[str, Run]
    checkpoints: dict[tuple[str, str], bytes]


def record(name: str, folder: Path, written: dict[str, str]) -> Golden:
    """Train a scenario through each of its doors."""
    runs, checkpoints = {}, {}
    for door in SCENARIOS[name].doors:
        (folder / door).mkdir(parents=True)
        runs[door] = fit(name, door, folder / door)
        for point in SCENARIOS[name].points:
            checkpoints[door, point] = (folder / door / f"{point}.ckpt").read_bytes()
    return Golden(written, runs, checkpoints)


def write(golden: Golden, path: Path) -> None:
    """Write the file of a scenario; a file that is there is an error."""
    with open(path, "xb") as file, tarfile.open(fileobj=file, mode="w:xz", preset=9) as archive:
        _add(archive, "written.json", _json(golden.written))
        for door, run in golden.runs.items():
            _add(archive, f"{door}/curve.json", _json({"lines": run.lines, "curve": run.curve}))
            _add(archive, f"{door}/end.safetensors", save({k: v.contiguous() for k, v in run.end.items()}))
        for (door, point), content in golden.checkpoints.items():
            _add(archive, f"{door}/{point}.ckpt", content)


def read(path: Path) -> Golden:
    """Read the file of a scenario."""
    with tarfile.open(path) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    runs, checkpoints = {}, {}
    for name, content in files.items():
        door, _, file = name.partition("/")
        if file == "curve.json":
            logged = json.loads(content)
            runs[door] = Run(load(files[f"{door}/end.safetensors"]), logged["curve"], logged["lines"])
        elif file.endswith(".ckpt"):
            checkpoints[door, file.removesuffix(".ckpt")] = content
    return Golden(json.loads(files["written.json"]), runs, checkpoints)


def _json(content: object) -> bytes:
    return json.dumps(content).encode()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
