"""The inputs of a decoder, made of the labels as an encoder-decoder of Hugging Face makes them itself."""

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_kd.capture.columns import TARGET_KEYS, makes_inputs_of, takes
from lightning_kd.capture.networks import original


class DecoderInputs:
    """Gives a network its decoder's inputs in the place of the labels, so that it computes no loss of whole logits.

    The hook does nothing unless it is told to.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.active = False
        self.network = original(network)
        self.key = next((key for key in TARGET_KEYS if makes_inputs_of(self.network, key)), None)
        self.make = None if self.key is None else _maker(self.network)
        self.handle: RemovableHandle | None = None
        if self.make is not None:
            self.handle = self.network.register_forward_pre_hook(self._hook, with_kwargs=True)

    def detach(self) -> None:
        """Take the hook off."""
        if self.handle is not None:
            self.handle.remove()
        self.handle = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecoderInputs":
        """Give a copy of the network a hook that does nothing."""
        return _silent()

    def __reduce__(self) -> Any:
        """Leave the network out of a file."""
        return _silent, ()

    def _hook(
        self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.active or self.key is None or self.make is None:
            return None
        labels = kwargs.get(self.key)
        if not isinstance(labels, Tensor):
            return None
        kept = {name: value for name, value in kwargs.items() if name != self.key}
        if kept.get("decoder_input_ids") is None and kept.get("decoder_inputs_embeds") is None:
            kept["decoder_input_ids"] = self.make(labels)
        if "use_cache" in takes(network):  # with labels some switch it off themselves
            kept.setdefault("use_cache", False)
        return args, kept


def _maker(network: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return what makes the decoder's inputs of labels: the network's own method, or the function that it calls."""
    base = getattr(network, "get_base_model", None)
    network = base() if callable(base) else network
    own: Callable[[Tensor], Tensor] | None = getattr(network, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own
    config: Any = getattr(network, "config", None)
    shift = getattr(sys.modules.get(type(network).__module__), "shift_tokens_right", None)
    if shift is None or config is None:
        return None
    return lambda labels: shift(labels, config.pad_token_id, config.decoder_start_token_id)


def _silent() -> DecoderInputs:
    return DecoderInputs(nn.Identity())
