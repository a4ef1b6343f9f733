"""What the diffusers bridge refuses, and how it says so."""

import pytest
import torch
from diffusers import DDIMScheduler

from fewstep.core.bridges.diffusers_config import path_from_config, times_from_config
from fewstep.core.bridges.diffusers_model import from_diffusers
from fewstep.core.bridges.diffusers_scheduler import FewstepScheduler


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: path_from_config({"beta_start": 0.1, "beta_schedule": "sigmoid"}), "beta_schedule must be"),
        (
            lambda: FewstepScheduler.from_config({"beta_start": 1e-4, "prediction_type": "noise"}),
            "prediction_type must be one of epsilon",
        ),
        (lambda: FewstepScheduler.from_config({"use_beta_sigmas": True}), "use_beta_sigmas is not supported"),
        (lambda: FewstepScheduler.from_config({}, solver="dpm"), "solver must be one of"),
        (lambda: FewstepScheduler().set_timesteps(), "num_inference_steps is missing"),
        (lambda: FewstepScheduler().step(torch.zeros(1, 1), 3, torch.zeros(1, 1)), "call set_timesteps"),
        (
            lambda: times_from_config({"timestep_spacing": "even"}, path_from_config({}), 5),
            "timestep_spacing must be",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_timestep_of_another_schedule_is_refused():
    scheduler = FewstepScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match=r"timestep must be one of scheduler\.timesteps, got 3"):
        scheduler.step(torch.zeros(1, 1, 2), 3, torch.zeros(1, 1, 2))


def test_without_a_scheduler_or_network_the_message_says_so():
    for parts, message in (
        ((torch.nn.Identity(),), "scheduler must be"),
        ((object(), DDIMScheduler()), "source must be"),
    ):
        with pytest.raises(TypeError, match=message):
            from_diffusers(*parts)
