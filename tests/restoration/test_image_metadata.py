"""What comes with the pixels survives too: EXIF, orientation, colour profile, resolution."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from fewstep.restoration.images import (
    ImageError,
    Picture,
    from_array,
    from_pil,
    read,
    write,
)
from fewstep.restoration.images.metadata import upright

from .image_samples import EXIF_IFD, GPS_IFD, HEIGHT, ORIENTATION, SRGB, WIDTH, camera_exif, pixels


@pytest.mark.parametrize("target", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("source", ["jpg", "png", "webp"])
def test_exif_travels_upright(tmp_path, source, target):
    Image.fromarray(pixels(3)).save(tmp_path / f"in.{source}", exif=camera_exif(6).tobytes())
    picture = read(tmp_path / f"in.{source}")
    assert (picture.height, picture.width) == (WIDTH, HEIGHT)
    write(picture, tmp_path / f"out.{target}")
    with Image.open(tmp_path / f"out.{target}") as image:
        exif = image.getexif()
        assert image.size == (HEIGHT, WIDTH)
        assert exif.get(ORIENTATION, 1) == 1
        assert exif[0x010F] == "Camera & Co"
        assert exif[0x013B].encode("latin-1").decode() == "José Müller ©"
        details, place = exif.get_ifd(EXIF_IFD), exif.get_ifd(GPS_IFD)
    assert float(details[0x829A]) == pytest.approx(0.0125)
    # The size that EXIF states follows the picture.
    assert (details[0xA002], details[0xA003]) == (HEIGHT, WIDTH)
    assert place[1] == "N"
    assert [float(v) for v in place[2]] == [48.0, 12.0, 30.0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True], ids=["8 bit", "16 bit"])
def test_all_orientations(tmp_path, orientation, deep):
    """A 16-bit file takes another way in; both must turn as Pillow does."""
    tags = [(ORIENTATION, "H", 1, orientation, True), (271, "s", 0, "Cam", True)]
    values = pixels(3, np.uint16 if deep else np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extratags=tags)
    plain = Image.fromarray(pixels(1)[:, :, 0])
    plain.getexif()[ORIENTATION] = orientation
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(plain))
    np.testing.assert_array_equal(upright(pixels(1), orientation)[:, :, 0], expected)
    picture = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, upright(values, orientation))
    assert picture.exif is not None
    again = read(write(picture, tmp_path / "b.tif"))
    np.testing.assert_array_equal(again.pixels, picture.pixels)


@pytest.mark.parametrize("target", ["jpg", "png", "webp", "tiff"])
def test_icc_travels_and_can_be_left_out(tmp_path, target):
    Image.fromarray(pixels(3)).save(tmp_path / "in.png", icc_profile=SRGB, exif=camera_exif(1).tobytes())
    picture = read(tmp_path / "in.png")
    assert picture.icc == SRGB
    assert read(write(picture, tmp_path / f"out.{target}")).icc == SRGB
    bare = read(write(picture, tmp_path / f"bare.{target}", strip_metadata=True))
    assert bare.icc is None
    assert bare.exif is None
    assert b"Camera" not in (tmp_path / f"bare.{target}").read_bytes()


def test_large_icc_profile_is_split_over_jpeg_segments(tmp_path):
    profile = SRGB[:128] + np.random.default_rng(0).bytes(150_000)
    write(Picture(pixels(3), icc=profile), tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.info["icc_profile"] == profile


def test_resolution_travels(tmp_path):
    for extension in ("jpg", "png", "tiff"):
        Image.fromarray(pixels(3)).save(tmp_path / f"in.{extension}", dpi=(300, 150))
        picture = read(tmp_path / f"in.{extension}")
        assert picture.dpi == pytest.approx((300, 150), abs=0.02)
        assert read(write(picture, tmp_path / f"out.{extension}")).dpi == pytest.approx((300, 150), abs=0.02)


@pytest.mark.parametrize("extension", ["jpg", "tiff"])
def test_cmyk_becomes_srgb(tmp_path, extension):
    image = Image.fromarray(np.full((16, 16, 3), (200, 60, 20), np.uint8)).convert("CMYK")
    image.save(tmp_path / f"a.{extension}")
    picture = read(tmp_path / f"a.{extension}")
    assert picture.pixels.shape[2] == 3
    assert np.abs(picture.pixels.astype(int) - (200, 60, 20)).max() <= 3
    assert "CMYK" in picture.notes[0]
    assert picture.icc is not None


def test_a_profile_that_does_not_fit_is_no_reason_to_fail(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 100, 100, 0))
    image.save(tmp_path / "a.jpg", icc_profile=SRGB)
    assert read(tmp_path / "a.jpg").pixels.shape == (8, 8, 3)


def test_damaged_exif_is_left_out(tmp_path):
    Image.fromarray(pixels(3)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 40)
    picture = read(tmp_path / "a.jpg")
    assert picture.pixels.shape == (HEIGHT, WIDTH, 3)
    assert picture.exif is None


def test_images_in_memory():
    assert from_array(pixels(3)[:, :, 0]).pixels.shape == (HEIGHT, WIDTH, 1)
    assert from_array(pixels(3) / 255.0).pixels.dtype == np.float32
    assert from_array(pixels(1)[:, :, 0] > 9).pixels.max() == 255
    turned = Image.open(io.BytesIO(_jpeg_bytes(camera_exif(6))))
    assert from_pil(turned).pixels.shape == (WIDTH, HEIGHT, 3)
    deep = Image.fromarray(pixels(1, np.uint16)[:, :, 0])
    np.testing.assert_array_equal(from_pil(deep).pixels, pixels(1, np.uint16))
    np.testing.assert_array_equal(np.asarray(Picture(pixels(4)).to_pil()), pixels(4))


def _jpeg_bytes(exif: Image.Exif) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(3)).save(buffer, "JPEG", exif=exif.tobytes())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3, 5)), "channels"),
        (np.zeros((0, 3, 3)), "at least one pixel"),
        (np.zeros((3, 3), np.int64), "int64"),
        (np.full((3, 3), np.nan), "NaN"),
        (np.full((3, 3), 255.0), "\\[0, 1\\]"),
    ],
)
def test_arrays_that_are_no_images(array, words):
    with pytest.raises(ImageError, match=words):
        from_array(array)
