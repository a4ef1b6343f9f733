"""An alternation on two processes."""

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
from functools import partial
from pathlib import Path
import numpy as np, torch
from torch import nn
from fewstep.core.training import ConstantSchedule, Objective, Phase, Trainer, TrainerConfig

folder, steps, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
rank = int(os.environ.get("RANK", 0))
torch.manual_seed(rank)  # different initial weights: the trainer must make them equal
student, fake, judge, copied = (nn.Linear(3, 3) for _ in range(4))
calls = 0

def draw(rng):
    # Batch k of two processes together is batch k of one process with twice the samples.
    global calls
    if calls == 0 and steps > 7:
        calls = int(os.environ.get("SKIP", 0))
    both = np.random.default_rng(calls).standard_normal((2, 4, 3), dtype=np.float32)
    calls += 1
    return torch.from_numpy(both.reshape(8, 3) if count == 1 else both[rank])

class Duel(Objective):
    def modules(self):
        return {"fake": fake, "judge": judge, "copied": copied}

    def phases(self):
        sgd = partial(torch.optim.SGD, lr=0.05)
        both = Phase("fake", self.follow, trains=("fake", "judge"), updates=2, optimizer=sgd)
        return both, Phase("student", self.move, optimizer=sgd)

    def follow(self, nets, x, generator, moment):
        made = nets["student"](x).detach()
        loss = (nets["fake"].weight @ made.T - made.T).square().mean()  # not through forward
        # The judge is used in every second update only.
        return loss + nets["judge"](made).square().mean() if moment.step % 2 else loss

    def move(self, nets, x, generator, moment):
        made = nets["student"](x)
        def jump(t):
            return nets["student"](x * t[:, None])
        t = torch.ones(len(x))
        _, rate = torch.func.jvp(jump, (t,), (torch.ones_like(t),))
        return (nets["fake"](made) - x).square().mean() + 0.1 * rate.square().mean()

    def after_update(self, phase, nets, moment):
        nets["copied"].load_state_dict(nets["student"].state_dict())

config = TrainerConfig(max_steps=steps, processes=count, clip=None, ema_decays=(0.9,), keep=10,
                       accumulate=2, log_every=1, device="cpu", tensorboard=False)
trainer = Trainer(student, Duel(), draw, folder=folder, config=config, schedule=ConstantSchedule())
result = trainer.fit()
report = {name: [v.double().flatten().tolist() for v in net.state_dict().values()]
          for name, net in trainer.networks.items()}
report["average"] = [v.double().flatten().tolist() for v in trainer.ema.models[0.9].state_dict().values()]
Path(f"{folder}-{rank}.json").write_text(json.dumps(report))
"""


def run(tmp_path, name, steps, count, skip=0):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable]
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={count}", f"--master_port={port}"]
    command += [str(script), str(tmp_path / name), str(steps), str(count)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "SKIP": str(skip)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(f"{tmp_path / name}-{rank}.json").read_text()) for rank in range(count)]


def flat(report):
    return [number for values in report.values() for numbers in values for number in numbers]


def test_two_processes_do_what_one_does_with_both_batches(tmp_path):
    first, second = run(tmp_path, "two", 7, 2)
    assert first == second, "ranks stay identical, networks that are not trained included"
    [alone] = run(tmp_path, "one", 7, 1)
    assert flat(first) == pytest.approx(flat(alone), rel=1e-4, abs=1e-6)


def test_two_processes_go_on_in_the_middle_of_a_round(tmp_path):
    long = run(tmp_path, "long", 10, 2)
    run(tmp_path, "parts", 7, 2)  # 7 updates: two rounds and the first fake update of the third
    parts = run(tmp_path, "parts", 10, 2, skip=14)
    assert long == parts
