"""The README's example runs as it is written, and its commands name files that exist."""

import re
import subprocess
import sys
from pathlib import Path

from tests import support

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_leaves_a_student(tmp_path):
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", README, re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "student.safetensors").is_file()


def test_every_path_and_loss_that_it_names_exists():
    from lightning_kd import losses

    for path in set(re.findall(r"(?:examples|tests)/[\w/]+(?:\.\w+)?", README)):
        assert (ROOT / path).exists(), path
    for path in set(re.findall(r"`(losses/\w+\.py|\w+\.py)`", README)):
        assert (ROOT / "lightning_kd" / path).is_file() or (ROOT / "lightning_kd" / "losses" / path).is_file(), path
    for name in set(re.findall(r"`(\w+Loss)`", README)):
        assert hasattr(losses, name), name


def test_the_table_has_every_loss():
    assert {name for name in support.exported_losses() if f"`{name}`" not in README} == set()
