"""Put the model of a finished training run into the package, with its card.

    python -m tools.ship_checkpoint RUN --metrics FILE.json --machine "2 CPU cores"

RUN is the folder that `fewstep restore train` left; FILE.json comes from
`python -m tests.bench.bench_super_resolution --model RUN/model --data … --json FILE.json`.
"""

import argparse
import json
from pathlib import Path

import torch

from fewstep.core.cards import CardFacts
from fewstep.core.training import TrainerConfig, read_log
from fewstep.restoration.methods.resshift import ResShift

PACKAGE = Path(__file__).parents[1] / "packages/restoration/src/fewstep/restoration/checkpoints"
BASELINE = "bicubic (F.interpolate)"
NAMES = {"psnr_y": "PSNR Y (dB)", "ssim_y": "SSIM Y", "sharpness": "sharpness (1 = truth)"}
SUMMARY = (
    "ResShift in pixel space for ×4 super-resolution of photographs: an EDSR-like network of 3×3 "
    "convolutions, four noise levels, κ = 0.5. One call estimates the mean of what the photograph may have "
    'been ("faithful"); four calls draw one sample ("detailed").'
)
DATA = (
    "340 photographs of the train and test parts of BSDS500 (Arbelaez et al. 2011), reduced four times with "
    "antialiased bicubic interpolation and rounded to 8 bit"
)
LIMITS = (
    "Trained on clean reductions only: noise and compression of the input are enlarged with the rest. The "
    "detailed mode invents texture and is not evidence of what was there. Figures are of the float32 "
    "weights, in float32 on a CPU; the shipped float16 weights give the same to 0.01 dB."
)


def facts(run: Path, results: dict, machine: str) -> CardFacts:
    """What the card says."""
    last = read_log(run)[-1]
    config = TrainerConfig.load(run / "config.json")
    metrics = {
        f"{name}, {method}": {NAMES[key]: (methods[method][key], methods[BASELINE][key]) for key in NAMES}
        for name, methods in results.items()
        for method in methods
        if not method.startswith("bicubic")
    }
    return CardFacts(
        title="resshift-x4",
        summary=SUMMARY,
        data=DATA,
        data_licence="research and education, as the Berkeley Segmentation Data Set says",
        command=(
            "fewstep restore train --data photos/train --validation photos/val "
            f"-o runs/resshift-x4 --max-minutes {config.max_minutes:g}"
        ),
        steps=int(last["step"]),
        minutes=config.max_minutes,
        machine=machine,
        metrics=metrics,
        baseline=BASELINE,
        limits=LIMITS,
    )


def main() -> None:
    """Write the package's checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--machine", required=True)
    arguments = parser.parse_args()
    model = ResShift.from_pretrained(str(arguments.run / "model"))
    results = json.loads(arguments.metrics.read_text(encoding="utf-8"))
    card = facts(arguments.run, results, arguments.machine)
    folder = PACKAGE / "resshift-x4"
    model.save_pretrained(folder, dtype=torch.float16, model_card_kwargs={"facts": card})
    print(folder)


if __name__ == "__main__":
    main()
