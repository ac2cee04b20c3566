"""The page of a comparison, ``report.html``."""

from lightning_kd.comparison.statistics import Interval
from lightning_kd.comparison.tables import HEAD, Table, cells, formatted
from lightning_kd.report import page

_KINDS = {"BEATS": "good", "DOES NOT BEAT": "bad", "CANNOT TELL": "doubt"}
_RUN = ("arm", "seed", "score", "agreement", "step_time", "steps", "seconds", "status", "error")


def html_of(table: Table) -> str:
    """Return the page of a comparison.

    Args:
        table: The comparison.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    ranked = [[page.Cell(cell, _KINDS.get(cell, "")) for cell in cells(row, table.score)] for row in table.ranked]
    parts: list[page.Part] = [_tiles(table), page.Table(HEAD, ranked, "The arms, the best first.")]
    parts += [page.Text(note, "note") for note in table.notes]
    sections = [page.Section("Which strategy", parts)]
    others = [[row.arm, row.reason or "not done"] for row in table.rows if row.score is None]
    if others:
        sections.append(page.Section("Not ranked", [page.Table(("arm", "reason"), others)]))
    runs = [[_shown(run.get(name)) for name in _RUN] for run in table.runs]
    sections.append(page.Section("Every run", [page.Table(_RUN, runs, "As in results.csv, which has more columns.")]))
    sections.append(
        page.Section("Train the winner", [page.Code("lightning-kd fit --config winner.yaml")])
        if table.winner
        else page.Section("No winner", [page.Text("No arm has a score.", "warning")])
    )
    return page.render("Comparison of strategies", sections)


def _tiles(table: Table) -> page.Tiles:
    best = table.ranked[0] if table.ranked else None
    alone = next((row for row in table.ranked if row.difference is None), None)
    tiles = [page.Tile("best mean", best.arm if best else "none", _mean(table.score, best.score if best else None))]
    if alone is not None and alone is not best:
        tiles.append(page.Tile("without a teacher", _mean(table.score, alone.score), alone.arm))
    beating = [row.arm for row in table.ranked if row.difference is not None and row.difference.verdict == "BEATS"]
    tiles.append(page.Tile("arms that beat it", len(beating), ", ".join(beating)))
    return page.Tiles(tiles)


def _mean(score: str, found: Interval | None) -> str:
    return "" if found is None else f"{score} {formatted(score, found.mean)}"


def _shown(value: object) -> page.Value:
    return value if isinstance(value, str | int | float) else None
