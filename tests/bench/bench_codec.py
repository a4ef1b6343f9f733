"""The codec beside JPEG and WebP at equal file size.

python -m tests.bench.bench_codec --data ../shared/data/restoration/photos/val --json codec.json
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from fewstep.restoration.codec import Codec
from fewstep.restoration.codec_quality import compare
from fewstep.restoration.data import list_images, read_rgb


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="codec", help="shipped name or folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--rates", type=int, nargs="*", help="rates (default: all)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    codec = Codec.from_pretrained(arguments.model)
    photographs = [read_rgb(file) for file in list_images(arguments.data)]
    points = compare(codec, photographs, arguments.rates)
    print("| rate | bits per pixel | codec | JPEG | WebP |\n|---|---|---|---|---|")
    for point in points:
        print(f"| {point.rate} | {point.bpp:.2f} | {point.psnr:.2f} | {point.jpeg:.2f} | {point.webp:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(point) for point in points], indent=2) + "\n")


if __name__ == "__main__":
    main()
