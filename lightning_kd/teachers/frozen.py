"""The frozen teacher: in eval mode, without gradients, and invisible to checkpoints, optimizers and copies."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_kd.capture.call import Call
from lightning_kd.capture.hooks import Capture, is_hooked_by_others
from lightning_kd.capture.networks import device_of, is_compiled, original
from lightning_kd.capture.private import replace_tensors, tree_map_only
from lightning_kd.capture.store import EnoughError
from lightning_kd.distributed.whole_state import is_sharded, on_meta
from lightning_kd.files.precision import Precision, dtype_of
from lightning_kd.files.weights import load_weights, materialize
from lightning_kd.teachers.base import Lesson, Teacher

_GUARD = threading.Lock()
_LOCKS: WeakKeyDictionary[nn.Module, AbstractContextManager[object]] = WeakKeyDictionary()
"""A lock for each network that teaches. A lock cannot be copied or pickled, so no teacher keeps its own."""
_MARKS = ("is_quantized", "hf_quantizer", "is_loaded_in_4bit", "is_loaded_in_8bit")
"""Attributes by which transformers marks a network that is quantised."""

Weights = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def as_teacher(
    teacher: "nn.Module | Teacher | None",
    dtype: Precision | torch.dtype | None = None,
    weights: "Weights | None" = None,
) -> Teacher | None:
    """Return who answers: a network frozen, a teacher of another kind as it is, ``None`` as it is.

    Args:
        teacher: What the user gave.
        dtype: Format that a network computes in.
        weights: File or files of a network's weights.

    Raises:
        ValueError: If a format or files are given without a network on which they would have an effect.
    """
    if teacher is None and weights is not None:
        raise ValueError(
            "teacher_weights are of a network, but there is no teacher=; leave them out. A callback such as EMATeacher "
            "makes the teacher of the student."
        )
    if isinstance(teacher, Teacher):
        if dtype is not None or weights is not None:
            raise ValueError(
                "teacher_dtype and teacher_weights are of a network, and have no effect on a "
                f"{type(teacher).__name__}; leave them out."
            )
        return teacher
    return None if teacher is None else FrozenTeacher(teacher, dtype, weights)


def check_not_lazy(module: nn.Module) -> None:
    """Raise a ``ValueError`` with the remedy if a teacher has parameters whose sizes it would learn from a batch."""
    lazy = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise ValueError(
            f"The teacher {type(module).__name__} has lazy layers that have no weights yet: {lazy[0]!r} and "
            f"{len(lazy) - 1} more. Call it once on a batch, load its weights, and give it then."
        )


def refuses_to_move(module: nn.Module) -> bool:
    """Whether a network must stay where it is and as it is: it is quantised, is placed on devices, or refuses ``.to``.

    Args:
        module: The network.
    """
    network = original(module)
    places = getattr(network, "hf_device_map", None)  # of accelerate, which spreads a network over devices
    spread = isinstance(places, dict) and len(set(map(str, places.values()))) > 1
    if spread or any(getattr(network, name, None) for name in _MARKS):
        return True
    if type(network).to is nn.Module.to and "to" not in vars(network):
        return False
    try:
        network.to(device_of(network))
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, TypeError, NotImplementedError):
        return True
    return False


class FrozenTeacher(Teacher):
    """Holds a teacher outside the module registry, frozen and in eval mode.

    Because the holder is a plain object, the module that owns it neither saves, optimizes, broadcasts nor averages
    the teacher, and ``train()`` or ``unfreeze()`` on the owner do not reach it. Copies of the holder share the
    teacher.

    Args:
        module: The teacher; its parameters stop requiring gradients here.
        dtype: Format that the teacher computes in, by name or of torch; by default what its owner is converted to.
        weights: File or files of the teacher's weights, which are read at set-up.

    Example:
        >>> teacher = FrozenTeacher(nn.Linear(2, 1))
        >>> teacher(torch.ones(1, 2)).requires_grad, teacher.module.training
        (False, False)
    """

    def __init__(
        self, module: nn.Module, dtype: Precision | torch.dtype | None = None, weights: Weights | None = None
    ) -> None:
        check_not_lazy(module)
        self.module: nn.Module = module.requires_grad_(False)
        self.module.eval()  # which returns nothing where torchao has written it
        self.dtype = dtype_of(dtype)
        self.weights = weights
        self._weights_read = weights is None
        self._told_of_draws = False
        self.stays = refuses_to_move(module)
        """Whether it stays on its device and in its format, as a quantised or a placed network must."""
        if self.stays and dtype is not None:
            raise ValueError(
                f"teacher_dtype cannot change the format of the teacher {type(original(module)).__name__}, which is "
                "quantised or placed already; leave it out."
            )
        if self.stays and isinstance(own := getattr(original(module), "dtype", None), torch.dtype):
            self.dtype = own if own.is_floating_point else None
        self.changes = False
        """Whether its weights change in a fit, as those of a teacher that is made of the student."""
        self._may_stop = False
        """Whether a call may end once all layers have run that the losses read."""
        self._parts = tuple(module.modules())
        self.capture = Capture(module, (), "teacher", with_call=False)
        if self.dtype is not None and not self.stays:
            self.module.to(self.dtype)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the teacher without gradients; floating inputs are cast if it has a format of its own."""
        if self._parts[0] is not self.module:
            self._parts = tuple(self.module.modules())
        for part in self._parts:  # whoever sets only a part to train would let it draw, or change its statistics
            if part.training:
                self.module.eval()
                break
        if self.dtype is not None:
            args, kwargs = tree_map_only(Tensor, self._cast, (args, kwargs))
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def answer(self, batch: Any, call: Call) -> Call:
        """Run the teacher on what a call holds, and return what it and its watched layers gave."""
        answer = self._run(call)
        self.capture.check_ran(answer)
        self.capture.check_unchanged(answer, with_output=False)
        return answer

    def first_answer(self, batch: Any, call: Call) -> Call:
        """Run the teacher at set-up, where its layers may not be watched yet; warn if it draws random numbers."""
        before = torch.get_rng_state()
        answer = self._run(call)
        if not self._told_of_draws and not torch.equal(before, torch.get_rng_state()):
            self._told_of_draws = True
            rank_zero_warn(
                f"The teacher {type(original(self.module)).__name__} draws random numbers in eval mode, so it gives "
                "another answer each time; write F.dropout(x, p, training=self.training), or nn.Dropout."
            )
        return answer

    def check_first_answer(self, lesson: Lesson) -> None:
        """Learn which layers are overwritten in place, to copy their values from then on."""
        assert isinstance(lesson, Call), "our own answer"
        self.capture.check_ran(lesson)
        self.capture.copy_changed(lesson)
        # a graph has no place to stop at, and whoever splits, places or watches a network waits for the end of its call
        whole = is_compiled(self.module) or is_sharded(self.module) or self.stays or is_hooked_by_others(self.module)
        self._may_stop = bool(lesson.features) and not lesson.attended and not whole

    def _run(self, call: Call) -> Call:
        output = None
        layers_only = call.layers_only and self._may_stop
        with self.alone(), self.capture.recording(layers_only=layers_only) as answer, suppress(EnoughError):
            output = self(*call.args, **call.kwargs)
        answer.called, answer.args, answer.kwargs, answer.output = True, call.args, call.kwargs, output
        return answer

    def alone(self) -> AbstractContextManager[object]:
        """Hold the lock of the network, on whose layers the hooks of fits in several threads may hang."""
        lock = _LOCKS.get(self.module)
        if lock is not None:
            return lock
        with _GUARD:
            return _LOCKS.setdefault(self.module, threading.RLock())

    def watch(self, layers: Iterable[str]) -> None:
        """Learn which layers the losses read."""
        self.capture.detach()
        self.capture = Capture(self.module, layers, "teacher", with_call=False)

    def attach(self) -> None:
        """Put the hooks on the layers, of the module that is the teacher by now."""
        self.capture.module = self.module
        self.capture.attach()

    def detach(self) -> None:
        """Take the hooks off the layers."""
        self.capture.detach()

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the owner's move to a device or format, but keep the teacher's own format if it has one."""
        if self.on_meta or self.stays:  # there is nothing to move before the weights are read
            return
        with self.telling_of_rounding():
            replace_tensors(self.module, fn if self.dtype is None else lambda t: fn(t).to(t.dtype))

    @contextmanager
    def telling_of_rounding(self) -> Iterator[None]:
        """Say if the block rounds the teacher's weights to a smaller format, in which they stay."""
        before = _floats(self.module)
        yield
        after = _floats(self.module)
        if before is not None and after is not None and after.itemsize < before.itemsize:
            rank_zero_info(
                f"The teacher's weights are rounded from {before} to {after}, as the student's are, and stay so after "
                "the fit. A copy of the network, copy.deepcopy(teacher), keeps yours (distill takes one itself). "
                "teacher_dtype='float32' teaches with them as they are."
            )

    @property
    def on_meta(self) -> bool:
        """Whether the teacher was built on the meta device and has no weights yet."""
        return on_meta(self.module)

    def place(self, device: torch.device) -> None:
        """Bring the teacher to a device, unless there are no weights to move, or they would be lost."""
        if device.type != "meta" and not self.on_meta and not self.stays:
            self.module.to(device)

    def read_weights(self) -> None:
        """Read the weights out of the files that were named, once; one on the meta device gets them later.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the files do not hold exactly the teacher's weights.
        """
        if self._weights_read or self.weights is None or self.on_meta:
            return
        load_weights(self.module, self.weights)
        self._weights_read = True

    def materialize(self, device: torch.device) -> None:
        """Give a teacher its weights; nothing happens if it has them.

        Raises:
            ValueError: If it is on the meta device and no file is named, or the files do not hold exactly the teacher's
                weights.
        """
        if not self.on_meta:
            self.read_weights()
            return
        if self.weights is None:
            raise ValueError(
                f"The teacher {type(self.module).__name__} is on the meta device, so it has no weights; pass "
                "teacher_weights=... (its .safetensors files), or build it with its weights."
            )
        materialize(self.module, self.weights, device)
        self._weights_read = True

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def _floats(network: nn.Module) -> torch.dtype | None:
    return next((one.dtype for one in network.parameters() if one.is_floating_point()), None)
