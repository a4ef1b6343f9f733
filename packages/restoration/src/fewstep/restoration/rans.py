"""Range asymmetric numeral systems: whole numbers to bytes, near their entropy, many at a time."""

import numpy as np

from .nets.code_model import PRECISION

_LOW = 2**16
_MASK = 2**PRECISION - 1


class CodeError(ValueError):
    """Coded data that no encoder made."""


class Encoder:
    """Collects symbols with the classes of their frequencies, in the order in which they will be decoded.

    Lane k codes every `lanes`-th symbol of a channel from the k-th on; all lanes advance together and write
    their words of 16 bits to one sequence.

    Args:
        frequencies: (classes, symbols) whole numbers of at least 1 whose rows sum to 2^16.
        lanes: number of states, each of which costs 4 bytes.

    Reference: Duda 2013, "Asymmetric numeral systems"; Giesen 2014, "Interleaved entropy coders".
    """

    def __init__(self, frequencies: np.ndarray, lanes: int) -> None:
        self.frequency = frequencies.astype(np.uint64)
        self.start = np.cumsum(self.frequency, axis=1, dtype=np.uint64) - self.frequency
        self.lanes = lanes
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, symbols: np.ndarray, classes: np.ndarray) -> None:
        """Add a channel of symbols, both (n,)."""
        self._parts.append((self.frequency[classes, symbols], self.start[classes, symbols]))

    def finish(self) -> bytes:
        """All that was added: the states, then the words."""
        shift, low = np.uint64(PRECISION), np.uint64(16)
        x = np.full(self.lanes, _LOW, np.uint64)
        words: list[np.ndarray] = []
        # What is decoded first is encoded last, and its words are written last.
        for frequency, start in reversed(self._parts):
            for begin in reversed(range(0, len(frequency), self.lanes)):
                f, c = frequency[begin : begin + self.lanes], start[begin : begin + self.lanes]
                state = x[: len(f)]
                full = state >= (f << low)
                if full.any():
                    words.append(state[full][::-1].astype("<u2"))
                    state = np.where(full, state >> low, state)
                whole = state // f
                x[: len(f)] = (whole << shift) + (state - whole * f) + c
        body = np.concatenate(words)[::-1] if words else np.zeros(0, "<u2")
        return x.astype("<u4").tobytes() + body.astype("<u2").tobytes()


class Decoder:
    """Reads what an `Encoder` with the same frequencies and lanes has written.

    Args:
        frequencies: see `Encoder`.
        lanes: see `Encoder`.
        data: its bytes.

    Raises:
        CodeError: too short.
    """

    def __init__(self, frequencies: np.ndarray, lanes: int, data: bytes) -> None:
        if len(data) < 4 * lanes or len(data) % 2:
            raise CodeError("the coded part is too short")
        self.frequency = frequencies.astype(np.uint64)
        self.start = np.cumsum(self.frequency, axis=1, dtype=np.uint64) - self.frequency
        self.lanes = lanes
        symbols = np.arange(frequencies.shape[1], dtype=np.uint8)
        self.symbol = np.stack([np.repeat(symbols, row) for row in frequencies])
        self.x = np.frombuffer(data, "<u4", lanes).astype(np.uint64)
        self.words = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.uint64)
        self.read = 0

    def take(self, classes: np.ndarray) -> np.ndarray:
        """The next symbols, one for each of the classes (n,).

        Raises:
            CodeError: the data ends before.
        """
        shift, low, mask = np.uint64(PRECISION), np.uint64(16), np.uint64(_MASK)
        out = np.empty(len(classes), np.uint8)
        for begin in range(0, len(classes), self.lanes):
            kind = classes[begin : begin + self.lanes]
            state = self.x[: len(kind)]
            slot = state & mask
            symbol = self.symbol[kind, slot]
            out[begin : begin + len(kind)] = symbol
            state = self.frequency[kind, symbol] * (state >> shift) + slot - self.start[kind, symbol]
            short = np.flatnonzero(state < _LOW)
            if len(short):
                words = self.words[self.read : self.read + len(short)]
                if len(words) < len(short):
                    raise CodeError("the coded part ends too early")
                state[short] = (state[short] << low) | words
                self.read += len(short)
            self.x[: len(kind)] = state
        return out

    def finish(self) -> None:
        """Make sure that nothing is left.

        Raises:
            CodeError: words are left, or a state is not the one that an encoder begins with.
        """
        if self.read != len(self.words) or bool((self.x != _LOW).any()):
            raise CodeError("the coded part does not end where it should")
