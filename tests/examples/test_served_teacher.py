"""The example of a teacher that is asked over HTTP: its files as written, with a server on a free port."""

import threading
from pathlib import Path

import pytest
import torch

from examples.served_teacher.client import Served
from examples.served_teacher.server import make_server
from lightning_kd.commands.fit import run
from lightning_kd.data.networks.digits import DigitsConvNet
from lightning_kd.teachers import from_checkpoint
from tests import support

ROOT = Path(__file__).parents[2]


@pytest.fixture
def url(monkeypatch):
    monkeypatch.chdir(ROOT)
    teacher = from_checkpoint(DigitsConvNet(width=32, depth=2), "examples/digits/teacher.safetensors")
    with make_server(teacher, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_served_teacher_teaches(url, tmp_path):
    where = f"--model.teacher.init_args.function.init_args.url={url}"
    quick = "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false"
    config = f"--config={ROOT / 'examples/served_teacher/fit.yaml'}"
    cli = run(["fit", config, where, *quick, f"--trainer.logger.init_args.save_dir={tmp_path}"])
    assert cli.trainer.callback_metrics["val/teacher_accuracy"] > 0.95


def test_what_the_server_refuses_is_told(url):
    with pytest.raises(RuntimeError, match="The server of the teacher refused"):
        Served(url)(torch.zeros(2, 3))


def test_a_server_that_is_not_there_is_told():
    with pytest.raises(RuntimeError, match=r"No teacher answers at .*start python -m examples"):
        Served(f"http://127.0.0.1:{support.free_port()}")(torch.zeros(2, 1, 8, 8))
