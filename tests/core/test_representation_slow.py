"""Representation learning on two processes, whose network is trained in part."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from fewstep.core import paths
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives.representation import RepresentationLearning
from fewstep.core.training import Trainer, TrainerConfig

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
torch.set_num_threads(1)
torch.manual_seed(rank)
net = MLP(MLPConfig(shape=(3,), width=16, depth=4, embedding=8))
objective = RepresentationLearning(paths.RectifiedFlow(), net, nn.Linear(16, 8), 1, lambda x, generator: x)
config = TrainerConfig(max_steps=4, processes=2, device="cpu", tensorboard=False)
draw = lambda rng: torch.from_numpy(rng.standard_normal((8, 3), dtype="float32"))
Trainer(net, objective, draw, folder=folder, config=config).fit()
weights = {name: value.double().flatten().tolist() for name, value in net.state_dict().items()}
Path(f"{folder}-{rank}.json").write_text(json.dumps(weights))
"""


def test_two_processes_train_the_first_blocks_alike(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(Path(f"{tmp_path / 'run'}-{rank}.json").read_text()) for rank in range(2))
    assert first == second
