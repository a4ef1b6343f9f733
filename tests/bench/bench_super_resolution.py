"""Quality of the shipped ×4 checkpoint beside bicubic enlargement, on known reductions of photographs.

    python -m tests.bench.bench_super_resolution --data FOLDER [--json FILE]

FOLDER holds one folder of true photographs per set (a sub-folder HR is used where there is one). Without it
the photographs that ship with scikit-image are measured. Reductions: antialiased bicubic, rounded to 8 bit;
PSNR and SSIM are of the studio-range luma without a border of 4 pixels.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import skimage
import torch
import torch.nn.functional as F
from rich.progress import track

from fewstep.restoration import Restorer
from fewstep.restoration.data import list_images, read_rgb, reduce_image, to_signed
from fewstep.restoration.metrics import score, sharpness
from fewstep.restoration.resize import imresize

SETS = ("set5", "set14", "bsd100", "kodak", "urban_256", "div2k_256")
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
MATLAB, PLAIN = "bicubic (MATLAB)", "bicubic (F.interpolate)"


def folders(data: Path | None) -> dict[str, list[Path]]:
    """Files of every set."""
    if data is None:
        home = Path(skimage.__file__).parent / "data"
        return {"scikit-image": [home / name for name in PHOTOGRAPHS if (home / name).is_file()]}
    found = {name: data / name for name in SETS if (data / name).is_dir()}
    if not found:
        raise SystemExit(f"{data} has none of the folders {', '.join(SETS)}")
    return {
        name: list_images(folder / "HR" if (folder / "HR").is_dir() else folder)
        for name, folder in found.items()
    }


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Values in [0, 255], clipped and rounded to 8 bit."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def enlarge(restorer: Restorer, reduced: np.ndarray) -> dict[str, tuple[np.ndarray, float]]:
    """Every method's image and its seconds."""
    results = {}
    start = time.perf_counter()
    results[MATLAB] = (
        to_bytes(np.asarray(imresize(reduced.astype(np.float64), 4))),
        time.perf_counter() - start,
    )
    start = time.perf_counter()
    plain = F.interpolate(to_signed(reduced[None]), scale_factor=4, mode="bicubic")[0].permute(1, 2, 0)
    results[PLAIN] = to_bytes((plain.numpy() + 1) * 127.5), time.perf_counter() - start
    for mode in ("faithful", "detailed"):
        restored = restorer(reduced, mode=mode, seed=0, tile=0)
        name = f"{mode}, {restored.calls} call{'s' * (restored.calls > 1)}"
        results[name] = np.asarray(restored.pixels), restored.seconds
    return results


def measure(restorer: Restorer, files: list[Path], name: str) -> dict[str, dict[str, float]]:
    """Mean metrics of every method over a set."""
    rows: dict[str, list[tuple[float, float, float, float]]] = {}
    for file in track(files, description=name):
        truth = read_rgb(file, multiple=4)
        for method, (image, seconds) in enlarge(restorer, reduce_image(truth, 4)).items():
            quality = score(image, truth, "y", border=4)
            megapixels = truth.shape[0] * truth.shape[1] / 1e6
            row = (quality.psnr, quality.ssim, sharpness(image, truth), seconds / megapixels)
            rows.setdefault(method, []).append(row)
    names = ("psnr_y", "ssim_y", "sharpness", "seconds_per_megapixel")
    return {method: dict(zip(names, np.mean(values, axis=0), strict=True)) for method, values in rows.items()}


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| set | method | PSNR Y dB | SSIM Y | sharpness | s per output megapixel |",
        "|---|---|---|---|---|---|",
    ]
    for name, methods in results.items():
        for method, row in methods.items():
            lines.append(
                f"| {name} | {method} | {row['psnr_y']:.2f} | {row['ssim_y']:.4f} | {row['sharpness']:.3f} "
                f"| {row['seconds_per_megapixel']:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one folder of photographs per set")
    parser.add_argument("--model", default="resshift-x4", help="name or folder of the checkpoint")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    restorer = Restorer.from_pretrained(arguments.model, device="cpu")
    results = {name: measure(restorer, files, name) for name, files in folders(arguments.data).items()}
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
