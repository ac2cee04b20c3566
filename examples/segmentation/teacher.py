"""Train the teacher of the example and write its weights into a folder that git does not keep.

Run from the repository's root: python -m examples.segmentation.teacher
"""

from pathlib import Path

from jsonargparse import auto_cli
from safetensors.torch import save_model

from examples.segmentation.fit import fit, mean_iou
from examples.segmentation.networks import make_teacher

WEIGHTS = "examples/segmentation/runs/teacher.safetensors"


def main(images: int = 3000, steps: int = 800, held_out: int = 500, output: str = WEIGHTS) -> float:
    """Train, print the mean IoU, write, and return the mean IoU.

    Args:
        images: How many labelled images the teacher sees.
        steps: Steps of 16 images.
        held_out: On how many images it is measured.
        output: File to write.
    """
    net = fit(make_teacher(), images, steps, seed=1, progress=True)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    save_model(net, output)
    reached = mean_iou(net, held_out)
    print(f"teacher: {reached:.1f} % mean IoU, written to {output}")
    return reached


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
