"""Photographs to a few bytes and back: the one-step codec for users."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.core.checkpoints import resolve

from .code_stream import read_indices, write_indices
from .codec_file import CodecError, CodecFile
from .data import to_signed
from .images import Picture, from_array, from_pil
from .images.picture import convert_depth
from .methods.oscar import Oscar
from .nets.codec import CELL
from .rans import CodeError

__all__ = ["Codec", "CodecError"]

MAX_MEGAPIXELS = 100.0
# Cells of a strip of the analysis and of a side of a tile of the decoder.
_STRIP, _TILE = 64, 64


class Codec:
    """A trained codec: `encode` makes bytes of an image, `decode` an image of bytes.

    8-bit colour is kept: no metadata, no alpha channel (transparent parts are laid over white), no further
    bits. Indices are decoded to the same whole numbers on every machine; the network that makes pixels of
    them may differ in the last bit.

    Args:
        model: the networks.
        name: of the checkpoint, which is written to files.
        device: where the networks run.

    Example:
        >>> from fewstep.restoration.methods.oscar import OscarConfig
        >>> small = OscarConfig(luma=4, chroma=1, network_options={"width": 8, "blocks": 1}, detail=2)
        >>> codec = Codec(Oscar(small), "small")
        >>> data = codec.encode(np.zeros((5, 9, 3), np.uint8), rate=1)
        >>> codec.decode(data).size
        (9, 5)
    """

    def __init__(self, model: Oscar, name: str, device: str = "cpu") -> None:
        self.model = model.eval().to(device)
        self.name, self.device = name, torch.device(device)
        self.digest = digest_of(model)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu") -> Codec:
        """Load a codec: a name shipped with the package, a folder, or a Hub id.

        Raises:
            CheckpointError: it cannot be found or read, or is no codec.
        """
        folder = resolve(name, "fewstep.restoration")
        return cls(Oscar.from_pretrained(folder), Path(name).name, device)

    @property
    def rates(self) -> range:
        """The rates, from the fewest bits to the most."""
        return range(1, self.model.rates + 1)

    @torch.no_grad()
    def encode(self, image: np.ndarray | Image.Image | Picture, rate: int) -> bytes:
        """Code an image.

        Args:
            image: of any size; arrays are (height, width) or (height, width, channels) in 8 or 16 bit, or
                floating point in [0, 1].
            rate: one of `rates`.

        Returns:
            The content of a file.

        Raises:
            ValueError: the rate is none of `rates`, or the image is none.
        """
        if isinstance(rate, bool) or rate not in self.rates:
            raise ValueError(f"rate must be one of 1 … {self.model.rates}, got {rate!r}")
        pixels = _colours(image)
        indices = self._indices(pixels, rate - 1)
        coded, body, beyond = write_indices(indices, self.model.code, rate - 1)
        height, width = pixels.shape[:2]
        return CodecFile(width, height, rate - 1, coded, self.name, self.digest, body, beyond).to_bytes()

    @torch.no_grad()
    def decode(self, data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
        """Decode an image.

        Args:
            data: the content of a file.
            max_megapixels: larger images are refused before memory is taken for them.

        Returns:
            An RGB image of 8 bit.

        Raises:
            CodecError: the data is damaged, was made by another checkpoint, or the image is too large.
        """
        file = CodecFile.from_bytes(bytes(data))
        if file.digest != self.digest:
            raise CodecError(f"was made with other weights, of {file.name!r}, than {self.name!r} has")
        channels = self.model.config.channels
        if file.rate >= self.model.rates or file.coded > channels:
            raise CodecError(
                f"asks for rate {file.rate + 1} and {file.coded} channels, which {self.name!r} has not"
            )
        if file.width * file.height > max_megapixels * 1e6:
            size = f"{file.width}×{file.height}"
            raise CodecError(f"holds an image of {size} pixels, more than {max_megapixels:g} megapixels")
        shape = (channels, -(-file.height // CELL), -(-file.width // CELL))
        try:
            indices = read_indices(shape, file.coded, file.body, file.beyond, self.model.code, file.rate)
        except CodeError as error:
            raise CodecError(f"is damaged: {error}") from None
        return Image.fromarray(self._pixels(indices, file.rate)[: file.height, : file.width])

    def _indices(self, pixels: np.ndarray, rate: int) -> Tensor:
        """Strip by strip, each with the half cell around it on which its latent depends."""
        rows, parts = -(-pixels.shape[0] // CELL), []
        for top in range(0, rows, _STRIP):
            above, below = min(top, 1), int(top + _STRIP < rows)
            strip = pixels[(top - above) * CELL : (top + _STRIP + below) * CELL]
            found = self.model.indices(to_signed(strip[None]).to(self.device), rate)[0].cpu()
            parts.append(found[:, above : found.shape[1] - below])
        return torch.cat(parts, dim=1)

    def _pixels(self, indices: Tensor, rate: int) -> np.ndarray:
        """Tile by tile, each with as many cells around it as a cell depends on."""
        _, h, w = indices.shape
        reach, out = self.model.reach, np.empty((h * CELL, w * CELL, 3), np.uint8)
        for top in range(0, h, _TILE):
            for left in range(0, w, _TILE):
                bottom, right = min(top + _TILE, h), min(left + _TILE, w)
                y, x = max(top - reach, 0), max(left - reach, 0)
                window = indices[None, :, y : bottom + reach, x : right + reach].to(self.device)
                made = self.model.image(window, rate)[0, :, (top - y) * CELL :, (left - x) * CELL :]
                made = made[:, : (bottom - top) * CELL, : (right - left) * CELL]
                levels = made.float().add(1).mul(127.5).round().to(torch.uint8)
                block = levels.permute(1, 2, 0).cpu().numpy()
                out[top * CELL : bottom * CELL, left * CELL : right * CELL] = block
        return out


def digest_of(model: Oscar) -> bytes:
    """8 bytes of SHA-256 over all weights and tables, in float32 where they are floating point."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        kept = value.float() if value.is_floating_point() else value
        found.update(name.encode() + b"\0" + kept.cpu().contiguous().numpy().tobytes())
    return found.digest()[:8]


def _colours(image: np.ndarray | Image.Image | Picture) -> np.ndarray:
    """RGB in 8 bit over white."""
    if isinstance(image, Image.Image):
        image = from_pil(image)
    picture = image if isinstance(image, Picture) else from_array(np.asarray(image))
    pixels = convert_depth(picture.pixels, np.uint8)
    if picture.has_alpha:
        alpha = pixels[:, :, -1:] / 255
        pixels = np.rint(pixels[:, :, :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
