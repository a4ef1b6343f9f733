"""Small general networks; the published ones of a field live in its package."""

from fewstep.core.nets.dit import DiT, DiTConfig
from fewstep.core.nets.mlp import MLP, MLPConfig
from fewstep.core.nets.unet import UNet, UNetConfig

__all__ = ["MLP", "DiT", "DiTConfig", "MLPConfig", "UNet", "UNetConfig"]
