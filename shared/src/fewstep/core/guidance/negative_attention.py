"""Negative attention: steer a one-step model away from a condition, inside its attention layers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from fewstep.core.nets import DiT

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@contextmanager
def away_from_states(net: nn.Module, states: Tensor, scale: float = 0.3) -> Iterator[None]:
    """Within the block, every cross-attention of a diffusers network steers away from a negative prompt.

    Z = Z₊ − scale·Z₋ before the output projection, with Z₊ = softmax(Q·K₊ᵀ/√d)·V₊ of the prompt, Z₋ the same
    queries on keys and values of the negative prompt. Guidance by two calls needs many steps to be of use; a
    one-step model has only this. scale = 0 changes nothing.

    Args:
        net: a diffusers network, or a module that holds one; its attention processors stay as they are.
        states: encoded negative prompt (1 or batch, tokens, features); it may have another number of
            tokens than the prompt, all of which are attended to.
        scale: how far away; the authors use some tenths.

    Raises:
        TypeError: the network has no cross-attention.
        ValueError: states is not (batch, tokens, features).

    Reference: Nguyen et al. 2024, "SNOOPI: Supercharged One-step Diffusion Distillation with Proper
        Guidance", section 4.2 (NASA).
    """
    if states.ndim != 3:
        raise ValueError(f"states must be (1 or batch, tokens, features), got {tuple(states.shape)}")
    crossing = [part for part in net.modules() if getattr(part, "is_cross_attention", False)]
    if not crossing:
        raise TypeError(f"{type(net).__name__} has no cross-attention; a DiT takes `away_from_label`")

    def negative(arguments: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
        hidden = arguments[0] if arguments else named["hidden_states"]
        told = states.to(hidden).expand(len(hidden), -1, -1)
        kept = {name: value for name, value in named.items() if name != "hidden_states"}
        return (hidden,), {**kept, "encoder_hidden_states": told, "attention_mask": None}

    with ExitStack() as stack:
        for part in crossing:
            projection = part.to_out[0]  # type: ignore[index]
            assert isinstance(projection, nn.Module)
            stack.enter_context(_steered(part, projection, negative, scale))
        yield


@contextmanager
def away_from_label(
    net: nn.Module, label: int | Shaped[Tensor, "one_or_batch"], scale: float = 0.3
) -> Iterator[None]:
    """Within the block, the attention of a DiT steers away from a class.

    A DiT hears of its label through the modulation of its tokens, so Z₋ is the attention of the same tokens
    modulated by the embedding of the negative label; Z = Z₊ − scale·Z₋ before the output projection, in every
    block. The modulation after the attention and the feed-forward part stay those of the wanted label.

    Args:
        net: with classes.
        label: class to avoid, for all samples or one for each.
        scale: how far away; 0 changes nothing.

    Raises:
        TypeError: net is no DiT.
        ValueError: it has no classes.

    Reference: as `away_from_states`; the form for modulated tokens is this library's.
    """
    if not isinstance(net, DiT):
        raise TypeError(f"away_from_label takes a DiT, whose attention hears the label; not {type(net)}")
    if net.labels is None:
        raise ValueError("net has no classes to steer away from")
    told: list[Tensor] = []

    def remember(net: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(net, DiT)
        x, t, *rest = (*arguments, *(named[name] for name in ("x", "t") if name in named))
        s = named.get("s", rest[1] if len(rest) > 1 else None)
        avoided = torch.as_tensor(label, device=x.device).reshape(-1).expand(len(x))
        told[:] = [net.embed(x, t, avoided, s)[1]]

    def negative(arguments: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
        return (arguments[0], told[0]), {}

    with ExitStack() as stack:
        stack.callback(net.register_forward_pre_hook(remember, with_kwargs=True).remove)
        for block in net.blocks:
            projection = block.mixed
            assert isinstance(projection, nn.Module)
            stack.enter_context(_steered(block, projection, negative, scale))
        yield


class _Reached(Exception):
    """The output projection has been reached, with this input."""

    def __init__(self, attended: Tensor) -> None:
        super().__init__()
        self.attended = attended


@contextmanager
def _steered(
    part: nn.Module,
    projection: nn.Module,
    negative: Callable[[tuple[Any, ...], dict[str, Any]], Arguments],
    scale: float,
) -> Iterator[None]:
    """Subtract, from what reaches the projection, scale times what reaches it for the negative arguments.

    The module runs a second time as far as its projection, so whatever way it attends in is kept.
    """
    asked: list[Arguments] = []
    exploring: list[bool] = []

    def remember(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not exploring:
            asked[:] = [negative(arguments, named)]

    def subtract(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if exploring:
            raise _Reached(inputs[0])
        arguments, named = asked[0]
        exploring.append(True)
        try:
            part(*arguments, **named)
        except _Reached as reached:
            return (inputs[0] - scale * reached.attended, *inputs[1:])
        finally:
            exploring.clear()
        raise RuntimeError(f"{type(part).__name__} did not use its output projection")

    handles = (
        part.register_forward_pre_hook(remember, with_kwargs=True),
        projection.register_forward_pre_hook(subtract),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
