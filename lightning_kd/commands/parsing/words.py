"""The words of a command as options and their values."""

from collections.abc import Iterator, Sequence

from lightning_kd.commands.parsing import yaml_text


def pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option with its value, which stands in the same word or in the next; a flag takes the next word too.

    Args:
        words: The words of a command.

    Example:
        >>> list(pairs(["fit", "-c", "a.yaml", "--trainer.max_epochs=2"]))
        [('-c', 'a.yaml'), ('--trainer.max_epochs', '2')]
    """
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if word.startswith("-c") and word != "-c":
            yield "-c", word[2:].removeprefix("=")
        elif word.startswith("-"):
            yield option, value if equals else next(rest, "")


def check_values(words: Sequence[str]) -> None:
    """Refuse lists and mappings that cannot be meant, which the parser would take for plain text.

    Args:
        words: The words of a command.

    Raises:
        ValueError: If a value has a key twice, or is refused for another reason of :func:`yaml_text.load`.
    """
    for option, value in pairs(words):
        if value.startswith(("{", "[")):
            try:
                yaml_text.load(value)
            except yaml_text.NotYamlError:
                continue  # it may be text
            except yaml_text.UnusableError as error:
                raise ValueError(f"{option}: {error}") from None
