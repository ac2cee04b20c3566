"""What is left out: benchmarks, and the ecosystem where its libraries are not installed, unless the folder is named.

What needs a GPU is left out where there is none. ``--thin K`` takes K cases of each test that has more.
"""

import logging
import os
import signal
from collections import defaultdict
from importlib.util import find_spec

if "PYTEST_XDIST_WORKER" in os.environ:
    # as many processes as cores: with several threads in each, threads that wait take the cores from those that work;
    # OpenMP reads this when torch is loaded, and every thread begins with it; torch.set_num_threads is of one thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    # they ignore Ctrl-C, as do the programs that they start; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# 2026-11: torch 2.13 keeps every seed for devices that are not there, each with the text of the whole stack, so that
# ``torch.manual_seed`` takes 2 ms here, a quarter of the time of many tests
for devices in (torch.cuda, torch.xpu, torch.mtia):
    if not devices.is_available():
        devices.manual_seed_all = lambda seed: None

LIBRARIES = ("torchvision", "timm", "transformers", "peft")
LEFT_OUT = ["benchmarks", *([] if all(map(find_spec, LIBRARIES)) else ["ecosystem"])]


def pytest_ignore_collect(collection_path, config):
    asked = [folder for folder in LEFT_OUT if any(folder in str(argument) for argument in config.args)]
    return True if set(LEFT_OUT).difference(asked) & set(collection_path.parts) else None


def pytest_addoption(parser):
    parser.addoption("--thin", type=int, metavar="K", help="run at most K cases of each parametrised test")


@pytest.hookimpl(trylast=True)  # behind the choice by markers
def pytest_collection_modifyitems(config, items):
    left_out = set()
    if not torch.cuda.is_available():
        left_out = {item for item in items if item.get_closest_marker("gpu")}
    if (most := config.getoption("thin")) is not None:
        cases = defaultdict(list)
        for item in items:
            cases[item.nodeid.partition("[")[0]].append(item)
        for of_one in cases.values():
            left_out |= set(of_one) - {of_one[len(of_one) * case // most] for case in range(most)}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _told_at_info():
    """Let tests read what Lightning's loggers tell, whatever ran or was imported before.

    Examples that a test runs quiet them for the whole process. Imported before pytest listens, Lightning 2.6 keeps what
    they tell to itself.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = True


@pytest.fixture(autouse=True)
def _unseeded_workers():
    """``seed_everything`` sets variables that change how later loaders draw, and what processes of later fits draw."""
    yield
    os.environ.pop("PL_SEED_WORKERS", None)
    os.environ.pop("PL_GLOBAL_SEED", None)
