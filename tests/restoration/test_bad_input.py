"""Bad input: one sentence that names the file, the right exit code, the others done, nothing half-written."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import data

from fewstep.restoration.images import ImageError, Picture, read, write

PHOTO = data.astronaut()[60:80, 150:180]


def truncated_jpeg(path: Path) -> None:
    Image.fromarray(np.tile(PHOTO, (8, 8, 1))).save(path, "JPEG", quality=95)
    path.write_bytes(path.read_bytes()[:9000])


def truncated_png(path: Path) -> None:
    Image.fromarray(np.tile(PHOTO, (8, 8, 1))).save(path, "PNG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_deep_png(path: Path) -> None:
    write(Picture(PHOTO.astype(np.uint16) * 251), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_webp(path: Path) -> None:
    Image.fromarray(PHOTO).save(path, "WEBP", lossless=True)
    path.write_bytes(path.read_bytes()[:200])


def truncated_tiff(path: Path) -> None:
    tifffile.imwrite(path, PHOTO.astype(np.uint16), photometric="rgb")
    path.write_bytes(path.read_bytes()[:1500])


def flipped_bits(path: Path) -> None:
    Image.fromarray(np.tile(PHOTO, (8, 8, 1))).save(path, "PNG")
    content = bytearray(path.read_bytes())
    for k in range(500, 900):
        content[k] ^= 0x5A
    path.write_bytes(content)


def text_file(path: Path) -> None:
    path.write_text("This is no image.\n" * 20)


def empty_file(path: Path) -> None:
    path.touch()


def one_byte(path: Path) -> None:
    path.write_bytes(b"\x89")


def program(path: Path) -> None:
    path.write_bytes(b"\x7fELF" + bytes(200))


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


def nan_tiff(path: Path) -> None:
    values = (PHOTO / 255).astype(np.float32)
    values[3, 4, 1] = np.nan
    tifffile.imwrite(path, values, photometric="rgb")


def infinite_tiff(path: Path) -> None:
    values = (PHOTO / 255).astype(np.float32)
    values[3, 4, 1] = np.inf
    tifffile.imwrite(path, values, photometric="rgb")


def unscaled_tiff(path: Path) -> None:
    tifffile.imwrite(path, PHOTO.astype(np.float32), photometric="rgb")


def integer_tiff(path: Path) -> None:
    tifffile.imwrite(path, PHOTO.astype(np.int32), photometric="rgb")


def volume_tiff(path: Path) -> None:
    tifffile.imwrite(
        path, np.zeros((5, 20, 30, 7), np.uint16), photometric="minisblack", planarconfig="contig"
    )


def bomb(path: Path, depth: int = 8) -> None:
    """A small file that says it has 3600 megapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, depth, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))


def deep_bomb(path: Path) -> None:
    bomb(path, 16)


def tiff_bomb(path: Path) -> None:
    tifffile.imwrite(path, PHOTO.astype(np.uint16), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages.first.tags[name].overwrite(60000)


BAD = {
    "cut.jpg": (truncated_jpeg, "truncated"),
    "cut.png": (truncated_png, "truncated"),
    "cut-deep.png": (truncated_deep_png, "truncated"),
    "cut.webp": (truncated_webp, "truncated"),
    "cut.tif": (truncated_tiff, "truncated"),
    "bits.png": (flipped_bits, "damaged"),
    "text.png": (text_file, "not a JPEG, PNG, WebP or TIFF"),
    "text.tif": (text_file, "not a JPEG, PNG, WebP or TIFF"),
    "empty.jpg": (empty_file, "0 bytes"),
    "byte.png": (one_byte, "not a JPEG, PNG, WebP or TIFF"),
    "program.jpg": (program, "not a JPEG, PNG, WebP or TIFF"),
    "script.png": (postscript, "not a JPEG, PNG, WebP or TIFF"),
    "nan.tiff": (nan_tiff, "1 values that are not finite"),
    "infinite.tiff": (infinite_tiff, "not finite"),
    "unscaled.tiff": (unscaled_tiff, r"\[0, 1\]"),
    "integer.tif": (integer_tiff, "int32"),
    "volume.tif": (volume_tiff, "channels"),
    "bomb.png": (bomb, "3600 megapixels.*limit of 100"),
    "deep-bomb.png": (deep_bomb, "3600 megapixels.*limit of 100"),
    "bomb.tif": (tiff_bomb, "3600 megapixels.*limit of 100"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_is_refused_in_one_sentence(tmp_path, name):
    make, words = BAD[name]
    make(tmp_path / name)
    with pytest.raises(ImageError, match=words) as caught:
        read(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name))
    assert "\n" not in message
    assert len(message) < 400


def test_what_is_no_file(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png"):
        read(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is a folder"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read(tmp_path / "pipe.png")


def test_the_limit_can_be_moved(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="30×20"):
        read(tmp_path / "a.png", max_megapixels=0.0005)
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.fixture(scope="module")
def mixed(fewstep, tmp_path_factory):
    """A folder with every bad file between two good ones, restored once."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "in").mkdir()
    for name, (make, _) in BAD.items():
        make(folder / "in" / name)
    for name in ("a-good.png", "z-good.jpg"):
        Image.fromarray(PHOTO).save(folder / "in" / name)
    return folder, fewstep("in", "-o", "out", "--json", cwd=folder)


def test_the_others_are_done(mixed):
    folder, done = mixed
    assert done.returncode == 1
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["a-good_x4.png", "z-good_x4.jpg"]
    for name in ("a-good_x4.png", "z-good_x4.jpg"):
        assert read(folder / "out" / name).pixels.shape == (80, 120, 3)


def test_every_bad_one_has_its_line(mixed):
    _, done = mixed
    text = done.stderr.decode()
    assert "Traceback" not in text
    lines = text.splitlines()
    assert f"{len(BAD)} of {len(BAD) + 2} failed" in lines[0]
    for name in BAD:
        assert sum(line.strip().startswith(f"in/{name}: ") for line in lines) == 1, name
    assert len(lines) == len(BAD) + 1
    report = json.loads(done.stdout)
    assert (report["done"], report["failed"]) == (2, len(BAD))


def check(done, code: int, *words: str) -> None:
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert "Traceback" not in text
    flat = " ".join(text.replace("│", " ").split())
    for word in words:
        assert word in flat, text


def test_inputs_that_mean_nothing(fewstep, fewstep_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    check(fewstep_here("empty", "-o", "out"), 1, "empty", "folder without files")
    check(fewstep_here("none.png"), 1, "none.png", "does not exist")
    check(fewstep_here("*.png"), 1, "*.png", "matches no file")
    check(fewstep_here(), 2, "no input")
    check(fewstep("-", stdin=b""), 1, "0 bytes")
    check(fewstep("-", stdin=b"no image at all"), 1, "not a JPEG")
    assert sorted(os.listdir(tmp_path)) == ["empty"]


def test_outputs_that_cannot_be(fewstep_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    # Input = output, by name and through a link.
    check(fewstep_here("a.png", "-o", "a.png"), 1, "a.png", "overwrite")
    (tmp_path / "link.png").symlink_to("a.png")
    check(fewstep_here("a.png", "-o", "link.png"), 1, "overwrite")
    check(fewstep_here("a.png", "--suffix", "", "-o", "."), 1, "a.png", "overwrite")
    (tmp_path / "link.png").unlink()
    assert (tmp_path / "a.png").read_bytes() == before
    # A file where a folder should be.
    (tmp_path / "file").write_text("")
    check(fewstep_here("a.png", "-o", "file/out.png"), 1, "file")
    check(fewstep_here("a.png", "-o", "/proc/no/out.png"), 1, "/proc")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "file"]


def test_a_sample_must_not_overwrite_an_input(fewstep_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    Image.fromarray(PHOTO).save(tmp_path / "a_x4-2.png")
    before = (tmp_path / "a_x4-2.png").read_bytes()
    done = fewstep_here("a.png", "a_x4-2.png", "--samples", "2")
    check(done, 1, "a.png", "overwrite")
    assert (tmp_path / "a_x4-2.png").read_bytes() == before
    assert not (tmp_path / "a_x4-1.png").exists()


def test_options_that_cannot_be(fewstep_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    for arguments, word in (
        (("--tile", "x"), "tile"),
        (("--tile", "3"), "tile"),
        (("--mode", "sharp"), "faithful or detailed"),
        (("--steps", "0"), "--steps"),
        (("--steps", "9", "--mode", "detailed"), "steps"),
        (("--ext", "gif"), "--ext"),
        (("--suffix", "../x"), "--suffix"),
        (("--samples", "0"), "--samples"),
        (("-s", "0"), "scale"),
        (("-s", "nan"), "scale"),
        (("--device", "warp"), "--device"),
        (("--dtype", "int4"), "--dtype"),
        (("--method", "magic"), "--method"),
        (("--model", "nothing-like-that"), "nothing-like-that"),
        (("-o", "-", "--samples", "2"), "standard output"),
        (("--frobnicate",), "--frobnicate"),
    ):
        check(fewstep_here("a.png", *arguments), 2, word)
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_result_that_its_format_cannot_hold_is_refused_before_the_work(fewstep_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((1, 5000, 3), np.uint8)).save(tmp_path / "a.webp")
    check(fewstep_here("a.webp"), 1, "a.webp", "WEBP", "16383")
    assert os.listdir(tmp_path) == ["a.webp"]


def test_a_damaged_model_is_named(fewstep, tmp_path, tiny_folder):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((tiny_folder / "config.json").read_text())
    (tmp_path / "model" / "model.safetensors").write_bytes(b"garbage")
    done = fewstep("a.png", "--model", "model", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert b"Traceback" not in done.stderr
    assert b"model" in done.stderr
