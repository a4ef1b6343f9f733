"""Indices of a quantised latent to bytes and back, exactly."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .nets.code_model import LIMIT, MEANS, CodeModel, predicted, unpredict
from .rans import CodeError, Decoder, Encoder

# Symbols of a channel per lane, at least, and lanes at most.
_LANE, _LANES = 128, 1024
# Larger indices are not made: the image would have to leave [-1, 1] by far.
_LARGEST = 2**20


def to_symbols(indices: Int[Tensor, "channels h w"]) -> np.ndarray:
    """What is coded of indices: the means of the cells less what is predicted of them, the rest as it is."""
    whole = indices.cpu().double()
    whole[:MEANS] -= predicted(whole[None, :MEANS])[0]
    return whole.long().numpy()


def write_indices(
    indices: Int[Tensor, "channels h w"], code: CodeModel, rate: int
) -> tuple[int, bytes, bytes]:
    """Code indices.

    Args:
        indices: whole numbers.
        code: the model of the indices.
        rate: number of the rate.

    Returns:
        How many channels are coded (the others are 0 throughout), the coded indices, and what those of them
        that are as large as LIMIT have beyond it.
    """
    symbols = to_symbols(indices)
    used = np.flatnonzero(symbols.any(axis=(1, 2)))
    coded = int(used[-1]) + 1 if len(used) else 0
    contexts, places = code.reader(rate), symbols.shape[1] * symbols.shape[2]
    encoder, beyond = Encoder(code.frequencies.cpu().numpy(), _lanes(places)), bytearray()
    for channel in symbols[:coded]:
        flat = channel.ravel()
        encoder.add(np.clip(flat, -LIMIT, LIMIT) + LIMIT, contexts.classes(*channel.shape))
        contexts.add(channel)
        for more in np.abs(flat[np.abs(flat) >= LIMIT]).tolist():
            _write_number(beyond, more - LIMIT)
    return coded, encoder.finish(), bytes(beyond)


def read_indices(
    shape: tuple[int, int, int], coded: int, body: bytes, beyond: bytes, code: CodeModel, rate: int
) -> Int[Tensor, "channels h w"]:
    """Indices from what `write_indices` returned.

    Args:
        shape: of the indices.
        coded: channels that are coded.
        body: the coded indices.
        beyond: the rest of large ones.
        code: the same model of the indices.
        rate: number of the rate.

    Raises:
        CodeError: the bytes are not those of an encoder with this model.
    """
    h, w = shape[1:]
    contexts = code.reader(rate)
    decoder, numbers = Decoder(code.frequencies.cpu().numpy(), _lanes(h * w), body), _Numbers(beyond)
    out = np.zeros(shape, np.int32)
    for c in range(coded):
        flat = decoder.take(contexts.classes(h, w)).astype(np.int64) - LIMIT
        for place in np.flatnonzero(np.abs(flat) == LIMIT):
            flat[place] += np.sign(flat[place]) * numbers.take()
        channel = flat.reshape(h, w)
        contexts.add(channel)
        out[c] = unpredict(channel) if c < MEANS else channel
    decoder.finish()
    numbers.finish()
    return torch.from_numpy(out)


def _lanes(places: int) -> int:
    return max(1, min(_LANES, places // _LANE))


def _write_number(out: bytearray, number: int) -> None:
    """Seven bits at a time, the lowest first; the eighth says that more follow."""
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


class _Numbers:
    """Reads what `_write_number` wrote."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def take(self) -> int:
        number = shift = 0
        while True:
            if self.place >= len(self.data) or number > _LARGEST:
                raise CodeError("the part of large numbers is wrong")
            byte = self.data[self.place]
            self.place += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    def finish(self) -> None:
        if self.place != len(self.data):
            raise CodeError("the part of large numbers is too long")
