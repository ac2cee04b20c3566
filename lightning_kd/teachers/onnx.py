"""A teacher that is an ONNX file, run by ONNX Runtime."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from lightning_kd.capture.call import Call
from lightning_kd.teachers.outside import OutsideTeacher

_FORMATS = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}


@final
class OnnxTeacher(OutsideTeacher):
    """Asks a network in an ONNX file, of whichever framework it comes, for its logits.

    The student's positional inputs are the file's, in order; named ones are found by name, and what the file does not
    take is left out. Inputs are brought to the format that the file names, and the answer to the student's device. The
    program runs on the CPU by default. Its inputs go through the memory of the CPU in any case.

    Args:
        path: The file.
        output: Name of the output that holds the logits; by default ``"logits"``, or the only one.
        providers: Where ONNX Runtime computes, in order of preference.
        threads: Number of threads of the CPU; by default ONNX Runtime's choice.

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If ONNX Runtime is not installed; names the extra.
        ValueError: If the file has no such output, or several and none is named; at set-up, if a loss reads a layer of
            the teacher; in a call, if an input is missing, the file was exported for another number of samples, or the
            logits do not fit.

    Example:
        >>> teacher = OnnxTeacher("teacher.onnx")  # doctest: +SKIP
        >>> teacher.answer(None, Call(args=(torch.ones(2, 3),))).output.shape  # doctest: +SKIP
        torch.Size([2, 10])
    """

    owner: ClassVar[str] = "OnnxTeacher"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        output: str | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.providers = list(providers)
        self.threads = threads
        if not self.path.is_file():
            raise FileNotFoundError(f"OnnxTeacher: there is no file {str(self.path)!r}.")
        self._session: Any = None
        names = [one.name for one in self.session.get_outputs()]
        if output is None:
            output = "logits" if "logits" in names else names[0] if len(names) == 1 else None
        if output not in names:
            raise ValueError(f"OnnxTeacher: {self.path.name} has the outputs {names}; name the logits: output=...")
        self.output = output

    @property
    def session(self) -> Any:
        """The program, which is opened when it is first needed in a process."""
        if self._session is None:
            try:
                import onnxruntime
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    'OnnxTeacher needs ONNX Runtime: pip install "lightning_kd[onnx]", or pip install onnxruntime.'
                ) from error
            options = onnxruntime.SessionOptions()
            if self.threads is not None:
                options.intra_op_num_threads = self.threads
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers=self.providers)
        return self._session

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_session": None}  # a program cannot be sent to another process

    def logits(self, batch: Any, call: Call) -> Any:
        """Return the output of the program."""
        inputs = self.session.get_inputs()
        named = dict(zip((one.name for one in inputs), call.args, strict=False)) | call.kwargs
        if len(call.args) > len(inputs):
            raise ValueError(
                f"OnnxTeacher: {self.path.name} takes {len(inputs)} input(s), but {len(call.args)} are given; see "
                "teacher_inputs."
            )
        feeds = {}
        for one in inputs:
            value = named.get(one.name)
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"OnnxTeacher: {self.path.name} takes the input {one.name!r}, which is no tensor of the call; it "
                    f"has {sorted(named)}. Rename inputs by teacher_inputs=Keys(rename={{...}})."
                )
            first = one.shape[0] if one.shape else None
            if isinstance(first, int) and first != len(value):
                raise ValueError(
                    f"OnnxTeacher: {self.path.name} was exported for {first} sample(s) at a time, but is given "
                    f"{len(value)}; export it with a dynamic first axis."
                )
            if one.type not in _FORMATS:
                raise ValueError(f"OnnxTeacher: {self.path.name} takes {one.name!r} as {one.type}, which is not known.")
            feeds[one.name] = value.detach().to("cpu", _FORMATS[one.type]).numpy()
        return self.session.run([self.output], feeds)[0]
