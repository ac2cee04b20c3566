"""A page holds every word escaped, needs nothing from outside, and touches nobody's matplotlib."""

import base64
import re
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from lightning_kd.report import charts
from lightning_kd.report.charts import bar_chart, draw, heat_map, line_chart
from lightning_kd.report.page import Cell, Code, Pictures, Section, Table, Text, Tile, Tiles, render

EVIL = "<script>alert('&\"')</script>"


def every_part():
    picture = line_chart({EVIL: ([1, 2], [3.0, 4.0]), "b": ([1], [2.0])}, alt=EVIL, title=EVIL, caption=EVIL)
    return [
        Section("", [Tiles([Tile(EVIL, EVIL, EVIL)])]),
        Section(EVIL, [Text(EVIL, "note"), Code(EVIL), Table([EVIL, "n"], [[Cell(EVIL, "good"), 3]], EVIL)]),
        Section("Pictures", [picture, Pictures([picture, picture], small=True)]),
        Section(
            "More", [bar_chart([EVIL], {EVIL: [0.5], "b": [0.2]}, alt="x"), heat_map([[0.1]], [EVIL], [EVIL], alt="x")]
        ),
    ]


def svgs(page):
    return [
        base64.b64decode(found).decode() for found in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    ]


def test_every_word_is_escaped():
    page = render(EVIL, every_part(), subtitle=EVIL)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert") >= 12
    for svg in svgs(page):
        assert "<script" not in svg
    assert any("&lt;script&gt;" in svg for svg in svgs(page))


def test_the_page_loads_nothing():
    page = render("t", every_part())
    assert "default-src 'none'" in page
    for url in re.findall(r"""(?:src|href)=["']([^"']*)""", page):
        assert url.startswith(("data:image/", "#"))
    assert not re.findall(r"url\(|@import", page)


def test_every_picture_has_words():
    page = render("t", [Section("s", [draw(lambda axes: None, alt="No line.")])])
    assert re.findall(r'<img [^>]*alt="([^"]*)"', page) == ["No line."]


def test_figures_have_the_shades_of_light_and_dark_pages():
    (svg,) = svgs(render("t", [Section("s", [line_chart({"a": ([0, 1], [1.0, 2.0])}, alt="x")])]))
    assert "prefers-color-scheme:dark" in svg
    assert "var(--ink)" in svg
    assert "#010203" not in svg


def test_numbers_stand_to_the_right():
    table = Table(["name", "share", "loss", "verdict"], [["a", "12.5 %", 0.25, "BEATS"], ["b", None, 3, "-"]])
    assert table.styles == ["", "right", "right", ""]
    assert table.cells[1][1][0] == "\N{EN DASH}"


def test_the_users_matplotlib_stays_as_it_is(monkeypatch):
    backend, figures = dict.__getitem__(matplotlib.rcParams, "backend"), plt.get_fignums()
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    before = dict(matplotlib.rcParams.copy())
    picture = line_chart({"a": ([0, 1], [1.0, 2.0])}, alt="x", log=True)
    assert dict(matplotlib.rcParams.copy()) == before
    assert dict.__getitem__(matplotlib.rcParams, "backend") is backend  # which pyplot would choose
    assert plt.get_fignums() == figures
    assert "#ff0000" not in base64.b64decode(picture.uri.partition(",")[2]).decode()  # red, as the user draws


def test_no_chart_is_drawn_by_pyplot():
    for path in Path(charts.__file__).parent.glob("*.py"):
        assert not re.search(r"import.*pyplot", path.read_text())


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ModuleNotFoundError, match=r'takes jinja2: pip install "lightning_kd\[report\]"'):
        render("t", [])
