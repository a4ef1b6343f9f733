"""Compressed sensing of luma under IDM's permuted block measurements: our IDM beside total variation.

    python -m tests.bench.bench_compressed_sensing --model FOLDER … --data ../shared/data/restoration/set11

Total variation is 40 iterations of FISTA (Beck & Teboulle 2009) whose proximal step is scikit-image's
`denoise_tv_chambolle` with weight max(0.3·0.87^k, 0.008), set once and not tuned.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from skimage.restoration import denoise_tv_chambolle

from fewstep.restoration.compressed_sensing import Measurement, measure
from fewstep.restoration.data import list_images, read_rgb
from fewstep.restoration.methods.idm import IDM
from fewstep.restoration.metrics import score
from fewstep.restoration.train_idm import luma, middle

Tool = Callable[[Measurement], np.ndarray]
ITERATIONS, STRONGEST, SHRINK, WEAKEST = 40, 0.3, 0.87, 0.008


def adjoint(taken: Measurement) -> np.ndarray:
    """Aᵀ y."""
    return taken.sensing.adjoint(taken.values)[0, 0].clamp(0, 1).numpy()


def total_variation(taken: Measurement) -> np.ndarray:
    """FISTA with a total-variation prox; A has orthonormal rows, so that the step size is 1."""
    x = z = taken.sensing.adjoint(taken.values)
    momentum = 1.0
    for k in range(ITERATIONS):
        gradient = z - taken.sensing.adjoint(taken.sensing.forward(z) - taken.values)
        weight = max(STRONGEST * SHRINK**k, WEAKEST)
        plane = denoise_tv_chambolle(gradient[0, 0].double().numpy(), weight=weight, max_num_iter=60)
        new = torch.from_numpy(plane)[None, None].to(z)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        z = new + (momentum - 1) / following * (new - x)
        x, momentum = new, following
    return x[0, 0].clamp(0, 1).numpy()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", required=True, help="folders or shipped names of IDM models")
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--count", type=int, help="only so many photographs")
    parser.add_argument("--side", type=int, default=1024, help="measure the middle, at most this side")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, dict[str, float]]] = {}
    print("| ratio | by | PSNR dB | SSIM | seconds per image |\n|---|---|---|---|---|")
    for name in arguments.model:
        model = IDM.from_pretrained(name).eval()
        config = model.config
        tools: dict[str, Tool] = {
            "Aᵀ y": adjoint,
            "total variation": total_variation,
            Path(name).name: lambda taken, model=model: model.reconstruct(taken)[0, 0].numpy(),
        }
        rows: dict[str, list[tuple[float, float, float]]] = {tool: [] for tool in tools}
        for seed, file in enumerate(list_images(arguments.data)[: arguments.count]):
            truth = middle(luma(read_rgb(file)), config.block, arguments.side)
            plane = torch.from_numpy(truth)[None, None].to(torch.float32) / 255
            taken = measure(
                plane, config.ratio, block=config.block, seed=seed, matrix_seed=config.matrix_seed
            )
            for tool, run in tools.items():
                start = time.perf_counter()
                with torch.inference_mode():
                    made = run(taken)
                seconds = time.perf_counter() - start
                quality = score(255.0 * made.astype(np.float64), truth.astype(np.float64), "ycrcb")
                rows[tool].append((quality.psnr, quality.ssim, seconds))
        label = f"{arguments.data.name}, ratio {config.ratio:g}"
        results[label] = {
            tool: dict(zip(("psnr", "ssim", "seconds"), np.mean(values, axis=0).tolist(), strict=True))
            for tool, values in rows.items()
        }
        for tool, row in results[label].items():
            figures = f"{row['psnr']:.2f} | {row['ssim']:.4f} | {row['seconds']:.1f}"
            print(f"| {config.ratio:g} | {tool} | {figures} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
