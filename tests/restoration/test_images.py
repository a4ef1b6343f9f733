"""Photographs survive the way from file to file: values, depth, mode, alpha."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from fewstep.restoration.images import (
    ImageError,
    Picture,
    check_fits,
    encode,
    extension_format,
    read,
    write,
)

from .image_samples import HEIGHT, WIDTH, camera_exif, pixels

CHANNELS = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGBA"}


@pytest.mark.parametrize("extension", ["png", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", CHANNELS, ids=CHANNELS.get)
def test_lossless_formats_keep_every_value(tmp_path, channels, dtype, extension):
    picture = Picture(pixels(channels, dtype))
    again = read(write(picture, tmp_path / f"a.{extension}"))
    assert again.pixels.dtype == dtype
    np.testing.assert_array_equal(again.pixels, picture.pixels)
    assert again.format == extension_format(f"a.{extension}")
    assert again.lossless
    assert not again.notes


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", CHANNELS, ids=CHANNELS.get)
def test_other_software_reads_our_files(tmp_path, channels, dtype):
    """libpng and libtiff are the judges of the writers."""
    picture = Picture(pixels(channels, dtype), exif=camera_exif(1).tobytes())
    png, tiff = write(picture, tmp_path / "a.png"), write(picture, tmp_path / "a.tif")
    for values in (imagecodecs.png_decode(png.read_bytes()), tifffile.imread(tiff)):
        np.testing.assert_array_equal(values.reshape(picture.pixels.shape), picture.pixels)
    if dtype == np.uint8:
        for file in (png, tiff):
            with Image.open(file) as image:
                np.testing.assert_array_equal(np.asarray(image).reshape(picture.pixels.shape), picture.pixels)


def test_png_writer_uses_every_filter_and_many_strips(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.restoration.images.png._STRIP_BYTES", 500)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:60, :50]
    rows = [rng.integers(0, 256, (60, 50)), 3 * x % 256, 5 * y % 256, 2 * x + 3 * y, x * x // 12 + y * y // 9]
    image = np.concatenate(rows).astype(np.uint8)[:, :, None]
    write(Picture(image), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(np.asarray(opened), image[:, :, 0])
    data = (tmp_path / "a.png").read_bytes()
    filters = set(zlib.decompress(_chunks(data, b"IDAT"))[:: 50 + 1])
    assert len(filters) >= 4


def _chunks(data: bytes, kind: bytes) -> bytes:
    at, found = 8, b""
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == kind:
            found += data[at + 8 : at + 8 + size]
        at += size + 12
    return found


def test_float_tiff_stays_float(tmp_path):
    again = read(write(Picture(pixels(3, np.float32)), tmp_path / "a.tiff"))
    assert again.pixels.dtype == np.float32
    np.testing.assert_array_equal(again.pixels, pixels(3, np.float32))
    # PNG has no float: 16 bit.
    assert read(write(again, tmp_path / "a.png")).pixels.dtype == np.uint16


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", pixels(3, np.float32).astype(dtype), photometric="rgb")
    again = read(tmp_path / "a.tif")
    assert again.pixels.dtype == np.float32
    np.testing.assert_allclose(again.pixels, pixels(3, np.float32), atol=5e-4)


@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_lossy_formats_are_close_and_keep_the_mode_they_have(tmp_path, extension):
    smooth = (pixels(3) // 4 + 90).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(smooth).resize((64, 48), Image.Resampling.BICUBIC))
    again = read(write(Picture(smooth, lossless=False), tmp_path / f"a.{extension}"))
    assert again.pixels.shape == smooth.shape
    assert np.abs(again.pixels.astype(int) - smooth).mean() < 4
    assert not again.lossless


def test_webp_is_lossless_when_the_source_was(tmp_path):
    again = read(write(Picture(pixels(4)), tmp_path / "a.webp"))
    np.testing.assert_array_equal(again.pixels, pixels(4))
    assert again.lossless


def test_grey_jpeg_stays_grey(tmp_path):
    write(Picture(pixels(1)), tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.mode == "L"
    assert read(tmp_path / "a.jpg").pixels.shape == (HEIGHT, WIDTH, 1)


def test_jpeg_lays_alpha_over_white(tmp_path):
    clear = np.zeros((16, 16, 4), np.uint8)
    clear[:, :, :3] = 40
    clear[:, 8:, 3] = 255
    flat = read(write(Picture(clear), tmp_path / "a.jpg")).pixels
    assert flat.shape == (16, 16, 3)
    assert flat[:, :8].min() > 250
    assert flat[:, 8:].max() < 45


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.fromarray(pixels(3)).quantize(16)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png", transparency=3)
    opaque, clear = read(tmp_path / "a.png"), read(tmp_path / "b.png")
    np.testing.assert_array_equal(opaque.pixels, np.asarray(image.convert("RGB")))
    assert clear.pixels.shape[2] == 4
    np.testing.assert_array_equal(clear.pixels[:, :, 3] == 0, np.asarray(image) == 3)
    assert "palette" in opaque.notes[0]


def test_one_bit_becomes_grey(tmp_path):
    Image.fromarray(pixels(1)[:, :, 0] > 100).save(tmp_path / "a.png")
    picture = read(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels[:, :, 0], (pixels(1)[:, :, 0] > 100) * 255)
    assert "black and white" in picture.notes[0]


def test_a_transparent_colour_becomes_alpha(tmp_path):
    Image.fromarray(pixels(1)[:, :, 0]).save(tmp_path / "grey.png", transparency=40)
    Image.fromarray(pixels(3)).save(tmp_path / "rgb.png", transparency=(0, 40, 80))
    grey, rgb = read(tmp_path / "grey.png"), read(tmp_path / "rgb.png")
    np.testing.assert_array_equal(grey.pixels[:, :, 1] == 0, pixels(1)[:, :, 0] == 40)
    assert rgb.pixels.shape[2] == 4
    assert rgb.pixels[0, 0, 3] == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_in_16_bit(tmp_path, channels):
    data = write(Picture(pixels(channels, np.uint16)), tmp_path / "a.png").read_bytes()
    colour = struct.pack(f">{channels}H", *pixels(channels, np.uint16)[0, 0])
    chunk = struct.pack(">I", len(colour)) + b"tRNS" + colour
    chunk += struct.pack(">I", zlib.crc32(b"tRNS" + colour))
    at = data.index(b"IDAT") - 4
    picture = read(data[:at] + chunk + data[at:])
    assert picture.pixels.dtype == np.uint16
    assert picture.pixels.shape[2] == channels + 1
    np.testing.assert_array_equal(picture.pixels[:, :, :channels], pixels(channels, np.uint16))
    assert picture.pixels[0, 0, -1] == 0
    assert picture.pixels[1, 1, -1] == 65535


def test_min_is_white_and_premultiplied_alpha(tmp_path):
    grey = pixels(1, np.uint16)[:, :, 0]
    tifffile.imwrite(tmp_path / "a.tif", 65535 - grey, photometric="miniswhite")
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels[:, :, 0], grey)
    straight = pixels(4, np.uint16)
    straight[:, :, 3] = np.maximum(straight[:, :, 3], 20000)
    alpha = straight[:, :, 3:] / 65535
    multiplied = np.concatenate([np.rint(straight[:, :, :3] * alpha), straight[:, :, 3:]], axis=2)
    multiplied = multiplied.astype(np.uint16)
    tifffile.imwrite(tmp_path / "b.tif", multiplied, photometric="rgb", extrasamples=["assocalpha"])
    # Rounding at an alpha of 20000/65535 costs half a level times its inverse, rounding again half a level.
    assert np.abs(read(tmp_path / "b.tif").pixels.astype(int) - straight).max() <= 3


def test_planar_and_compressed_tiff(tmp_path):
    values = pixels(3, np.uint16)
    planes = np.ascontiguousarray(values.transpose(2, 0, 1))
    tifffile.imwrite(
        tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate", compression="lzw"
    )
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, values)


@pytest.mark.parametrize("extension", ["webp", "png", "gif"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, extension):
    frames = [Image.fromarray(np.full((9, 9, 3), 40 * k, np.uint8)) for k in range(1, 4)]
    frames[0].save(tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:], quality=100)
    picture = read(tmp_path / f"a.{extension}")
    assert np.abs(picture.pixels[:, :, :3].astype(int) - 40).max() <= 1
    assert "first" in picture.notes[0]


def test_multi_page_tiff_says_so(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", np.stack([pixels(1, np.uint16)[:, :, 0]] * 3), photometric="minisblack"
    )
    assert "first" in read(tmp_path / "a.tif").notes[0]


def test_encode_to_a_stream():
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        encode(Picture(pixels(3), exif=camera_exif(1).tobytes()), buffer, format)
        assert read(buffer.getvalue()).format == format


def test_formats_and_their_limits(tmp_path):
    with pytest.raises(ImageError, match=r"cat\.bmp.*extension"):
        write(Picture(pixels(3)), tmp_path / "cat.bmp")
    with pytest.raises(ImageError, match=r"20000×10.*WEBP.*16383"):
        check_fits(20000, 10, "WEBP")
    with pytest.raises(ImageError, match=r"JPEG.*65500"):
        write(Picture(np.zeros((1, 70000, 1), np.uint8)), tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []
