"""The layout of a file of the one-step codec; nothing in it is ever executed."""

import struct
import zlib
from dataclasses import dataclass

MAGIC = b"FSCO"
VERSION = 1
# Magic, version, rate, channels that are coded, length of the checkpoint's name, width, height, lengths of
# the two parts, hash of the checkpoint.
_HEADER = struct.Struct("<4sBBBBIIII8s")
_SUM = struct.Struct("<I")


class CodecError(ValueError):
    """A file that cannot be decoded; the message is one sentence that says why."""


@dataclass(frozen=True)
class CodecFile:
    """What a file says.

    Args:
        width: of the image in pixels.
        height: of the image in pixels.
        rate: number of the rate, from 0.
        coded: channels that are coded; the others are 0.
        name: of the checkpoint.
        digest: 8 bytes that tell its weights from others.
        body: coded indices.
        beyond: what large ones have beyond the code's limit.
    """

    width: int
    height: int
    rate: int
    coded: int
    name: str
    digest: bytes
    body: bytes
    beyond: bytes

    def to_bytes(self) -> bytes:
        """The file."""
        name = self.name.encode("utf-8")[:255].decode("utf-8", "ignore").encode("utf-8")
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            self.rate,
            self.coded,
            len(name),
            self.width,
            self.height,
            len(self.body),
            len(self.beyond),
            self.digest,
        )
        whole = header + name + self.body + self.beyond
        return whole + _SUM.pack(zlib.crc32(whole))

    @classmethod
    def from_bytes(cls, data: bytes) -> "CodecFile":
        """Read a file.

        Raises:
            CodecError: it is of another kind or version, cut short, too long, or damaged.
        """
        if data[:4] != MAGIC:
            raise CodecError("is no file of this codec: it does not begin with FSCO")
        if len(data) < _HEADER.size + _SUM.size:
            raise CodecError(f"is cut short: it has {len(data)} bytes, fewer than a header")
        _, version, rate, coded, named, width, height, body, beyond, digest = _HEADER.unpack_from(data)
        if version != VERSION:
            raise CodecError(f"is of version {version} of the format; this program reads version {VERSION}")
        length = _HEADER.size + named + body + beyond + _SUM.size
        if len(data) != length:
            what = "cut short" if len(data) < length else "too long"
            raise CodecError(f"is {what}: it has {len(data)} bytes where its header says {length}")
        (expected,) = _SUM.unpack_from(data, length - _SUM.size)
        if zlib.crc32(data[: length - _SUM.size]) != expected:
            raise CodecError("is damaged: its checksum is wrong")
        if not (width and height):
            raise CodecError(f"says that its image has {width}×{height} pixels")
        try:
            name = data[_HEADER.size : _HEADER.size + named].decode("utf-8")
        except UnicodeDecodeError:
            raise CodecError("is damaged: the name of its checkpoint is no text") from None
        begin = _HEADER.size + named
        parts = data[begin : begin + body], data[begin + body : begin + body + beyond]
        return cls(width, height, rate, coded, name, digest, *parts)
