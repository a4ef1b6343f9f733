"""The causal transformer of Diffusion Policy."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .time_embedding import SinusoidalPosEmb, spread_times


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the transformer; the defaults are those of Diffusion Policy's state tasks.

    Args:
        input_dim: numbers per step of the chunk.
        horizon: steps of the chunk at most.
        cond_dim: numbers per observed step (0: no observations).
        n_obs_steps: observed steps.
        layers: of the trunk.
        heads: of its attentions.
        width: numbers per token.
        drop_embedding: share of the tokens' numbers that is dropped in training.
        drop_attention: share that is dropped within the layers.
        causal: whether step i of the chunk sees only steps up to i, and observations up to i.
        time_as_condition: whether the time is a token of the condition; else it stands before the chunk.
        condition_layers: of the condition's encoder (0: a perceptron).
        time_scale: factor on the times before their sines, see `Unet1dConfig`.

    Raises:
        ValueError: sizes that do not fit each other.

    Reference: Chi et al. 2023, "Diffusion Policy", sec. III-A and released code.
    """

    input_dim: int
    horizon: int
    cond_dim: int = 0
    n_obs_steps: int = 2
    layers: int = 8
    heads: int = 4
    width: int = 256
    drop_embedding: float = 0.0
    drop_attention: float = 0.01
    causal: bool = True
    time_as_condition: bool = True
    condition_layers: int = 0
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("input_dim", "horizon", "n_obs_steps", "layers", "heads", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width must be even and a multiple of heads = {self.heads}, got {self.width}")
        if self.cond_dim < 0 or self.condition_layers < 0:
            raise ValueError(f"cond_dim and condition_layers must not be negative, got {self}")
        if self.cond_dim and not self.time_as_condition:
            raise ValueError("time_as_condition must be true where observations are told (cond_dim > 0)")

    @property
    def two_times(self) -> bool:
        """Whether the network takes a second time: it does not."""
        return False


class TransformerForDiffusion(nn.Module):
    """Decoder over the steps of an action chunk that attends to the time and the observations.

    With neither observations nor the time as condition it is an encoder over [time, chunk]. Names of weights,
    masks included, are those of Diffusion Policy.

    Args:
        config: its shape.

    Reference: Chi et al. 2023, "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion".

    Example:
        >>> net = TransformerForDiffusion(TransformerConfig(2, 10, cond_dim=5, layers=1, heads=2, width=16))
        >>> net(torch.zeros(3, 10, 2), torch.tensor([0, 5, 9]), cond=torch.zeros(3, 2, 5)).shape
        torch.Size([3, 10, 2])
    """

    mask: Tensor | None
    memory_mask: Tensor | None

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        tokens = config.horizon + (not config.time_as_condition)
        told = config.time_as_condition + (config.n_obs_steps if config.cond_dim else 0)
        self._dummy_variable = nn.Parameter(torch.zeros(0))  # a name of the published layout
        self.input_emb = nn.Linear(config.input_dim, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, tokens, width))
        self.drop = nn.Dropout(config.drop_embedding)
        self.time_emb = SinusoidalPosEmb(width, config.time_scale)
        self.cond_obs_emb = nn.Linear(config.cond_dim, width) if config.cond_dim else None
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, told, width)) if told else None
        if told:
            self.encoder = self._condition_encoder()
            layer = nn.TransformerDecoderLayer(**self._layer_options())
            self.decoder = nn.TransformerDecoder(layer, config.layers)
        else:
            self.encoder, self.decoder = self._encoder(config.layers), None
        self._set_masks(tokens, told)
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.input_dim)
        self._initialise()

    def _layer_options(self) -> dict:
        width = self.config.width
        return {
            "d_model": width,
            "nhead": self.config.heads,
            "dim_feedforward": 4 * width,
            "dropout": self.config.drop_attention,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }

    def _encoder(self, layers: int) -> nn.TransformerEncoder:
        layer = nn.TransformerEncoderLayer(**self._layer_options())
        return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def _condition_encoder(self) -> nn.Module:
        width = self.config.width
        if self.config.condition_layers:
            return self._encoder(self.config.condition_layers)
        return nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))

    def _set_masks(self, tokens: int, told: int) -> None:
        """Additive masks: a step sees itself and earlier ones, the time, and observations up to its own."""
        if self.config.causal:
            self.register_buffer("mask", _forbidden(torch.ones(tokens, tokens).tril() == 0))
        else:
            self.mask = None
        if self.config.causal and self.config.cond_dim:
            step, token = torch.arange(tokens)[:, None], torch.arange(told)[None]
            self.register_buffer("memory_mask", _forbidden(step < token - 1))
        else:
            self.memory_mask = None

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.normal_(module.in_proj_weight, std=0.02)
                nn.init.zeros_(module.in_proj_bias)
        nn.init.normal_(self.pos_emb, std=0.02)
        if self.cond_pos_emb is not None and self.cond_obs_emb is not None:
            nn.init.normal_(self.cond_pos_emb, std=0.02)

    def forward(
        self,
        x: Float[Tensor, "batch horizon numbers"],
        t: Shaped[Tensor, "*batch"] | float,
        *,
        cond: Float[Tensor, "batch observed told"] | None = None,
    ) -> Float[Tensor, "batch horizon numbers"]:
        """Predict what the objective defines (noise, clean chunk, velocity).

        Args:
            x: noisy chunk.
            t: times, one for all or one each.
            cond: observations, one row per observed step.

        Raises:
            ValueError: shapes that do not fit the configuration.
        """
        self._check(x, cond)
        time = self.time_emb(spread_times(t, x)).to(x.dtype)[:, None]
        tokens = self.input_emb(x)
        if self.decoder is None:
            tokens = torch.cat([time, tokens], dim=1)
            h = self.encoder(self._placed(tokens, self.pos_emb), mask=self._shortened(tokens))[:, 1:]
        else:
            told = time if self.cond_obs_emb is None else torch.cat([time, self.cond_obs_emb(cond)], dim=1)
            h = self.decoder(
                self._placed(tokens, self.pos_emb),
                self.encoder(self._placed(told, self.cond_pos_emb)),
                tgt_mask=self._shortened(tokens),
                memory_mask=None if self.memory_mask is None else self.memory_mask[: tokens.shape[1]],
            )
        return self.head(self.ln_f(h))

    def without_decay(self) -> set[str]:
        """Names of the parameters that no weight decay should reach: biases, normalisations, positions."""
        norms = [name for name, module in self.named_modules() if isinstance(module, nn.LayerNorm)]
        positions = {"pos_emb", "cond_pos_emb", "_dummy_variable"}
        return {
            name
            for name, _ in self.named_parameters()
            if name in positions or name.endswith("bias") or name.rpartition(".")[0] in norms
        }

    def _placed(self, tokens: Tensor, positions: Tensor | None) -> Tensor:
        assert positions is not None
        return self.drop(tokens + positions[:, : tokens.shape[1]])

    def _shortened(self, tokens: Tensor) -> Tensor | None:
        """The mask for a chunk that may be shorter than the horizon."""
        return None if self.mask is None else self.mask[: tokens.shape[1], : tokens.shape[1]]

    def _check(self, x: Tensor, cond: Tensor | None) -> None:
        config = self.config
        if x.ndim != 3 or x.shape[2] != config.input_dim or not 0 < x.shape[1] <= config.horizon:
            raise ValueError(
                f"x must be (batch, at most {config.horizon}, {config.input_dim}), got {tuple(x.shape)}"
            )
        wanted = (len(x), config.n_obs_steps, config.cond_dim) if config.cond_dim else None
        if (None if cond is None else tuple(cond.shape)) != wanted:
            got = None if cond is None else tuple(cond.shape)
            raise ValueError(f"cond must be {wanted or 'left out'}, got {got}")


def _forbidden(where: Tensor) -> Tensor:
    return torch.zeros(where.shape).masked_fill(where, float("-inf"))
