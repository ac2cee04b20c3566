"""Models of Hugging Face by folder or configuration, for a line of code or a configuration file."""

import os
from importlib import import_module
from typing import Any, Literal, get_args

from torch import nn

Task = Literal[
    "causal_lm", "masked_lm", "seq2seq", "classification", "image_classification", "token_classification", "features"
]

_CLASSES: dict[str, str] = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
    "image_classification": "AutoModelForImageClassification",
    "token_classification": "AutoModelForTokenClassification",
    "features": "AutoModel",
}


def from_pretrained(
    folder: str | os.PathLike[str],
    task: Task = "causal_lm",
    *,
    dtype: str | None = None,
    new_weights: bool = False,
    **options: Any,
) -> nn.Module:
    """Load a model that ``save_pretrained`` has written.

    Only the classes of transformers are made, never code of the folder. In a configuration file:

    .. code-block:: yaml

        teacher:
          class_path: lightning_kd.hf.from_pretrained
          init_args: {folder: runs/teacher, task: masked_lm}

    Args:
        folder: The folder, or a name on the hub.
        task: What the model is for: ``causal_lm``, ``masked_lm``, ``seq2seq`` (of texts or speech),
            ``classification`` (of texts, or of images where the folder holds a model of images),
            ``image_classification``, ``token_classification``, or ``features`` for the network without a head, as
            encoders of sentences are made of.
        dtype: Format of the weights by name, such as ``float32``; by default that of the file.
        new_weights: Whether weights that the folder does not hold, such as a new head, may be drawn at random.
        **options: Passed on, such as ``num_labels`` or ``attn_implementation``.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If the task is unknown, or the folder does not hold all weights, or holds others.

    Example:
        >>> from_pretrained("runs/teacher", task="translation")
        Traceback (most recent call last):
        ...
        ValueError: from_pretrained: expected task to be one of ['causal_lm', ...], got 'translation'.
    """
    _check_task("from_pretrained", task)
    transformers = import_transformers()
    options = {"trust_remote_code": False, **options}
    if dtype is not None:
        options["dtype"] = dtype
    made, told = _auto(transformers, task, str(folder)).from_pretrained(folder, output_loading_info=True, **options)
    missing, other = sorted(told["missing_keys"]), sorted(map(str, told["mismatched_keys"]))
    if (missing or other) and not new_weights:
        raise ValueError(
            f"{folder} holds no weights for {_few(missing + other)} of {type(made).__name__}, which would be drawn at "
            "random. Name the task that the model was trained for, or pass new_weights=True for a head that is to be "
            "trained."
        )
    assert isinstance(made, nn.Module)
    return made


def from_config(config: dict[str, Any] | str | os.PathLike[str], task: Task = "causal_lm", **options: Any) -> nn.Module:
    """Make a model with random weights of a configuration.

    Args:
        config: A folder or file with ``config.json``, or its entries, of which ``model_type`` names the architecture.
        task: What the model is for, see :func:`from_pretrained`.
        **options: Entries that take the place of those of the configuration.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If the task is unknown, or the entries name no ``model_type``.
    """
    _check_task("from_config", task)
    transformers = import_transformers()
    if isinstance(config, dict):
        entries = {**config, **options}
        if "model_type" not in entries:
            raise ValueError("from_config: the configuration names no model_type, such as 'bert' or 'llama'.")
        made = transformers.AutoConfig.for_model(**entries)
    else:
        made = transformers.AutoConfig.from_pretrained(config, trust_remote_code=False, **options)
    if made.architectures is None:  # transformers 5 goes through the names where it knows several classes of a task
        made.architectures = []
    network = _auto(transformers, task, made).from_config(made, trust_remote_code=False)
    assert isinstance(network, nn.Module)
    return network


def import_transformers() -> Any:
    """Import transformers, or raise an ``ImportError`` that names the extra."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ImportError("lightning_kd.hf needs transformers: pip install 'lightning_kd[hf]'.") from error


def _check_task(function: str, task: str) -> None:
    if task not in get_args(Task):
        raise ValueError(f"{function}: expected task to be one of {list(get_args(Task))}, got {task!r}.")


def _auto(transformers: Any, task: str, config: Any) -> Any:
    """Return the class that makes a model for a task; what is classified or read may be images or speech."""
    if task in ("classification", "seq2seq") and isinstance(config, str):
        config = transformers.AutoConfig.from_pretrained(config, trust_remote_code=False)
    if task == "seq2seq":
        of_speech = transformers.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
        if type(config) in of_speech and type(config) not in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
            return transformers.AutoModelForSpeechSeq2Seq
    if task == "classification":
        of_texts = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        if type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and type(config) not in of_texts:
            return transformers.AutoModelForImageClassification
    return getattr(transformers, _CLASSES[task])


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
