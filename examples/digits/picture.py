"""Draw what distillation is, on a digit, and what it gained: the picture of the README, as SVG.

Run from the repository's root: python examples/digits/picture.py

The accuracies are those of the first table in the README beside this file; digit and answers are the teacher's own.
"""

import re
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from lightning_kd.data import DigitsConvNet, DigitsDataModule
from lightning_kd.teachers import from_checkpoint

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1000, 400
INK, PALE, LINE, TEACHER, STUDENT = "#1f2933", "#6b7785", "#c3cad2", "#2563a8", "#c2570c"
SHOWN = 376
"""Row of the held-out half: a nine of which the teacher says that it is also a little like a four and a seven."""
TEMPERATURE = 4.0


def text(
    x: float, y: float, words: str, size: int = 13, color: str = INK, anchor: str = "start", style: str = ""
) -> str:
    """One line of text; ``style`` holds further attributes."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}" {style}>{words}</text>'


def code(x: float, y: float, words: str, color: str = INK, anchor: str = "start") -> str:
    """The name of a class."""
    return text(x, y, words, 13, color, anchor, 'font-family="ui-monospace, Menlo, Consolas, monospace"')


def box(x: float, y: float, width: float, height: float, color: str) -> str:
    """A rounded frame."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="9" fill="{color}" fill-opacity="0.09" '
        f'stroke="{color}" stroke-width="1.6"/>'
    )


def arrow(*points: tuple[float, float], color: str = PALE, dashed: bool = False) -> str:
    """A line through the points with a head at its end."""
    path = " L ".join(f"{x:g} {y:g}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    mark = color.lstrip("#")
    return f'<path d="M {path}" fill="none" stroke="{color}" stroke-width="1.6"{dashes} marker-end="url(#{mark})"/>'


def heads(*colors: str) -> str:
    """The heads of the arrows, one for each color."""
    shape = '<path d="M 0 0 L 8 4 L 0 8 z"'
    size = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"'
    marks = [f'<marker id="{color.lstrip("#")}" {size}>{shape} fill="{color}"/></marker>' for color in colors]
    return f"<defs>{''.join(marks)}</defs>"


def image(x: float, y: float, pixels: Tensor, cell: float) -> list[str]:
    """A digit, dark on light, pixel by pixel."""
    squares = []
    for row, line in enumerate(pixels.tolist()):
        for column, value in enumerate(line):
            grey = round(255 - 225 * value)
            at = f'x="{x + column * cell:g}" y="{y + row * cell:g}" width="{cell:g}" height="{cell:g}"'
            squares.append(f'<rect {at} fill="rgb({grey},{grey},{grey})"/>')
    side = 8 * cell
    frame = f'<rect x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" fill="none" stroke="{PALE}"/>'
    return [*squares, frame]


def bars(x: float, y: float, percents: list[int], height: float, color: str) -> list[str]:
    """One bar a class on the line y, with its percents if it is one of the three largest."""
    step, width = 19, 13
    told = sorted(percents)[-3:]
    parts = [f'<path d="M {x - 4:g} {y:g} h {step * 10:g}" stroke="{LINE}"/>']
    for digit, percent in enumerate(percents):
        left, tall = x + digit * step, height * percent / max(percents)
        parts.append(f'<rect x="{left:g}" y="{y - tall:g}" width="{width}" height="{tall:g}" fill="{color}"/>')
        parts.append(text(left + width / 2, y + 13, str(digit), 11, PALE, "middle"))
        if percent in told and percent:
            parts.append(text(left + width / 2, y - tall - 4, f"{percent}", 10, color, "middle"))
    return parts


def idea(pixels: Tensor, label: int, percents: list[int], sizes: dict[str, int]) -> list[str]:
    """The left half: one image, two networks, and the three losses."""
    answers = 376
    return [
        text(24, 34, "The student learns from the teacher&#8217;s answers", 16, INK, style='font-weight="600"'),
        *image(24, 158, pixels, 13),
        arrow((130, 198), (148, 198), (148, 112), (172, 112)),
        arrow((130, 222), (148, 222), (148, 247), (184, 247)),
        box(174, 66, 156, 92, TEACHER),
        text(252, 98, "teacher", 16, TEACHER, "middle", 'font-weight="600"'),
        text(252, 120, f"{sizes['teacher']:,} parameters", 12, INK, "middle"),
        text(252, 140, "already trained, frozen", 11, PALE, "middle"),
        box(186, 217, 132, 60, STUDENT),
        text(252, 243, "student", 16, STUDENT, "middle", 'font-weight="600"'),
        text(252, 263, f"{sizes['student']:,} parameters", 11, INK, "middle"),
        arrow((252, 160), (252, 214), color=TEACHER, dashed=True),
        code(262, 184, "HintLoss", TEACHER),
        text(262, 201, "be like its layers", 11, PALE),
        arrow((332, 112), (answers - 12, 112)),
        arrow((320, 247), (answers - 8, 247)),
        text(answers - 4, 68, "its answer (%), softened", 12, INK),
        *bars(answers, 136, percents, 44, TEACHER),
        box(answers - 4, 230, 190, 34, STUDENT),
        text(answers + 91, 252, "the student&#8217;s answer", 13, INK, "middle"),
        arrow((answers + 91, 156), (answers + 91, 227), color=TEACHER, dashed=True),
        code(answers + 101, 186, "KDLoss", TEACHER),
        text(answers + 101, 203, "be like the teacher", 11, PALE),
        *bars(answers, 366, [100 * (digit == label) for digit in range(10)], 24, PALE),
        text(answers + 126, 362, "the label", 12, INK, "end"),
        arrow((answers + 91, 336), (answers + 91, 267), color=PALE, dashed=True),
        code(answers + 101, 296, "task_loss", PALE),
        text(answers + 101, 313, "be like the label", 11, PALE),
    ]


def gain(table: list[list[str]], teacher: float) -> list[str]:
    """The right half: the table, its intervals as lines."""
    left, right, low, high = 694, 880, 78.0, 100.0

    def at(percent: float) -> float:
        return round(left + (right - left) * (percent - low) / (high - low), 1)

    parts = [text(618, 34, "Here it pays where labels are few", 16, INK, style='font-weight="600"')]
    parts.append(f'<path d="M {at(teacher):g} 76 V 356" stroke="{TEACHER}" stroke-dasharray="2 3"/>')
    parts.append(text(at(teacher), 68, f"teacher {teacher:.1f}", 11, TEACHER, "middle"))
    for group, (name, column) in enumerate([("5 labels a class", 3), ("all labels", 1)]):
        top = 92 + group * 142
        parts.append(text(618, top, name, 13, INK, style='font-weight="600"'))
        for row, cells in enumerate(table):
            mean, spread = map(float, cells[column].split(" ± "))
            y, color = top + 26 + 24 * row, PALE if row == 0 else STUDENT
            ends = f"M {at(mean - spread):g} {y:g} H {at(mean + spread):g}"
            parts.append(text(618, y + 4, cells[0], 12, INK))
            parts.append(f'<path d="{ends}" stroke="{color}" stroke-width="2.4"/>')
            parts.append(f'<circle cx="{at(mean):g}" cy="{y:g}" r="4.6" fill="{color}"/>')
            parts.append(text(976, y + 4, cells[column], 12, INK, "end"))
    parts.append(text(618, 378, "accuracy (%) on held-out digits: mean, 95 % interval", 11, PALE))
    return parts


def read_table() -> list[list[str]]:
    """Return the rows of the first table of accuracies in the README beside this file."""
    lines = (HERE / "README.md").read_text().splitlines()
    rows = [line for line in lines if re.match(r"\| (no teacher|KD|hint|KD \+ hint) \|", line)]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[:4]]


def draw() -> str:
    """Return the picture."""
    data = DigitsDataModule()
    data.setup()
    images, labels = data.held_out_set.tensors[:2]
    student = DigitsConvNet(width=6)
    teacher = from_checkpoint(DigitsConvNet(width=32, depth=2), HERE / "teacher.safetensors").eval()
    with torch.no_grad():
        logits = teacher(images)
    softened = (logits[SHOWN] / TEMPERATURE).softmax(0)
    percents = [round(100 * p) for p in softened.tolist()]
    accuracy = 100 * (logits.argmax(1) == labels).double().mean().item()
    parts = [
        heads(PALE, TEACHER),
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12" fill="white" stroke="{LINE}"/>',
        f'<path d="M 592 24 V {HEIGHT - 24}" stroke="{LINE}"/>',
        *idea(images[SHOWN, 0], int(labels[SHOWN]), percents, {"teacher": size(teacher), "student": size(student)}),
        *gain(read_table(), accuracy),
    ]
    fonts = 'font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return "\n".join([f"{head} {fonts}>", *parts, "</svg>", ""])


def size(network: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def main(output: Path = HERE / "picture.svg") -> None:
    """Write the picture.

    Args:
        output: File to write.
    """
    output.write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
