"""Distillation by judges: plain and denoising-diffusion GANs, ADD, LADD, NitroFusion, adversarial
post-training."""

import torch

from fewstep.core.clock import time_of_clock
from fewstep.core.objectives.adversarial.building import (
    adam,
    call_times,
    frozen_judge,
    own_judge,
    pair_judge,
    pooled_judge,
)
from fewstep.core.objectives.adversarial.conditional import DenoisingDiffusionGan
from fewstep.core.objectives.adversarial.post_training import post_training_judge
from fewstep.core.objectives.adversarial.regularisers import R1
from fewstep.core.objectives.adversarial.standalone import (
    AdversarialDistillation,
    DenoisedByTeacher,
    FromData,
)
from fewstep.core.objectives.distances import SquaredError
from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.score.generation import SeveralSteps
from fewstep.core.objectives.times import LogitNormal, LogNormal
from fewstep.core.sampling import Sampling

ONE_CALL = Sampling("consistency", steps=1, kappa=2.5)
FOUR_CALLS = Sampling("consistency", steps=4, spacing="clock", kappa=10.0)
FOUR_STEPS = Sampling("ode", steps=4, spacing="clock", solver="ancestral")


def gan(
    material: Material,
    r1: float = 0.05,
    noise_mean: float = -1.2,
    noise_std: float = 1.2,
    judge_updates: int = 1,
    judge_learning_rate: float | None = None,
) -> AdversarialDistillation:
    """A diffusion GAN: the judge is a trainable copy of the network and sees noised samples."""
    judge = own_judge(material, LogNormal(noise_mean, noise_std), "softplus", R1(r1) if r1 else None)
    return AdversarialDistillation(
        material.path,
        material.prediction,
        judge,
        generation=SeveralSteps(call_times(material, ONE_CALL)),
        judge_updates=judge_updates,
        judge_optimizer=adam(judge_learning_rate, (0.0, 0.99)),
    )


def add(
    material: Material,
    distillation: float = 2.5,
    r1: float = 1e-2,
    judge_learning_rate: float | None = None,
) -> AdversarialDistillation:
    """Clean samples before heads on the frozen teacher (DINO in the paper), and the teacher's denoising."""
    return AdversarialDistillation(
        material.path,
        material.prediction,
        frozen_judge(material, None, "hinge", R1(r1) if r1 else None),
        generation=FromData(call_times(material, FOUR_CALLS)),
        terms=[DenoisedByTeacher(material.taught(), distillation)],
        judge_optimizer=adam(judge_learning_rate, (0.0, 0.99)),
    )


def ladd(
    material: Material,
    noise_mean: float = 1.0,
    noise_std: float = 1.0,
    r1: float = 0.0,
    shares: tuple[float, ...] | None = None,
    judge_updates: int = 1,
    judge_learning_rate: float | None = None,
) -> AdversarialDistillation:
    """Heads on all layers of the frozen teacher, at their own noise levels; data may be its samples."""
    judge = frozen_judge(material, LogitNormal(noise_mean, noise_std), "hinge", R1(r1) if r1 else None)
    return AdversarialDistillation(
        material.path,
        material.prediction,
        judge,
        generation=FromData(call_times(material, FOUR_CALLS), shares),
        judge_updates=judge_updates,
        judge_optimizer=adam(judge_learning_rate, (0.0, 0.99)),
    )


def nitrofusion(
    material: Material,
    heads: int = 16,
    judges: int = 4,
    stretches: int = 4,
    refresh_share: float = 0.01,
    noise_mean: float = 0.0,
    noise_std: float = 1.0,
    judge_updates: int = 1,
    judge_learning_rate: float | None = None,
) -> AdversarialDistillation:
    """A pool of heads on the frozen teacher, some drawn for every batch, some new after every update."""
    inner = torch.arange(1, stretches, dtype=torch.float64) / stretches
    edges = tuple(time_of_clock(material.path, inner).tolist())
    times = LogitNormal(noise_mean, noise_std)
    judge = pooled_judge(material, times, edges, heads, judges, refresh_share)
    return AdversarialDistillation(
        material.path,
        material.prediction,
        judge,
        generation=SeveralSteps(call_times(material, ONE_CALL)),
        judge_updates=judge_updates,
        judge_optimizer=adam(judge_learning_rate, (0.0, 0.99)),
    )


def apt(
    material: Material,
    layers: tuple[int, ...] = (-1,),
    shift: float = 1.0,
    weight: float = 100.0,
    sigma: float = 0.01,
    judge_learning_rate: float | None = None,
) -> AdversarialDistillation:
    """The network itself as judge of clean samples at random told times, with the approximate R1.

    The student should already make samples in one call, for instance by "cd".
    """
    judge = post_training_judge(
        material.path,
        material.student,
        material.shape,
        layers=layers,
        shift=shift,
        weight=weight,
        sigma=sigma,
    )
    return AdversarialDistillation(
        material.path,
        material.prediction,
        judge,
        generation=SeveralSteps(call_times(material, ONE_CALL)),
        judge_optimizer=adam(judge_learning_rate, (0.0, 0.9)),
    )


def ddgan(
    material: Material,
    r1: float = 0.02,
    r1_every: int = 15,
    regression: float = 0.0,
    judge_updates: int = 1,
    judge_learning_rate: float | None = None,
) -> DenoisingDiffusionGan:
    """A judge of neighbouring states of a few levels; with `regression` also the squared error of x0."""
    sampling = material.sampling or FOUR_STEPS
    return DenoisingDiffusionGan(
        material.path,
        material.prediction,
        sampling.grid(material.path),
        pair_judge(material),
        regulariser=R1(r1, r1_every) if r1 else None,
        terms=[(regression, SquaredError())] if regression else [],
        judge_updates=judge_updates,
        judge_optimizer=adam(judge_learning_rate, (0.5, 0.9)),
    )


def emdm(
    material: Material,
    regression: float = 1.0,
    r1: float = 0.02,
    r1_every: int = 15,
    judge_learning_rate: float | None = None,
) -> DenoisingDiffusionGan:
    """DDGAN with a squared error of the motion itself; geometric terms are added in code, by `terms`."""
    return ddgan(material, r1, r1_every, regression, judge_learning_rate=judge_learning_rate)


_FAST = {"learning_rate": 5e-4, "optimizer": "adam", "betas": (0.0, 0.99), "schedule": "cosine", "clip": None}

METHODS = {
    "gan": Method(
        "Wang et al. 2023, Diffusion-GAN",
        "one call, judged at random noise levels by a copy of the network",
        gan,
        ("teacher", "data"),
        ONE_CALL,
        settings=_FAST,
    ),
    "add": Method(
        "Sauer et al. 2023, Adversarial Diffusion Distillation",
        "heads on frozen features of clean samples, and the teacher's denoising of them",
        add,
        ("teacher", "data"),
        FOUR_CALLS,
        settings=_FAST,
    ),
    "ladd": Method(
        "Sauer et al. 2024, Latent Adversarial Diffusion Distillation",
        "heads on all layers of the frozen teacher at noise levels of their own",
        ladd,
        ("teacher", "data"),
        FOUR_CALLS,
        settings=_FAST,
    ),
    "nitrofusion": Method(
        "Chen et al. 2024, NitroFusion",
        "a pool of heads on the frozen teacher, of which some start afresh all the time",
        nitrofusion,
        ("teacher", "data"),
        ONE_CALL,
        settings=_FAST,
    ),
    "apt": Method(
        "Lin et al. 2025, Adversarial Post-Training",
        "the network as judge of clean samples, with an R1 that needs no second derivative",
        apt,
        ("teacher", "data"),
        ONE_CALL,
        settings={**_FAST, "betas": (0.0, 0.9), "ema": 0.995},
    ),
    "ddgan": Method(
        "Xiao, Kreis and Vahdat 2022, denoising diffusion GAN",
        "a few ancestral steps whose pairs of states a judge cannot tell from real ones",
        ddgan,
        ("data",),
        FOUR_STEPS,
        settings={**_FAST, "betas": (0.5, 0.9)},
    ),
    "emdm": Method(
        "Zhou et al. 2024, EMDM",
        "denoising diffusion GAN with the squared error of the clean motion",
        emdm,
        ("data",),
        FOUR_STEPS,
        settings={**_FAST, "betas": (0.5, 0.9)},
    ),
}
