"""The page of a run says what its record says, whatever names are in it, at any width."""

import base64
import copy
import html
import json
import re
import shutil

import pytest
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationModule
from lightning_kd.losses import HintLoss, KDLoss, RegressionKDLoss
from lightning_kd.report import RecordRun
from lightning_kd.report.html import page_of, write_page
from lightning_kd.report.record import Record
from lightning_kd.schedules import LinearSchedule as Linear
from tests import support
from tests.support.processes import run

EVIL = "<script>alert('&\"')</script>"
SECTIONS = [
    "What the student copies",
    "Losses over time",
    "Validation by epoch",
    "By class",
    "Confidence",
    "Where they disagree most",
    "Layers",
    "Gradients of the parts",
    "What they cost",
    "About this run",
]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    losses = [KDLoss(weight=Linear(1.0, 0.1, length=2)), HintLoss("features", "features")]
    made = support.module(support.ConvNet(2), teacher=support.ConvNet(3), losses=losses)
    support.fit(made, callbacks=[RecordRun(folder, class_names=["cat", "dog", "eel", "fox"])])
    return Record.read(folder)


@pytest.fixture(scope="module")
def page(record):
    return page_of(record)


def text_of(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)))


def alts_of(page):
    return [html.unescape(found) for found in re.findall(r'<img [^>]*alt="([^"]*)"', page)]


def test_the_page_has_every_section_and_its_numbers(record, page):
    assert re.findall(r"<h2>(.*?)</h2>", page) == SECTIONS
    text, alts = text_of(page), " ".join(alts_of(page))
    said, target = record.outputs["student_logits"].argmax(1), record.outputs["target"]
    right = 100 * float((said == target).float().mean())
    assert f"Accuracy of the student {right:.1f} %" in text
    parameters = record.facts["student"]["parameters"], record.facts["teacher"]["parameters"]
    assert f"parameters {parameters[0]:,} {parameters[1]:,}" in text
    cka = [value for row in record.facts["layers"]["cka"] for value in row]
    assert f"from {min(cka):.2f} to {max(cka):.2f}" in alts
    products = record.facts["gradients"][-1]["products"]
    lengths = [products[at][at] ** 0.5 for at in range(3)]
    assert f"task {100 * lengths[0] / sum(lengths):.1f} %" in text
    assert "Weights over the steps: kd from" in alts
    assert "cat" in text


def test_every_picture_has_words_and_nothing_is_loaded(page):
    assert all(alts_of(page))
    assert len(alts_of(page)) == page.count("<img ")
    for url in re.findall(r"""(?:src|href)=["']([^"']*)""", page):
        assert url.startswith(("data:image/", "#"))


def test_names_are_escaped(record):
    facts = json.loads(json.dumps(record.facts))
    facts["classes"] = [EVIL, *facts["classes"][1:]]
    facts["student"]["name"] = facts["teacher"]["name"] = EVIL
    facts["layers"]["student"][0] = facts["losses"]["kd"] = facts["notes"]["flops"] = EVIL
    facts["metrics"][-1]["values"][EVIL] = 0.5
    facts["curve"]["values"][EVIL] = facts["curve"]["values"].pop("kd")
    facts["gradients"][-1]["parts"][0] = EVIL
    page = page_of(Record(facts, record.outputs))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 8
    for svg in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page):
        assert b"<script" not in base64.b64decode(svg)


def test_a_run_of_another_kind_has_the_sections_that_fit(tmp_path):
    x = support.data(16).tensors[0].flatten(1)
    rows = DataLoader(TensorDataset(x, x[:, :2]), batch_size=8)
    module = DistillationModule(nn.Linear(16, 2), nn.Linear(16, 2), [RegressionKDLoss()], task_loss=nn.MSELoss())
    support.fit(module, train=rows, val=rows, callbacks=[RecordRun(tmp_path, page=True)])
    page = (tmp_path / "report.html").read_text()
    found = re.findall(r"<h2>(.*?)</h2>", page)
    assert not {"By class", "Confidence", "Where they disagree most"} & set(found)
    assert {"Losses over time", "Validation by epoch", "What they cost"} <= set(found)
    assert "Not compared row by row: the outputs are no class scores of samples." in text_of(page)


def test_a_student_alone_has_a_page(tmp_path):
    made = DistillationModule(support.student(), task_loss=nn.CrossEntropyLoss())
    support.fit(made, callbacks=[RecordRun(tmp_path)], max_epochs=1)
    write_page(tmp_path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "trained without a teacher" in page
    assert "teacher" not in re.findall(r"<th[^>]*>(.*?)</th>", page)


def test_a_run_that_was_broken_off_says_so(record):
    facts = copy.deepcopy(record.facts)
    facts["run"]["finished"] = False
    facts["metrics"] = facts["gradients"] = []
    page = page_of(Record(facts, {}))
    assert "this run has not ended, or was broken off" in page
    assert "By class" not in page


def test_without_the_extra_the_callback_is_refused(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning_kd\[report\]"):
        RecordRun(tmp_path, page=True)
    RecordRun(tmp_path)


CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def chromium(*options):
    """What headless Chromium says, with a profile of its own."""
    common = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    (ended,) = run([[CHROMIUM, *common, *options]], limit=120)
    return ended.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_width_of_a_phone_and_of_a_desktop(record, tmp_path, width):
    facts = copy.deepcopy(record.facts)
    facts["classes"] = ["a_name_that_is_much_longer_than_any_that_fits_beside_an_axis" + str(n) for n in range(4)]
    facts["student"]["name"] = "AStudentWithARatherLongNameThatCannotBeBrokenAnywhere" * 2
    page = tmp_path / "page.html"
    page.write_text(page_of(Record(facts, record.outputs)))
    # a frame has the width that is asked for, where a window of Chromium is 500 wide at least
    frame = f"""<iframe id="f" src="{page.name}" style="width:{width}px;height:800px;border:0"></iframe>
    <script>onload = () => {{
        const d = document.getElementById("f").contentDocument.documentElement;
        const found = [...d.querySelectorAll("img")], broken = found.filter(i => !i.naturalWidth).length;
        document.title = [d.clientWidth, d.scrollWidth, found.length, broken].join()
    }}</script>"""
    (tmp_path / "frame.html").write_text(frame)
    dom = chromium(
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1600,1000",
        "--virtual-time-budget=5000",
        "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    )
    seen, needed, images, broken = map(int, re.search(r"<title>([\d,]+)</title>", dom)[1].split(","))
    assert seen == width
    assert needed <= width
    assert images > 12
    assert broken == 0
