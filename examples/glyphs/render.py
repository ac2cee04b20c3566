"""Render the 62 letters and digits of free fonts as 24 x 24 grey images: makes ``glyphs.npz``.

The fonts come from packages of Debian, each of them under the SIL Open Font License. A package is in one part only, so
that the fonts of one part are never seen in another. Run from the repository's root, after ``pip install pillow``:

    python examples/glyphs/render.py --download /tmp/fonts --output examples/glyphs/glyphs.npz

This asks ``apt-get download`` for the packages and unpacks them into the folder; nothing is installed. A folder that is
unpacked already is read as it is.
"""

import hashlib
import math
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SIZE = 24
FINE = 4  # drawn so many times larger, then reduced
COUNTS = {"train": 200, "validation": 32, "test": 64}  # images of each character

# Fonts in one line are related, such as a serif and its sans: they are in one part.
PACKAGES = """
fonts-3270
fonts-allerta
fonts-anonymous-pro
fonts-apropal fonts-bajaderka fonts-havana
fonts-arapey
fonts-averia-gwf fonts-averia-sans-gwf fonts-averia-serif-gwf
fonts-b612
fonts-breip
fonts-bwht
fonts-cabin fonts-cabinsketch
fonts-cantarell
fonts-cardo
fonts-century-catalogue
fonts-cherrybomb
fonts-cmu
fonts-comfortaa
fonts-comic-neue
fonts-compagnon
fonts-courier-prime
fonts-crosextra-carlito fonts-lato
fonts-dancingscript
fonts-dkg-handwriting
fonts-dosis
fonts-ebgaramond
fonts-ecolier-court
fonts-elstob fonts-junicode
fonts-essays1743
fonts-eurofurence
fonts-fantasque-sans
fonts-firacode
fonts-gamaliel
fonts-georgewilliams
fonts-gfs-artemisia
fonts-gfs-didot
fonts-gfs-neohellenic
fonts-gnutypewriter
fonts-gotico-antiqua
fonts-hermit
fonts-inconsolata
fonts-inter
fonts-joscelyn
fonts-junction
fonts-jura
fonts-karla fonts-karmilla
fonts-kaushanscript
fonts-klee
fonts-kristi
fonts-league-mono
fonts-league-spartan
fonts-leckerli-one
fonts-liberation2
fonts-linuxlibertine
fonts-lobster fonts-lobstertwo
fonts-manrope
fonts-monoid
fonts-mononoki
fonts-morisawa-bizud-gothic
fonts-mplus
fonts-national-park
fonts-oldstandard
fonts-opendin
fonts-oxygen
fonts-play
fonts-quattrocento
fonts-quicksand
fonts-radisnoir
fonts-rocknroll
fonts-routed-gothic
fonts-sil-andika fonts-sil-gentium-basic fonts-sil-gentiumplus
fonts-sil-charis fonts-sil-doulos
fonts-sil-galatia
fonts-sora
fonts-stick
fonts-stix
fonts-triod-postnaja
fonts-vollkorn
fonts-yanone-kaffeesatz
fonts-yusei-magic
"""


def part_of(related: str) -> str:
    """Return the part of related packages, which the name of the first alone decides."""
    digits = int(hashlib.sha256(related.split()[0].encode()).hexdigest()[:16], 16)
    return {0: "validation", 1: "test", 2: "test"}.get(digits % 8, "train")


def unpack(packages: list[str], folder: Path) -> None:
    """Download the packages that the folder lacks, and unpack each into a folder of its name."""
    lacking = [name for name in packages if not (folder / name).is_dir()]
    if lacking:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *lacking], cwd=folder, check=True)
    for name in lacking:
        (file,) = folder.glob(f"{name}_*.deb")
        subprocess.run(["dpkg-deb", "--extract", file, folder / name], check=True)


def is_open(package: Path) -> bool:
    """Return whether the package says that its fonts are under the SIL Open Font License."""
    files = (package / "usr" / "share" / "doc" / package.name).glob("copyright*")
    text = " ".join(file.read_text(errors="replace") for file in files)
    return re.search(r"SIL\s+Open\s+Font|\bOFL\b|Open Font License", text, re.IGNORECASE) is not None


def faces_of(package: Path) -> list[tuple[str, Path]]:
    """Return name and file of each face that draws all characters, each in its own way, sorted by name.

    Faces whose small letters are small capitals cannot be read by anybody who sees one letter; they are left out.
    """
    faces: dict[str, Path] = {}
    for path in sorted(path for path in package.rglob("*") if path.suffix.lower() in (".otf", ".ttf")):
        try:
            font = ImageFont.truetype(str(path), 64)
            shapes = [_shape(font, character) for character in CHARACTERS]
            missing = _shape(font, "\U0010fffd")
        except OSError:
            continue  # a font of bitmaps, or a link that leads nowhere
        small = {letter: _outline(font, letter) for letter in "abdefghnqrt"}
        unlike = [_distance(shape, _outline(font, letter.upper())) for letter, shape in small.items()]
        if len(set(shapes)) == len(CHARACTERS) and missing not in shapes and sorted(unlike)[len(unlike) // 2] > 0.1:
            faces.setdefault(" ".join(part or "" for part in font.getname()), path)
    return sorted(faces.items())


def _shape(font: Any, character: str) -> tuple[Any, bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _outline(font: Any, character: str) -> np.ndarray:
    """Return a character that fills a square of 16 pixels."""
    mask = font.getmask(character)
    if 0 in mask.size:
        return np.zeros((16, 16))
    return np.asarray(Image.frombytes("L", mask.size, bytes(mask)).resize((16, 16)), dtype=float) / 255


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).mean())


def draw(font: Any, character: str, chance: random.Random) -> np.ndarray:
    """Draw a character whose capitals are 12 pixels high on a common line; turned, slanted, scaled and moved a little.

    Args:
        font: The font, in a size at which a capital H is 12 pixels high, times ``FINE``.
        character: What is drawn.
        chance: Where the random amounts come from.

    Returns:
        Grey levels (24, 24) in 16 steps from 0, the ground, to 255.
    """
    side = SIZE * FINE
    left, _, right, _ = font.getbbox(character, anchor="ls")
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text(((side - left - right) / 2, 0.7 * side), character, 255, font, anchor="ls")
    angle, slant = math.radians(chance.uniform(-10, 10)), chance.uniform(-0.15, 0.15)
    scale = 1 / chance.uniform(0.85, 1.1)
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    across, down = (side / 2 + chance.uniform(-1.5, 1.5) * FINE for _ in range(2))
    # maps a pixel of the result to one of the drawing: about the middle of both
    matrix = [cos + slant * sin, sin + slant * cos, -sin, cos]
    origin = [side / 2 - matrix[0] * across - matrix[1] * down, side / 2 - matrix[2] * across - matrix[3] * down]
    affine = (*matrix[:2], origin[0], *matrix[2:], origin[1])
    image = image.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    small = np.asarray(image.reduce(FINE), dtype=np.uint16)
    return ((small * 15 + 127) // 255 * 17).astype(np.uint8)


def fitted(path: Path) -> Any:
    """Load a font in the size at which a capital H is 12 pixels high, times ``FINE``."""
    _, top, _, bottom = ImageFont.truetype(str(path), 200).getbbox("H", anchor="ls")
    return ImageFont.truetype(str(path), max(1, round(200 * 12 * FINE / (bottom - top))))


def main(download: Path, output: Path, seed: int = 0) -> None:
    """Write the images.

    Args:
        download: The folder of the unpacked packages; those that it lacks are downloaded.
        output: The file to write.
        seed: Chooses the random amounts.
    """
    groups = [line.split() for line in PACKAGES.strip().splitlines()]
    unpack([name for group in groups for name in group], download)
    closed = [name for group in groups for name in group if not is_open(download / name)]
    if closed:
        raise ValueError(f"not under the SIL Open Font License: {', '.join(closed)}")
    chance = random.Random(seed)
    arrays: dict[str, np.ndarray] = {}
    for part, count in COUNTS.items():
        found = [faces_of(download / name) for group in groups if part_of(group[0]) == part for name in group]
        found = [faces for faces in found if faces]
        images, names = [], []
        for number in range(count):
            faces = found[number % len(found)]
            name, path = faces[number // len(found) * max(1, len(faces) // 6) % len(faces)]
            font = fitted(path)
            images += [draw(font, character, chance) for character in CHARACTERS]
            names.append(f"{path.relative_to(download).parts[0]}: {name}")
        arrays[f"{part}_images"] = np.stack(images)
        arrays[f"{part}_faces"] = np.array(names)
        print(f"{part}: {len(images)} images, {len(found)} packages, {len(set(names))} faces", flush=True)
    np.savez_compressed(output, **arrays)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
