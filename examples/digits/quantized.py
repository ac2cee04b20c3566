"""A student that is trained to be quantised (QAT), without and with a teacher: its int8 file beside the float network.

    pip install "lightning_kd[examples,quantization,onnx]"
    python examples/digits/quantized.py --seeds 3

Four fits a seed, of equal steps: the float student and the QAT student, each alone and taught by class probabilities.
Each QAT student is converted by torchao and written as an ONNX file with int8 weights, whose accuracy ONNX Runtime
measures. Beside them stand the float students, and these quantised after training, without QAT. A seed takes about a
minute of one core, of which a third is conversion. Run from the repository's root.

For a student of your own: when torchao 0.18 puts it in eval mode and back, each dropout has a probability of 0.5 from
then on, and each BatchNorm a momentum of 0.1. Lightning does so at every validation. Export it without dropout.
"""

from functools import partial
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import torch
from jsonargparse import auto_cli
from lightning import Trainer, seed_everything
from scipy.stats import t
from torch import Tensor, nn
from torch.export import Dim
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_kd import DistillationModule, export_student
from lightning_kd.data import DigitsConvNet, DigitsDataModule
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import from_checkpoint

try:
    from torchao.quantization.pt2e import allow_exported_model_train_eval, disable_observer
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
except ImportError as error:
    raise ImportError('This example quantises with torchao: pip install "lightning_kd[quantization,onnx]"') from error

IMAGES = torch.zeros(2, 1, 8, 8)


def exported(net: nn.Module) -> Any:
    """Return the graph of a network, in the mode that the network is in, for any number of images."""
    return torch.export.export(net, (IMAGES,), dynamic_shapes=({0: Dim("batch")},)).module()


def quantizer(qat: bool) -> Any:
    """Return what says which layers are quantised: all convolutions and linear layers, weights by channel."""
    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=qat))


def prepared(net: nn.Module) -> nn.Module:
    """Return the student with rounding in the forward pass, which a gradient passes as if nothing were rounded."""
    student: nn.Module = allow_exported_model_train_eval(prepare_qat_pt2e(exported(net.train()), quantizer(qat=True)))
    return student


def converted(student: nn.Module) -> nn.Module:
    """Return the trained QAT student with int8 weights; its ranges stay those of the training images."""
    student.eval()
    student.apply(disable_observer)
    int8: nn.Module = convert_pt2e(student)
    return int8


def quantized_afterwards(net: nn.Module, images: Tensor) -> nn.Module:
    """Return a float network with int8 weights, without QAT, its ranges those of the training images."""
    watched = prepare_pt2e(exported(net.eval()), quantizer(qat=False))
    watched(images)
    int8: nn.Module = convert_pt2e(watched)
    return int8


def fit(net: nn.Module, teacher: nn.Module | None, digits: DigitsDataModule, seed: int, epochs: int) -> None:
    """Train a student, by labels alone if there is no teacher."""
    seed_everything(seed)
    module = DistillationModule(
        net,
        teacher,
        losses=None if teacher is None else [KDLoss(temperature=4.0, weight=0.9)],
        task_loss=nn.CrossEntropyLoss(),
        task_weight=1.0 if teacher is None else 0.1,
        optimizer=partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.0005, nesterov=True),
        lr_scheduler=partial(CosineAnnealingLR, T_max=epochs),
    )
    Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,  # a validation would move the ranges, and rewrite the graph twice
    ).fit(module, datamodule=digits)


def written(net: nn.Module, path: Path, digits: DigitsDataModule) -> tuple[float, int]:
    """Write a network as an ONNX file; return the file's accuracy on the held-out half in percent, and its bytes."""
    export_student(net, path, example=IMAGES)
    images, labels = digits.held_out_set.tensors[:2]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return 100 * float((torch.from_numpy(logits).argmax(1) == labels).float().mean()), path.stat().st_size


def students(teacher: nn.Module | None, digits: DigitsDataModule, seed: int, epochs: int) -> dict[str, nn.Module]:
    """Train the float and the QAT student from the same weights, and return every network that is measured."""
    made = []
    for qat in (False, True):
        seed_everything(seed)
        net: nn.Module = DigitsConvNet(width=6)
        made.append(prepared(net) if qat else net)
        fit(made[-1], teacher, digits, seed, epochs)
    after = quantized_afterwards(made[0], digits.train_set.tensors[0])
    return {"float": made[0], "int8, after training": after, "int8, QAT": converted(made[1])}


def main(seeds: int = 3, epochs: int = 60, per_class: int | None = 5) -> dict[str, dict[str, list[float]]]:
    """Print the table, and return the accuracies of each network by how it was trained.

    Args:
        seeds: Number of seeds, 1 to that number; intervals take at least 2.
        epochs: Epochs of a fit.
        per_class: Training images per digit that keep their label; ``None`` keeps all.
    """
    factor = float(t.ppf(0.975, seeds - 1)) / seeds**0.5 if seeds > 1 else 0.0
    digits = DigitsDataModule(labelled_per_class=per_class)
    digits.setup()
    teacher = from_checkpoint(DigitsConvNet(width=32, depth=2), "examples/digits/teacher.safetensors")
    found: dict[str, dict[str, list[float]]] = {"alone": {}, "taught": {}}
    sizes = {}
    with TemporaryDirectory() as folder:
        for seed in range(1, seeds + 1):
            for arm, guide in (("alone", None), ("taught", teacher)):
                for name, net in students(guide, digits, seed, epochs).items():
                    accuracy, sizes[name] = written(net, Path(folder) / "student.onnx", digits)
                    found[arm].setdefault(name, []).append(accuracy)

    def shown(values: list[float], sign: str = "") -> str:
        return f"{mean(values):{sign}.2f} ± {factor * stdev(values):.2f}" if seeds > 1 else f"{mean(values):{sign}.2f}"

    def gains(values: list[float], others: list[float]) -> str:
        return shown([value - other for value, other in zip(values, others, strict=True)], "+")

    print("| student | bytes | no teacher: accuracy % | KD: accuracy % | gain by KD | KD, beside float |")
    print("|---|---|---|---|---|---|")
    for name, size in sizes.items():
        alone, taught = found["alone"][name], found["taught"][name]
        beside = "" if name == "float" else gains(taught, found["taught"]["float"])
        print(f"| {name} | {size:,} | {shown(alone)} | {shown(taught)} | {gains(taught, alone)} | {beside} |")
    return found


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
