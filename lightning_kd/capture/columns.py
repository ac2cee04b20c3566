"""Which inputs a network takes, and so which columns of a batch reach it."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, get_args
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lightning_kd.capture.call import Call
from lightning_kd.capture.networks import original
from lightning_kd.capture.rows import is_of_batch, leaves_of

TARGET_KEYS = ("target", "labels", "label", "y")
INDEX_KEYS = ("index", "idx")

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_UNKNOWN_ROWS = (
    "The teacher takes {} of the batch, which the student does not, but the student was called with other values than "
    "the batch holds, so the rows may not be the same. Override teacher_inputs(batch, args, kwargs) to return the "
    "teacher's own (args, kwargs)."
)


@dataclass(frozen=True)
class Takes:
    """What a network's ``forward`` takes.

    Args:
        positional: The names of its positional inputs, in order.
        named: The names that it can be called with.
        required: Those without a default.
        every: Whether it takes any other name too.
        endless: Whether it takes any number of positional inputs.
        known: Whether it tells; a program that does not is called as the student is.
    """

    positional: tuple[str, ...] = ()
    named: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    every: bool = True
    endless: bool = True
    known: bool = True

    def __contains__(self, name: object) -> bool:
        return self.every or name in self.named


_KNOWN: "WeakKeyDictionary[nn.Module, Takes]" = WeakKeyDictionary()


def takes(network: nn.Module) -> Takes:
    """Return what a network takes; a ``forward`` with ``**kwargs`` takes every name.

    Two kinds of ``**kwargs`` are told apart. Wrappers that hand a call on take what the network inside takes: adapters
    (``get_base_model``), and those that name the networks in ``called_alike``. The models of Hugging Face hand their
    ``**kwargs`` to their parts, which ignore unknown names, so they take what a part names.

    Args:
        network: The network; a compiled one is read through.

    Example:
        >>> "input" in takes(nn.Linear(2, 1)), "mask" in takes(nn.Linear(2, 1))
        (True, False)
    """
    network = original(network)
    found = _KNOWN.get(network)
    if found is None:
        found = _KNOWN[network] = _look(network)
    return found


def _look(network: nn.Module) -> Takes:
    own = _takes_of(network.forward)
    alike: Iterable[nn.Module] | None = getattr(network, "called_alike", None)
    base = getattr(network, "get_base_model", None)
    if alike is None and callable(base):
        alike = [base()]
    if alike is not None and own.every:
        inner = [takes(one) for one in alike if one is not network]
        if inner:
            named = own.named.union(*(one.named for one in inner))
            every = any(one.every for one in inner)
            return Takes(own.positional or inner[0].positional, named, own.required, every, own.endless)
    if own.every and is_of_transformers(network):
        inside = {type(part).forward for part in network.modules() if part is not network}
        named = own.named.union(*(_takes_of(forward, with_self=True).named for forward in inside))
        return Takes(own.positional, named, own.required, every=False, endless=own.endless)
    return own


def is_of_transformers(network: nn.Module) -> bool:
    """Whether a network is a model of Hugging Face's transformers, or adapters around one, by what its config tells."""
    return isinstance(getattr(getattr(original(network), "config", None), "model_type", None), str)


def _takes_of(forward: Callable[..., Any], *, with_self: bool = False) -> Takes:
    try:
        parameters = list(signature(forward).parameters.values())[with_self:]
    except (TypeError, ValueError):  # a trace of torch.jit tells nothing
        return Takes(known=False)
    named = {one.name for one in parameters if one.kind in _NAMED}
    rest = next((one for one in parameters if one.kind is Parameter.VAR_KEYWORD), None)
    if rest is not None:
        for declared in get_args(rest.annotation):  # Unpack[...] of a dictionary that declares its names
            named |= set(getattr(declared, "__annotations__", ()))
    return Takes(
        tuple(one.name for one in parameters if one.kind in _POSITIONAL),
        frozenset(named),
        frozenset(one.name for one in parameters if one.kind in _NAMED and one.default is Parameter.empty),
        rest is not None,
        any(one.kind is Parameter.VAR_POSITIONAL for one in parameters),
    )


def columns_of(batch: Any) -> Mapping[str, Any] | None:
    """Return the named columns of a batch, ``None`` if it has none.

    Example:
        >>> columns_of({"x": 1}), columns_of(({"x": 1}, 2)), columns_of((1, 2))
        ({'x': 1}, {'x': 1}, None)
    """
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    return batch if isinstance(batch, Mapping) and not isinstance(batch, Tensor) else None


def makes_inputs_of(network: nn.Module, key: str) -> bool:
    """Whether a network cannot do without the target: it asks for it, or makes the inputs of a decoder of it."""
    taken = takes(network)
    if key not in taken.named:
        return False
    return key in taken.required or any(name.startswith("decoder_input") for name in taken.named)


def of_student(named: dict[str, Any], student: nn.Module, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the named inputs that the student takes; of those that somebody else reads what its forward names."""
    taken = takes(student)
    if without:
        named = {name: value for name, value in named.items() if name not in without or name in taken.named}
    return named if taken.every else {name: value for name, value in named.items() if name in taken.named}


def of_teacher(
    batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any], student: nn.Module, teacher: nn.Module | None
) -> Inputs:
    """Return what the teacher is called with: what it takes of the student's call, and columns that only it takes.

    Args:
        batch: The batch as the data loader gave it.
        args: What the student was called with.
        kwargs: What the student was called with by name.
        student: The student.
        teacher: The teacher's network, ``None`` if none answers.

    Raises:
        ValueError: If the teacher needs a column whose rows may not be those of the student's call.

    Example:
        >>> class Teacher(nn.Module):
        ...     def forward(self, x, kind=None): ...
        >>> of_teacher({"x": 1, "kind": 2}, (), {"x": 1}, nn.Linear(1, 1), Teacher())
        ((), {'x': 1, 'kind': 2})
    """
    columns = columns_of(batch)
    if teacher is None or (columns is None and not kwargs and len(args) < 2):
        return args, kwargs
    teacher = original(teacher)
    taken, of_other = takes(teacher), takes(student)
    if not taken.known:
        return args, kwargs
    args, given = _by_name(args, taken, of_other)
    given |= {name: value for name, value in kwargs.items() if name in taken}
    bound = {*taken.positional[: len(args)], *given}
    more = {
        name: value
        for name, value in (columns or {}).items()
        if name in taken and name not in bound and name not in of_other.named and _is_input(name, value, taken)
    }
    if more:
        if not is_of_batch(Call(args=args, kwargs=kwargs), columns):
            raise ValueError(_UNKNOWN_ROWS.format(sorted(more)))
        given |= more
    return args, without_labels(given, columns, teacher)


def is_row_number(name: str, value: object) -> bool:
    """Whether a column holds the row of each sample; ``idx`` of several numbers a sample are the ids of tokens.

    Example:
        >>> import torch
        >>> is_row_number("idx", torch.zeros(2)), is_row_number("idx", torch.zeros(2, 7))
        (True, False)
    """
    return name in INDEX_KEYS and not (isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] > 1)


def _is_input(name: str, value: Any, taken: Takes) -> bool:
    """Whether a column that the student was not called with is an input: a tensor, and no target or row."""
    if name in (*TARGET_KEYS, *INDEX_KEYS):
        return name in taken.required
    return isinstance(value, Tensor) or name in taken.named


def _by_name(args: tuple[Any, ...], taken: Takes, of_other: Takes) -> Inputs:
    """Give positional inputs by the student's names from where the teacher has another order."""
    for i, mine in enumerate(of_other.positional[: len(args)]):
        if i < len(taken.positional):
            elsewhere = mine != taken.positional[i] and mine in taken.named
        else:
            elsewhere = mine in taken and not taken.endless
        if elsewhere:
            return args[:i], dict(zip(of_other.positional[i:], args[i:], strict=False))
    return args, {}


def told_other_names(args: tuple[Any, ...], student: nn.Module, teacher: nn.Module) -> str | None:
    """Return a sentence on inputs that the teacher takes under another name, ``None`` if there are none.

    The first input has as many names as there are authors; a second one of another name may mean something else.

    Args:
        args: What the student was called with, without names.
        student: The student.
        teacher: The teacher's network, which is called with the same.

    Example:
        >>> class Student(nn.Module):
        ...     def forward(self, x, noise): ...
        >>> class Teacher(nn.Module):
        ...     def forward(self, image, scale): ...
        >>> told_other_names((1, 2), Student(), Teacher())
        "The teacher Teacher gets the student's 'noise' as its 'scale'. If these are not the same, override ..."
    """
    teacher = original(teacher)
    taken, of_other = takes(teacher), takes(student)
    kept, _ = _by_name(args, taken, of_other)
    pairs = [*zip(of_other.positional, taken.positional, kept, strict=False)][1:]
    others = [f"{mine!r} as its {its!r}" for mine, its, _ in pairs if mine != its]
    if not others:
        return None
    return (
        f"The teacher {type(teacher).__name__} gets the student's {', '.join(others)}. If these are "
        "not the same, override teacher_inputs(batch, args, kwargs) to return the teacher's own."
    )


def without_labels(given: dict[str, Any], columns: Mapping[str, Any] | None, teacher: nn.Module) -> dict[str, Any]:
    """Leave out what makes a model of Hugging Face compute a loss; a decoder's inputs are made of the labels."""
    if not is_of_transformers(teacher):
        return given
    taken = takes(teacher)
    kept = {name: value for name, value in given.items() if not is_label(name) or name in taken.required}
    key = next((key for key in TARGET_KEYS if makes_inputs_of(teacher, key)), None)
    if key is None or any(name.startswith("decoder_input") for name in kept):
        return kept
    labels = given.get(key, None if columns is None else columns.get(key))
    if labels is None:
        return kept
    prepare = getattr(_inner(teacher), "prepare_decoder_input_ids_from_labels", None)
    if prepare is None:
        return {**kept, key: labels}
    return {**kept, "decoder_input_ids": prepare(labels)}


def _inner(network: nn.Module) -> nn.Module:
    base = getattr(network, "get_base_model", None)
    return base() if callable(base) else network


def is_label(name: str) -> bool:
    """Whether an input of a model of Hugging Face is a target, as its own Trainer tells."""
    return "label" in name or name in ("start_positions", "end_positions", "num_items_in_batch")


def unused_columns(
    batch: Any, networks: Iterable[nn.Module], read: Iterable[str] = (), *, own_step: bool = False
) -> str | None:
    """Return a sentence on the columns of a batch that no network takes, ``None`` if there are none.

    Args:
        batch: The batch.
        networks: The networks that are called with it.
        read: Columns that somebody else reads.
        own_step: Whether a step of the user's calls the student, which may give it a column by another name.

    Example:
        >>> unused_columns({"input": 1, "inputs": 2, "y": 3}, [nn.Linear(1, 1)])
        "No network takes the column(s) 'inputs' (did you mean 'input'?) of the batch, so they are left out."
    """
    taken = [takes(network) for network in networks]
    known = {name for one in taken for name in one.named}
    unused = [
        name
        for name in columns_of(batch) or {}
        if not any(name in one for one in taken) and name not in (*TARGET_KEYS, *INDEX_KEYS, *read)
    ]
    if not unused:
        return None
    told = []
    for name in unused:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.8)
        told.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    sentence = f"No network takes the column(s) {', '.join(told)} of the batch"
    return f"{sentence} by name; training_step may read them." if own_step else f"{sentence}, so they are left out."


def several_targets(batch: Any, networks: Iterable[nn.Module]) -> str | None:
    """Return a sentence on which of several columns of labels is read, ``None`` if there are not several.

    Args:
        batch: The batch.
        networks: The networks that are called with it; a column that one of them takes is its input.

    Example:
        >>> several_targets({"x": 1, "y": 2, "label": 3}, [nn.Linear(1, 1)])
        "The batch has labels under 'label' and 'y', of which 'label' is read; override unpack_batch to return ..."
    """
    taken = [takes(network) for network in networks]
    columns = columns_of(batch) or {}
    there = [name for name in TARGET_KEYS if name in columns]
    others = [name for name in there[1:] if not any(name in one for one in taken)]
    if not others:
        return None
    names = " and ".join(map(repr, (there[0], *others)))
    return (
        f"The batch has labels under {names}, of which {there[0]!r} is read; override unpack_batch to return "
        "lightning_kd.Batch(..., target=...) with another, or leave the others out of the batch."
    )


def target_that_is_input(args: Iterable[Any], kwargs: Mapping[str, Any], target: Any, index: Any) -> str | None:
    """Return a sentence if a step of the user's own gives the student what is read as the target of three entries.

    Of two entries the target may be an input too: a decoder that is told the right tokens, a network of each class.

    Args:
        args: The positional inputs that the student was called with.
        kwargs: The named ones.
        target: What is read as the target.
        index: What is read as the rows, ``None`` without a third entry.

    Example:
        >>> domain = object()
        >>> target_that_is_input([1, domain], {}, domain, 3)
        'The second entry of the batch is read as the target, and the third as the row of each sample. But the ...'
    """
    inputs = (*args, *(value for name, value in kwargs.items() if name not in TARGET_KEYS))
    if target is None or index is None or not any(one is target for one in inputs):
        return None
    return (
        "The second entry of the batch is read as the target, and the third as the row of each sample. But the student "
        "is called with the second. If the target is the third, override unpack_batch to return "
        "lightning_kd.Batch(args=..., target=...)."
    )


def check_embeddings(call: Call, batch: Any) -> None:
    """Raise a ``ValueError`` if a step of the user's own embeds the tokens itself, which the teacher would get too.

    Args:
        call: The student's recorded call.
        batch: The batch, which may hold embeddings that both networks are meant to read.
    """
    given = call.kwargs.get("inputs_embeds")
    if isinstance(given, Tensor) and not any(one is given for one in leaves_of(batch)):
        raise ValueError(
            "The step calls the student with inputs_embeds, which it makes itself, and the teacher would be called "
            "with the same: with what the student's embedding has made. Override teacher_inputs(batch, args, kwargs) "
            "of the callback to return what the teacher is called with, such as ((), {'input_ids': ...})."
        )


def is_own(method: Any) -> bool:
    """Whether a method of a door is the one that comes with it, not one that a user has written."""
    return str(getattr(inspect.unwrap(method), "__module__", "")).startswith("lightning_kd.")


def gives_as_is(door: Any) -> bool:
    """Whether a door gives the teacher what the student is called with, without an option or a method of the user's."""
    return is_own(door.teacher_inputs) and getattr(door, "teacher_view", None) is None
