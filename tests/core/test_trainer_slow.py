"""Two training processes on one CPU, and a run that is killed, as real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep.core.training import load_weights

pytestmark = pytest.mark.slow

SCRIPT = """
import hashlib, json, os, sys
from pathlib import Path
import numpy as np, torch
from torch import nn
from fewstep.core.training import ConstantSchedule, Trainer, TrainerConfig

folder, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
torch.set_num_threads(1)
rank = int(os.environ.get("RANK", 0))
torch.manual_seed(rank)  # ranks start with different weights: the trainer must make them equal
net = nn.Linear(3, 1)
if rank == 0:
    nn.init.constant_(net.weight, 0.25), nn.init.constant_(net.bias, 0.0)
seen = []

def draw(rng):
    x = rng.standard_normal((4, 3), dtype=np.float32)
    seen.append(x)
    return torch.from_numpy(x)

def loss(model, x, generator):
    import time
    time.sleep(pause)
    return (model(x) - x.sum(1, keepdim=True)).square().mean()

config = TrainerConfig(max_steps=steps, accumulate=2, processes=int(os.environ.get("ASKED", 1)), clip=None,
                       ema_decays=(0.9,), save_every_steps=3, keep=10, log_every=1,
                       device="cpu", tensorboard=False)
trainer = Trainer(net, loss, draw, folder=folder, config=config, schedule=ConstantSchedule(),
                  optimizer=torch.optim.SGD(net.parameters(), lr=0.05))
result = trainer.fit()

def digest(model):
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()

report = {"weights": digest(net), "average": digest(trainer.ema.models[0.9]), "step": result.step,
          "stopped": result.stopped, "seen": np.stack(seen).tolist()}
Path(sys.argv[1] + f"-rank{rank}.json").write_text(json.dumps(report))
"""


def launch(tmp_path, folder, steps=6, processes=1, asked=1, pause=0.0):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    command += [str(script), str(folder), str(steps), str(pause)]
    environment = {**os.environ, "ASKED": str(asked), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def reports(folder, count):
    return [json.loads(Path(f"{folder}-rank{rank}.json").read_text()) for rank in range(count)]


def test_two_processes_are_identical_and_average_their_gradients(tmp_path):
    folder = tmp_path / "run"
    process = launch(tmp_path, folder, processes=2, asked=2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    first, second = reports(folder, 2)
    assert first["weights"] == second["weights"]
    assert first["average"] == second["average"]
    assert first["seen"] != second["seen"], "each process sees data of its own"

    # The same descent by hand: the gradient of a step is the mean over 2 processes × 2 batches.
    weight = torch.full((1, 3), 0.25, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    batches = [torch.tensor(report["seen"], dtype=torch.float64) for report in (first, second)]
    for step in range(6):
        x = torch.cat([seen[2 * step : 2 * step + 2].flatten(0, 1) for seen in batches])
        loss = (nn.functional.linear(x, weight, bias) - x.sum(1, keepdim=True)).square().mean()
        gradients = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            weight -= 0.05 * gradients[0]
            bias -= 0.05 * gradients[1]
    saved = torch.load(folder / "checkpoints" / "step-00000006.pt", weights_only=True)["model"]
    torch.testing.assert_close(saved["weight"].double(), weight.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(saved["bias"].double(), bias.detach(), rtol=1e-5, atol=1e-6)


def test_two_processes_resume_exactly(tmp_path):
    for folder, parts in ((tmp_path / "long", (6,)), (tmp_path / "parts", (3, 6))):
        for steps in parts:
            process = launch(tmp_path, folder, steps=steps, processes=2, asked=2)
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    long, parts = reports(tmp_path / "long", 2), reports(tmp_path / "parts", 2)
    assert [report["weights"] for report in long] == [report["weights"] for report in parts]
    assert [report["average"] for report in long] == [report["average"] for report in parts]
    assert long[1]["seen"][6:] == parts[1]["seen"], "rank 1 goes on with its own data"


def test_asking_for_two_processes_and_getting_one_fails(tmp_path):
    process = launch(tmp_path, tmp_path / "run", asked=2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "asks for 2 processes but has 1" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_process_resumes_to_the_weights_of_an_unbroken_run(tmp_path, number):
    unbroken = launch(tmp_path, tmp_path / "whole", steps=12)
    _, errors = unbroken.communicate(timeout=300)
    assert unbroken.returncode == 0, errors

    folder = tmp_path / "run"
    process = launch(tmp_path, folder, steps=12, pause=0.1)
    deadline = time.monotonic() + 200
    while not (folder / "checkpoints" / "step-00000006.pt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    if number != signal.SIGKILL:
        assert process.returncode == 0, errors
        report = reports(folder, 1)[0]
        assert report["stopped"] == "interrupted"
        assert (folder / "checkpoints" / f"step-{report['step']:08d}.pt").exists()
        assert "Traceback" not in errors

    again = launch(tmp_path, folder, steps=12)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert reports(folder, 1)[0]["weights"] == reports(tmp_path / "whole", 1)[0]["weights"]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13)), "no step is logged twice"
    assert load_weights(folder)["weight"].shape == (1, 3)
