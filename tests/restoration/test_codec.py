"""The one-step codec: exact bits, times that fit a Gaussian's, and files that are refused."""

import json
import math
import struct
import zlib

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from fewstep.core.paths import VP
from fewstep.core.weights import CheckpointError
from fewstep.restoration.code_stream import read_indices, to_symbols, write_indices
from fewstep.restoration.codec import Codec, CodecError
from fewstep.restoration.codec_file import CodecFile
from fewstep.restoration.commands.codec import decode, encode
from fewstep.restoration.methods.oscar import Oscar, OscarConfig, measure, pseudo_time, quantise
from fewstep.restoration.nets.code_model import BOUNDS, CLASSES, LIMIT, CodeModel, unpredict
from fewstep.restoration.nets.codec import cosine_kernels
from fewstep.restoration.rans import CodeError, Decoder, Encoder

SMALL = OscarConfig(luma=6, chroma=2, network_options={"width": 8, "blocks": 1}, detail=4)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(2, 12) + c) + np.cos(y / rng.uniform(2, 12)) for c in range(3)]
    return (
        (127 + 50 * np.stack(waves, axis=2) + rng.normal(0, 6, (height, width, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    )


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    model = Oscar(SMALL)
    for parameter in (*model.net.parameters(), *model.synthesis.outer.parameters()):
        torch.nn.init.normal_(parameter, std=0.05)
    return Codec(model, "small")


def refit(data: bytes, **changes) -> bytes:
    """The same file with other fields and a checksum that fits them."""
    file = CodecFile.from_bytes(data)
    return CodecFile(**{**vars(file), **changes}).to_bytes()


@pytest.mark.parametrize("lanes", [1, 3, 16])
def test_coded_symbols_come_back_and_cost_little_more_than_their_entropy(lanes):
    rng = np.random.default_rng(0)
    tables = np.array([[1, 3, 65531, 1], [20000, 20000, 20000, 5536], [65533, 1, 1, 1]])
    channels = []
    for n in (2000, 5, 3001):
        classes = rng.integers(3, size=n)
        symbols = np.array([rng.choice(4, p=tables[k] / 65536) for k in classes])
        channels.append((symbols, classes))
    encoder = Encoder(tables, lanes)
    for symbols, classes in channels:
        encoder.add(symbols, classes)
    data = encoder.finish()
    decoder = Decoder(tables, lanes, data)
    for symbols, classes in channels:
        assert np.array_equal(decoder.take(classes), symbols)
    decoder.finish()
    entropy = sum(-np.log2(tables[k, s] / 65536).sum() for s, k in channels)
    assert entropy / 8 < len(data) < 1.01 * entropy / 8 + 4 * lanes
    short = Decoder(tables, lanes, data[: 4 * lanes + 20])
    with pytest.raises(CodeError, match="ends too early"):
        short.take(np.concatenate([classes for _, classes in channels]))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 3), (20, 33)])
def test_indices_come_back_also_large_ones(size):
    model = CodeModel(2, 6, 0.15)
    rng = np.random.default_rng(1)
    indices = np.rint(rng.laplace(0, 3, (6, *size))).astype(np.int32)
    indices[4], indices[2, 0, 0], indices[5, 0, 0] = 0, 40000, -LIMIT
    given = torch.from_numpy(indices)
    coded, body, beyond = write_indices(given, model, 1)
    assert coded == 6
    assert torch.equal(read_indices((6, *size), coded, body, beyond, model, 1), given)
    assert write_indices(torch.zeros(6, *size, dtype=torch.int32), model, 0)[0] == 0
    with pytest.raises(CodeError):
        read_indices((6, *size), coded, body, beyond + b"\0", model, 1)


def test_the_predictor_is_the_median_and_is_undone():
    means = torch.tensor([[[3, 5, 4], [2, 9, -7], [0, 1, 1]]] * 3, dtype=torch.int32)
    rest = to_symbols(means)[0]
    # Medians: of 2, 5, 2 + 5 − 3 at (1, 1); 9, 4, 9 + 4 − 5 at (1, 2); 0, 9, 0 + 9 − 2 at (2, 1); 1, −7,
    # 1 − 7 − 9 at (2, 2).
    assert rest.tolist() == [[3, 2, -1], [-1, 5, -15], [-2, -6, 8]]
    assert np.array_equal(unpredict(rest), means[0].numpy())


def test_whole_number_contexts_are_those_of_training():
    torch.manual_seed(0)
    model = CodeModel(1, 5, 0.1)
    torch.nn.init.uniform_(model.near, 0, 0.5)
    torch.nn.init.uniform_(model.around, 0, 0.1)
    model.fix(np.zeros((CLASSES, 2 * LIMIT + 1)))
    indices = torch.randint(-20, 20, (5, 4, 6), dtype=torch.int32)
    symbols = to_symbols(indices)
    contexts = model.reader(0)
    size = np.minimum(np.abs(symbols), 15)
    for c in range(5):
        expected = np.full((4, 6), float(model.bias_fixed[0, c]))
        for k in range(c):
            for i in range(4):
                for j in range(6):
                    window = size[k, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].sum() - size[k, i, j]
                    expected[i, j] += int(model.near_fixed[c, k]) * size[k, i, j]
                    expected[i, j] += int(model.around_fixed[c, k]) * window
        assert np.array_equal(contexts.classes(4, 6), np.searchsorted(BOUNDS, expected.ravel(), "right"))
        contexts.add(symbols[c])
    assert (model.frequencies >= 1).all()
    assert (model.frequencies.sum(dim=1) == 65536).all()


def test_a_one_bit_quantiser_of_a_gaussian_has_the_known_cosine_and_time():
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cosine, gain = measure(z, 0.7 * z.sign())
    # E|z| = sqrt(2/π); the sign has norm 1.
    assert cosine == pytest.approx(math.sqrt(2 / math.pi), abs=2e-3)
    assert gain == pytest.approx(1 / 0.7, rel=5e-3)
    path = VP.cosine()
    times = pseudo_time(path, torch.tensor([cosine, 0.99, 0.3]))
    a, _, sigma = path.evaluate(times)
    assert torch.allclose(a, torch.tensor([cosine, 0.99, 0.3]).double(), atol=1e-9)
    assert torch.allclose(a**2 + sigma**2, torch.ones(3).double(), atol=1e-12)
    # A state of the path at a time is given that time back.
    x = path.corrupt(z[None, None], times[1:2], torch.randn(1, 1, len(z), dtype=torch.float64))
    assert measure(z, x[0, 0])[0] == pytest.approx(0.99, abs=1e-4)


def test_rounding_has_a_dead_zone_and_passes_gradients_through():
    counts = torch.tensor([-1.7, -0.64, 0.0, 0.5, 0.66, 1.6, 1.66], requires_grad=True)
    made = quantise(counts, 0.15)
    assert made.tolist() == [-2.0, 0.0, 0.0, 0.0, 1.0, 1.0, 2.0]
    (made * torch.arange(7.0)).sum().backward()
    assert counts.grad is not None
    assert counts.grad.tolist() == list(range(7))


def test_a_fresh_codec_is_the_cosine_transform():
    kernels = cosine_kernels(64, 64).flatten(1)
    assert torch.allclose(kernels @ kernels.T, torch.eye(192), atol=1e-5)
    torch.manual_seed(0)
    model = Oscar(
        OscarConfig(luma=64, chroma=64, steps=(0.5, 0.02), network_options={"width": 8, "blocks": 1})
    )
    image = torch.rand(1, 3, 16, 24) * 1.6 - 0.8
    assert (model.synthesis(model.latent(image)) - image).abs().max() < 1e-4
    finest = (model.image(model.indices(image, 1), 1) - image).square().mean()
    assert finest < 2 * 0.02**2 / 12 + 1e-4


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (37, 21), (530, 24), (24, 530)])
def test_every_size_comes_back(codec, size):
    image = photo(*size)
    made = codec.decode(codec.encode(image, 8))
    assert (made.size, made.mode) == (size[::-1], "RGB")


def test_strips_and_tiles_make_no_difference(codec):
    image = photo(600, 540)
    signed = torch.from_numpy(image.transpose(2, 0, 1)[None].copy()).float() / 127.5 - 1
    indices = codec.model.indices(signed, 5)
    assert torch.equal(codec._indices(image, 5), indices[0])
    whole = codec.model.image(indices, 5)[0].add(1).mul(127.5)[:, :600, :540]
    tiled = codec._pixels(indices[0], 5)[:600, :540].transpose(2, 0, 1)
    assert np.abs(tiled - whole.numpy()).max() < 0.501


def test_more_bits_at_finer_rates_and_nothing_but_colours_is_kept(codec):
    image = photo(64, 72)
    sizes = [len(codec.encode(image, rate)) for rate in codec.rates]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]
    assert codec.encode(image, 3) == codec.encode(Image.fromarray(image), 3)
    grey, alpha = image[:, :, 0], np.dstack([image, np.full((64, 72), 255, np.uint8)])
    assert codec.encode(grey, 3) == codec.encode(np.dstack([grey] * 3), 3)
    assert codec.encode(alpha, 3) == codec.encode(image, 3)


def test_what_is_no_whole_file_is_refused_in_one_sentence(codec):
    data = codec.encode(photo(20, 30), 4)
    for length in range(len(data)):
        with pytest.raises(CodecError):
            codec.decode(data[:length])
    for place in range(0, len(data), 3):
        with pytest.raises(CodecError):
            codec.decode(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
    for bad, message in {
        data[:30]: "cut short",
        data + b"\0": "too long",
        b"\x89PNG" + data[4:]: "does not begin with FSCO",
        data[:4] + b"\2" + data[5:]: "version 2",
        refit(data, digest=b"12345678", name="other"): "other weights, of 'other'",
        refit(data, rate=8): "rate 9",
        refit(data, coded=11): "11 channels",
        refit(data, width=2**31, height=2**31): "more than 100 megapixels",
        refit(data, width=0): "0×20 pixels",
        refit(data, body=b""): "damaged: the coded part is too short",
        refit(data, body=bytes(4) + CodecFile.from_bytes(data).body[4:]): "damaged",
    }.items():
        with pytest.raises(CodecError, match=message) as refused:
            codec.decode(bad)
        assert "\n" not in str(refused.value)
    name = data[:8] + struct.pack("<I", 31) + data[12:]
    with pytest.raises(CodecError, match="checksum"):
        codec.decode(name)
    assert zlib.crc32(data[:-4]) == struct.unpack("<I", data[-4:])[0]


def test_bad_arguments_are_refused(codec):
    for rate in (0, 9, True):
        with pytest.raises(ValueError, match="rate must be one of 1 … 8"):
            codec.encode(photo(8, 8), rate)
    with pytest.raises(ValueError, match="steps must be"):
        OscarConfig(steps=(0.1, 0.2))
    with pytest.raises(ValueError, match="dead_zone"):
        OscarConfig(dead_zone=0.5)
    with pytest.raises(ValueError, match="luma must lie in"):
        OscarConfig(luma=65)
    with pytest.raises(ValueError, match=r"cosine must lie in \(0, 1\)"):
        pseudo_time(VP.cosine(), torch.tensor([1.0]))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Codec.from_pretrained("nowhere")


def test_commands_code_and_decode_files(codec, tmp_path):
    codec.model.save_pretrained(tmp_path / "small")
    app = typer.Typer()
    app.command("encode")(encode)
    app.command("decode")(decode)
    Image.fromarray(photo(30, 41)).save(tmp_path / "a.png")
    model = ["--model", str(tmp_path / "small"), "--device", "cpu"]

    def run(*arguments: str):
        return CliRunner().invoke(app, [*arguments, *model])

    coded = run("encode", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.fsc"), "--rate", "5", "--json")
    assert coded.exit_code == 0
    (file,) = json.loads(coded.stdout)["files"]
    assert file["details"]["bytes"] == (tmp_path / "a.fsc").stat().st_size
    assert run("decode", str(tmp_path / "a.fsc"), "-o", str(tmp_path / "b.png")).exit_code == 0
    expected = codec.decode((tmp_path / "a.fsc").read_bytes())
    with Image.open(tmp_path / "b.png") as made:
        assert np.array_equal(np.asarray(made), np.asarray(expected))
    (tmp_path / "bad.fsc").write_bytes((tmp_path / "a.fsc").read_bytes()[:-9])
    bad = run("decode", str(tmp_path / "bad.fsc"), "-o", str(tmp_path / "c.png"))
    assert bad.exit_code == 1
    assert "cut short" in bad.stderr
    assert not (tmp_path / "c.png").exists()
    assert run("encode", str(tmp_path / "a.png"), "--rate", "9").exit_code == 2
