"""What is found, and what to do about it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that keeps a student from learning, or may.

    Args:
        name: Short name, such as ``"teacher near chance"``.
        problem: What was seen, in a sentence.
        remedy: What to do, in a sentence or two.
        is_sure: Whether it is seldom wrong, and so worth a warning; else it is a hint.
    """

    name: str
    problem: str
    remedy: str
    is_sure: bool = True

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}"
