"""Large photographs: memory is bounded by tiles and waiting rows, not by the result."""

import subprocess
import sys
from pathlib import Path

import pytest

# 12 megapixels in, 192 out: 576 MB as bytes, 2.3 GB as floats.
SCRIPT = """
import sys, threading, time
import numpy as np, torch
from fewstep.restoration import Restorer
from fewstep.restoration.images import Picture, write

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1e6 for line in status if line.startswith("RssAnon"))

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.02)

torch.set_num_threads(1)
restorer = Restorer.from_pretrained(sys.argv[1], device="cpu")
rows, columns = np.ogrid[:3000, :4000]
image = np.stack([(3 * rows + 5 * columns + 80 * k) % 256 for k in range(3)], axis=-1).astype(np.uint8)
restorer(image[:64, :64])
before, peak = anonymous(), [0.0]
threading.Thread(target=watch, daemon=True).start()
result = restorer(image)
assert result.pixels.shape == (12000, 16000, 3), result.pixels.shape
assert isinstance(result.pixels, np.memmap)
result.save(sys.argv[2])
print(peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_result(tiny_folder, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tiny_folder), str(tmp_path / "large.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stderr
    # A gigabyte for tiles, one for rows that wait, and the compressed file.
    assert float(done.stdout) < 2.2
