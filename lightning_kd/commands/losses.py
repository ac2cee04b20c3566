"""The command ``lightning-kd losses``: every loss in a line, or all of one."""

import textwrap

from lightning_kd.commands.parsing.losses import class_named, names, overview
from lightning_kd.commands.parsing.messages import close
from lightning_kd.commands.parsing.parser import call_with
from lightning_kd.losses.catalogue import Page, page_of

_WIDTH = 100


def losses(words: list[str]) -> None:
    """Print the losses, or one of them.

    Args:
        words: Arguments as on the command line, after ``losses``.
    """
    named = bool(words) and not words[0].startswith("-")
    call_with(["--name", *words] if named else words, show, "losses")


def show(name: str | None = None) -> None:
    """List the losses, one line each; lightning-kd losses NAME tells all of one.

    That is its options with their defaults, the weights that were published with it, and its papers.

    Args:
        name: Class, strategy, or logged name of a loss, in any case of letters. The option itself may be left out.

    Raises:
        ValueError: If there is no such loss; names the nearest.
    """
    print(f"{overview()}\n\n`lightning-kd losses NAME` tells all of one." if name is None else _text(_page(name)))


def _page(name: str) -> Page:
    known = {other.lower(): other for other in names()}
    loss = class_named(known.get(name.lower(), name))
    if loss is None:
        nearest = close(name, known.values())
        hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
        raise ValueError(f"there is no loss {name!r}.{hint} `lightning-kd losses` lists all.")
    return page_of(loss)


def _text(page: Page) -> str:
    also = [*([page.strategy] if page.strategy else []), page.logged_as]
    facts = {
        "names": ", ".join([page.name, *also]),
        "reads": page.reads,
        "needs": "; ".join(page.needs),
        "weight": page.weights or "No weight was published. `lightning-kd check` shows what a weight of 1 amounts to.",
    }
    lines = [_filled(page.does), ""]
    lines += [line for one in page.about.split("\n\n") if one for line in (_filled(one), "")]
    lines += [_entry(f"{fact:<8}", text, 8) for fact, text in facts.items() if text]
    lines += [_entry(f"{'paper' if not i else '':<8}", paper, 8) for i, paper in enumerate(page.papers)]
    lines += ["", "Options, with their defaults:"]
    for option in page.options:
        lines.append(_entry(f"  {option.name} = {option.default or '(must be given)'}", "", 6))
        lines.append(_entry("      ", option.meaning, 6))
    given = ", ".join(f"{option.name}: ..." for option in page.options if option.default is None)
    lines += ["", f"In YAML:    losses: [{{{page.name}: {{{given or 'weight: 1.0'}}}}}]"]
    lines += [f"In Python:  from lightning_kd.losses import {page.name}"]
    return "\n".join(lines)


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.replace("``", "").split()), _WIDTH)


def _entry(start: str, text: str, indent: int) -> str:
    text = text.replace("``", "")
    return textwrap.fill(f"{start}{text}", _WIDTH, subsequent_indent=" " * indent, break_long_words=False)
