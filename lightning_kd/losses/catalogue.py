"""What can be said of each loss, read from its docstring and its signature, so that nothing is written twice."""

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_kd import losses
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.naming import names_after
from lightning_kd.losses.strategies import DistillationStrategyType

_READS = {
    "logits": "the logits",
    "embedding": "the features before the logits, or layers that you name",
    "map": "the last feature map, or layers that you name",
    "maps": "the last feature map of every resolution, or layers that you name",
    "pre_activation_maps": "feature maps before their activation, or layers that you name",
}
_SECTION = re.compile(r"(Args|Raises|Example|Examples|Reference|Shape|Returns|Note):", re.MULTILINE)


@dataclass(frozen=True)
class Option:
    """An option of a loss.

    Args:
        name: Its name.
        default: Its default as Python writes it, ``None`` if it must be given.
        meaning: What the docstring says of it.
    """

    name: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class Page:
    """What is known of a loss.

    Args:
        name: Name of the class.
        logged_as: The name under which it is logged.
        strategy: Name of the strategy that it stands for, ``None`` if there is none.
        does: What it makes the student do, in a line.
        about: What else the docstring says: when it is best, and what it costs.
        reads: What it reads of both networks.
        needs: What a batch or a run must have for it.
        options: Its options.
        weights: What is said of published weights, empty if nothing is.
        papers: Its papers.
    """

    name: str
    logged_as: str
    strategy: str | None
    does: str
    about: str
    reads: str
    needs: tuple[str, ...]
    options: tuple[Option, ...]
    weights: str
    papers: tuple[str, ...]


def every_loss() -> dict[str, type[DistillationLoss]]:
    """Return the losses of this package by name, in the order of the alphabet.

    Example:
        >>> list(every_loss())[:2]
        ['ABLoss', 'ATLoss']
    """
    found = {
        name: value
        for name, value in vars(losses).items()
        if inspect.isclass(value) and issubclass(value, DistillationLoss) and not inspect.isabstract(value)
    }
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def page_of(loss: type[DistillationLoss]) -> Page:
    """Return what is known of a loss.

    Args:
        loss: The class, of this package or of a user.

    Example:
        >>> page = page_of(losses.KDLoss)
        >>> page.logged_as, page.options[0].name, page.options[0].default
        ('kd', 'temperature', '4.0')
        >>> page.weights
        'Published recipes use 0.9 beside a task weight of 0.1.'
        >>> page.papers[0]
        'Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.'
    """
    text = inspect.getdoc(loss) or ""
    does, _, rest = text.partition("\n")
    options = tuple(_options(loss))
    of_weight = next((option.meaning for option in options if option.name == "weight"), "")
    strategy = next((one.name for one in DistillationStrategyType if one.component is loss), None)
    return Page(
        name=loss.__name__,
        logged_as=names_after([loss.__name__])[0],
        strategy=strategy,
        does=does,
        about=_SECTION.split(rest)[0].strip(),
        reads="layers that you name" if _must_name(options) else _READS[loss.reads],
        needs=tuple(_needs(loss)),
        options=options,
        weights=of_weight.partition(">= 0")[2].lstrip(".; ").strip(),
        papers=tuple(_papers(loss)),
    )


def _must_name(options: tuple[Option, ...]) -> bool:
    return any(option.name == "student" and option.default is None for option in options)


def _needs(loss: type[DistillationLoss]) -> Iterator[str]:
    if loss.needs_target is True:
        yield "labels"
    if loss.needs_index:
        yield "the row of each sample (lightning_kd.data.Indexed)"
    if loss.needs_maps:
        yield "feature maps (B, C, H, W) or tokens"
    if loss.relational:
        yield "several samples a batch, which it compares with one another"


def _options(loss: type[DistillationLoss]) -> Iterator[Option]:
    said: dict[str, str] = {}
    for cls in reversed(loss.__mro__):
        if issubclass(cls, DistillationLoss):
            said.update(entries(section(inspect.cleandoc(cls.__doc__ or ""), "Args")))
    for name, parameter in inspect.signature(loss).parameters.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            needed = parameter.default is inspect.Parameter.empty
            yield Option(name, None if needed else repr(parameter.default), said.get(name, ""))


def _papers(loss: type[DistillationLoss]) -> list[str]:
    """Return the references of a class, or else of the functions of its module that it calls."""
    module = sys.modules[loss.__module__]
    functions = [
        (name, one) for name, one in vars(module).items() if inspect.isfunction(one) and not name.startswith("_")
    ]
    source = inspect.getsource(loss)
    called = [one for name, one in functions if re.search(rf"\b{name}\b", source)]
    own = [one for _, one in functions if one.__module__ == module.__name__]
    for group in ([loss], called, own, [module]):
        found = [paper for one in group for paper in _references(inspect.getdoc(one) or "")]
        if found:
            return list(dict.fromkeys(found))
    return []


def _references(text: str) -> list[str]:
    """Return the entries of a section of references; one begins on a line of its own and ends with a full stop."""
    found: list[str] = []
    for line in section(text, "Reference").splitlines():
        if found and not found[-1].endswith("."):
            found[-1] += f" {line.strip()}"
        elif line.strip():
            found.append(line.strip())
    return found


def section(text: str, name: str) -> str:
    r"""Return a section of a docstring, without its heading and its indent.

    Args:
        text: The docstring, cleaned.
        name: The heading, such as ``"Args"``.

    Example:
        >>> section("Do.\n\nArgs:\n    x: A number.\n\nRaises:\n    ValueError: If not.", "Args")
        'x: A number.'
    """
    inside: list[str] | None = None
    for line in text.splitlines():
        if inside is None:
            inside = [] if line == f"{name}:" else None
        elif line and not line.startswith(" "):
            break
        else:
            inside.append(line)
    return textwrap.dedent("\n".join(inside or [])).strip()


def entries(text: str) -> dict[str, str]:
    r"""Return the entries ``NAME: TEXT`` of a section, each text in one line.

    Example:
        >>> entries("x: A number,\n    > 0.\ny: Another.")
        {'x': 'A number, > 0.', 'y': 'Another.'}
    """
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        start = re.match(r"\**(\w+)(?: \(.*?\))?: (.*)", line)
        if start:
            name = start.group(1)
            found[name] = start.group(2)
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found
