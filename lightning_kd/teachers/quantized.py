"""A teacher whose linear layers compute in whole numbers of eight bits."""

import warnings
from typing import Any, final

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_kd.capture.batch import logits_of
from lightning_kd.capture.call import Call
from lightning_kd.capture.networks import undisturbed
from lightning_kd.capture.private import tree_map_only
from lightning_kd.teachers.frozen import FrozenTeacher, check_not_lazy


@final
class QuantizedTeacher(FrozenTeacher):
    r"""Answers with a copy of a network whose ``Linear`` layers are quantised to int8: a cheaper teacher on the CPU.

    Torch's dynamic quantisation (``torch.ao.quantization.quantize_dynamic``): weights are kept in int8, inputs of a
    layer are quantised by their range in the batch. All other layers stay in float32. At set-up both networks answer
    the first samples, and the distance of the quantised one is told and kept: :math:`\|q - f\| / \|f\|` of the logits,
    and the share of equal first classes. The layers have their names, and losses may read them.

    It pays where linear layers take most of the time, as in transformers. It runs on the CPU only.

    Args:
        network: The network, which stays as it is; let go after set-up.

    Attributes:
        distance: Relative distance of the logits on the first samples, ``None`` before set-up or without logits.
        agreement: Share of samples, pixels or tokens with the same first class there.

    Raises:
        ValueError: If the network has no ``Linear`` layer, or is not on the CPU and in float32; when the fit begins, if
            the student is on another device.
        ModuleNotFoundError: If this version of torch has no dynamic quantisation any more.

    Example:
        >>> teacher = QuantizedTeacher(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        >>> _ = teacher.first_answer(None, Call(args=(torch.ones(2, 4),)))
        >>> 0.0 <= teacher.distance < 0.1
        True
    """

    def __init__(self, network: nn.Module) -> None:
        check_not_lazy(network)
        devices = sorted({tensor.device.type for tensor in (*network.parameters(), *network.buffers())} - {"cpu"})
        if devices:
            raise ValueError(
                f"QuantizedTeacher runs on the CPU, but the network {type(network).__name__} is on {devices}; give it "
                "network.cpu()."
            )
        formats = {tensor.dtype for tensor in network.parameters() if tensor.is_floating_point()} - {torch.float32}
        if formats:
            raise ValueError(
                f"QuantizedTeacher quantises weights of float32, but {type(network).__name__} has "
                f"{sorted(map(str, formats))}; give it copy.deepcopy(network).float()."
            )
        if not any(type(part) is nn.Linear for part in network.modules()):
            raise ValueError(
                f"QuantizedTeacher quantises Linear layers, of which {type(network).__name__} has none; give the "
                "network itself as the teacher."
            )
        super().__init__(_quantised(network))
        self.stays = True
        self.dtype = torch.float32  # the layers take no other format
        self.distance: float | None = None
        self.agreement: float | None = None
        self._float: nn.Module | None = network

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the quantised network, outside of autocast, whose formats its layers do not take."""
        with torch.autocast("cpu", enabled=False):
            return super().__call__(*args, **kwargs)

    def first_answer(self, batch: Any, call: Call) -> Call:
        """Answer at set-up, and tell how far the quantised network is from the other one."""
        answer = super().first_answer(batch, call)
        network, self._float = self._float, None
        if network is not None:
            self._compare(network, answer)
        return answer

    def place(self, device: torch.device) -> None:
        """Stay on the CPU.

        Raises:
            ValueError: If the student is on another device.
        """
        if device.type not in ("cpu", "meta"):
            raise ValueError(
                f"QuantizedTeacher runs on the CPU, but the student is on {device.type}. Give the network itself as "
                "the teacher, with teacher_dtype='bfloat16' for a cheaper one, or train with accelerator='cpu'."
            )

    def _compare(self, network: nn.Module, answer: Call) -> None:
        args, kwargs = tree_map_only(Tensor, self._cast, (answer.args, answer.kwargs))
        with undisturbed(network), torch.autocast("cpu", enabled=False):
            exact = logits_of(network(*args, **kwargs))
        found = logits_of(answer.output)
        if exact is None or found is None:
            return
        exact, found = exact.double(), found.double()
        axis = 2 if exact.ndim == 3 else min(1, exact.ndim - 1)
        self.distance = float((found - exact).norm() / exact.norm().clamp_min(1e-30))
        single = exact.ndim < 2 or exact.shape[axis] == 1
        same = (exact > 0) == (found > 0) if single else exact.argmax(axis) == found.argmax(axis)
        self.agreement = float(same.double().mean())
        rank_zero_info(
            f"The quantised teacher is {self.distance:.2%} from the teacher {type(network).__name__} on the first "
            f"samples (relative distance of the logits), with the same first class in {self.agreement:.1%}."
        )


def _quantised(network: nn.Module) -> nn.Module:
    try:
        from torch.ao.quantization import quantize_dynamic
    except ImportError as error:
        raise ModuleNotFoundError(
            f"QuantizedTeacher needs torch.ao.quantization, which torch {torch.__version__} has no more."
        ) from error
    with warnings.catch_warnings():  # 2026-11: torch 2.10 to 2.14 say that it will be removed
        warnings.simplefilter("ignore")
        made: nn.Module = quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
    return made
