"""Make the pictures of the documentation: `python -m tools.pictures` writes docs/assets/*.

They are made by the code that they illustrate and are committed, so that the site builds without a model.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from fewstep.core import grids, paths
from fewstep.core.solvers.dpmpp import DPMSolverPP
from fewstep.core.solvers.first_order import FirstOrder
from fewstep.core.solvers.heun import Heun
from fewstep.restoration import Restorer
from fewstep.restoration.data import reduce_image
from fewstep.restoration.resize import imresize

ASSETS = Path(__file__).parents[1] / "docs" / "assets"
SCALE = 4


def main() -> None:
    """Write every picture and say where."""
    for name, make in {"plan.svg": plan, "restoration.webp": restoration}.items():
        make(ASSETS / name)
        print(ASSETS / name)


def plan(file: Path) -> None:
    """Noise level and network calls of three solvers on one path."""
    path = paths.VP.linear()
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True)
    choices = (
        (FirstOrder(), "uniform"),
        (Heun(), "karras"),
        (DPMSolverPP(2), "logsnr"),
    )
    for ax, (solver, grid) in zip(axes, choices, strict=True):
        solver.compile(path, grids.get(grid)(path, 8)).plot(ax)
        ax.set_title(f"{solver.name}, {grid} grid")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def restoration(file: Path) -> None:
    """Crops of two photographs: input, bicubic, faithful, detailed, truth."""
    restorer = Restorer.from_pretrained("resshift-x4")
    rows = []
    for photo, left, top in (
        (skimage.data.astronaut(), 170, 60),
        (skimage.data.chelsea()[:300, :448], 110, 80),
    ):
        small = reduce_image(photo, SCALE)
        bicubic = np.clip(np.rint(imresize(small.astype(np.float64), float(SCALE))), 0, 255).astype(np.uint8)
        variants = {
            "input": small.repeat(SCALE, axis=0).repeat(SCALE, axis=1),
            "bicubic": bicubic,
            "faithful": np.asarray(restorer(small).image),
            "detailed": np.asarray(restorer(small, mode="detailed").image),
            "truth": photo,
        }
        rows.append([_crop(picture, left, top, name) for name, picture in variants.items()])
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    Image.fromarray(sheet).save(file, quality=88)


def _crop(picture: np.ndarray, left: int, top: int, name: str, side: int = 112) -> np.ndarray:
    """A square of the picture, doubled, with its name in the corner."""
    crop = Image.fromarray(picture[top : top + side, left : left + side])
    crop = crop.resize((2 * side, 2 * side), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(crop)
    font = ImageFont.load_default(14)
    box = draw.textbbox((6, 4), name, font=font)
    draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=(20, 24, 32))
    draw.text((6, 4), name, font=font, fill="white")
    return np.pad(np.asarray(crop), ((0, 4), (0, 4), (0, 0)), constant_values=255)


if __name__ == "__main__":
    main()
