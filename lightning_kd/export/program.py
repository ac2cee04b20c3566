"""The student as a program of its own: a graph and its weights, for any batch size."""

import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from lightning_kd.capture.call import Call, describe_call
from lightning_kd.capture.example import Example, as_call, batch_size, on_cpu
from lightning_kd.capture.hooks import without_captures
from lightning_kd.capture.networks import copied, isolated_random_state, original
from lightning_kd.capture.private import tree_flatten_with_path, tree_map, tree_unflatten


def make_program(
    student: nn.Module, example: Example, *, dtype: torch.dtype | None = None, dynamic_batch: bool = True
) -> ExportedProgram:
    """Trace a copy of a student in eval mode, on the CPU and outside of autocast; the student does not change.

    Args:
        student: The module.
        example: Inputs to trace it with.
        dtype: Format of the weights, and of floating inputs; by default the student's.
        dynamic_batch: Whether the program takes any number of samples; those are counted by the first size of the
            example's first tensor.

    Returns:
        The program. What the student returns as an object of its own is a dictionary of its fields there. It names the
        part of the student that an operation comes from, but no file and no line of the source.

    Raises:
        ValueError: If the student does not take the example, or cannot be traced.
    """
    with _apart():
        net = standalone(student)
        if dtype is not None:
            net.to(dtype)
        call = on_cpu(as_call(example), dtype or _dtype_of(net))
        name, shown = type(original(student)).__name__, describe_call(Call(args=call.args, kwargs=call.kwargs))
        try:
            inputs = inspect.signature(net.forward).bind(*call.args, **call.kwargs).arguments
            output = net(*call.args, **call.kwargs)
        except Exception as error:
            raise ValueError(
                f"{name} does not take the example of {shown}; pass example=: a tensor, a tuple of positional "
                f"inputs or a dictionary of named ones. {error}"
            ) from error
        if not _is_plain(output):
            net = _PlainOutput(net)
        size = batch_size(call) if dynamic_batch else None
        sizes = tree_map(functools.partial(_dynamic, Dim("batch"), size), dict(inputs))
        try:
            program = torch.export.export(net, call.args, call.kwargs, dynamic_shapes=sizes, strict=False)
        except Exception as error:
            remedy = "pass dynamic_batch=False if its code fixes the number of samples. " if dynamic_batch else ""
            raise ValueError(f"{name} cannot be made a program with the example of {shown}; {remedy}{error}") from error
    _forget_source(program)
    return program


def onnx_bytes(program: ExportedProgram) -> bytes:
    """Translate a program to ONNX.

    Raises:
        ImportError: If onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError('Exporting to ONNX takes onnx and onnxscript: pip install "lightning_kd[onnx]"') from error
    names = _output_names(program)
    with _apart():
        translated = torch.onnx.export(program, output_names=names, dynamo=True, verbose=False)
    assert translated is not None, "dynamo returns a program"
    model = translated.model_proto
    _name_outputs(model.graph, names)
    _forget_notes(model)
    content: bytes = model.SerializeToString()
    return content


def standalone(student: nn.Module) -> nn.Module:
    """Copy a student to the CPU in eval mode, without compiled parts, gradients and what distillation put on it."""
    inner = original(student)
    # deepcopy refuses a tensor with a graph, which a student may have kept of its last step; copy its value
    kept: dict[int, Any] = {}
    for part in inner.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                kept[id(value)] = value.detach().clone()
    net = copied(inner, kept)
    for part in list(net.modules()):
        for name, child in part.named_children():
            if child is not original(child):
                setattr(part, name, original(child))
    without_captures(net)
    for tensor in (*net.parameters(), *net.buffers()):
        # a file would hold the whole storage of a tensor that is a view of a part of it
        if tensor.untyped_storage().nbytes() != tensor.nbytes or not tensor.is_contiguous():
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    net.requires_grad_(False)
    with suppress(NotImplementedError):  # what torch has exported stays in the mode that it was exported in
        net.eval()
    return net.cpu()


@contextmanager
def _apart() -> Iterator[None]:
    """Switch gradients and autocast off in the block, and restore random states after it."""
    with torch.no_grad(), isolated_random_state(), torch.autocast("cpu", enabled=False):
        yield


def _forget_source(program: ExportedProgram) -> None:
    """Take from a program what torch notes of its source: files, lines, and the Python modules of the classes.

    ``torch.export.unflatten`` needs the parts of the student, and torch's quantizers know torch's own classes by their
    whole names; both stay.
    """
    for graph in program.graph_module.modules():  # each branch of torch.cond is a graph of its own
        for node in graph.graph.nodes if isinstance(graph, GraphModule) else ():
            node.meta.pop("stack_trace", None)
            stack = node.meta.get("nn_module_stack", {})
            for key, (part, kind) in stack.items():
                stack[key] = (part, kind if kind.startswith("torch.") else kind.rpartition(".")[2])


def _forget_notes(message: Any) -> None:
    """Take all metadata and doc strings from an ONNX model; no runtime reads them.

    ``ClearMetadataAndDocStringPass`` of onnx_ir does so for graphs and nodes only, not for values and the model.
    """
    for name in ("doc_string", "metadata_props"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                _forget_notes(inner)


def _name_outputs(graph: Any, names: list[str]) -> None:
    """Name the outputs of an ONNX graph: torch 2.10 gives a value that is returned twice two names of its own."""
    renamed = {output.name: name for output, name in zip(graph.output, names, strict=True)}
    for value in (*graph.output, *graph.value_info):
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        for used in (node.input, node.output):
            used[:] = [renamed.get(name, name) for name in used]


class _PlainOutput(nn.Module):
    """Returns tensors, dictionaries and tuples where the student returns objects of other classes."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

        @functools.wraps(student.forward)  # torch.export names the program's inputs after this signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            return _plain(student(*args, **kwargs))

        self.forward = forward


def _is_plain(output: object) -> bool:
    if type(output) is dict:
        return all(_is_plain(value) for value in output.values())
    if type(output) in (list, tuple):
        return all(_is_plain(value) for value in output)  # type: ignore[attr-defined]
    return isinstance(output, Tensor)


def _plain(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        fields = dict(output)
    elif dataclasses.is_dataclass(output):
        fields = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    elif isinstance(output, tuple | list):
        return tuple(_plain(value) for value in output if value is not None)
    elif hasattr(output, "__dict__"):
        fields = vars(output)
    else:
        raise TypeError(f"The student returned a {type(output).__name__}; expected tensors, or an object of them.")
    return {name: _plain(value) for name, value in fields.items() if value is not None}


def _dynamic(batch: Dim, size: int | None, value: object) -> dict[int, Dim] | None:
    return {0: batch} if isinstance(value, Tensor) and value.ndim and len(value) == size else None


def _dtype_of(net: nn.Module) -> torch.dtype | None:
    """Return the one format of a student's floating weights, ``None`` if there are several."""
    found = {p.dtype for p in net.parameters() if p.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def _output_names(program: ExportedProgram) -> list[str]:
    """Name each output tensor by where it is: ``output``, ``output_1`` in a tuple, its key in a dictionary."""
    spec = program.call_spec.out_spec
    assert spec is not None, "a module returns something"
    found, _ = tree_flatten_with_path(tree_unflatten(range(spec.num_leaves), spec))
    names = ["_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in found]
    taken = set(program.graph_signature.user_inputs)
    named = [name if name[:1].isalpha() else f"output_{name}".removesuffix("_") for name in names]
    return [f"{name}_output" if name in taken else name for name in named]
