"""What a command prints of one of several students."""


def of_student(name: str, text: str) -> str:
    """Return a text below the name of its student.

    Args:
        name: The name; empty where there is one student, whose text needs none.
        text: What is said of the student.

    Example:
        >>> print(of_student("tiny", "1 parameter"))
        Student 'tiny'
        <BLANKLINE>
        1 parameter
    """
    return f"Student {name!r}\n\n{text}" if name else text
