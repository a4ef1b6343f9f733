"""`fewstep restore` as a user's shell runs it, on photographs of every kind."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from skimage import data

from fewstep.restoration import Restorer
from fewstep.restoration.images import Picture, read, write

PHOTO = data.astronaut()[60:80, 150:180]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION, EXIF_IFD = 0x0112, 0x8769


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def photographs(folder: Path) -> dict[str, tuple[int, type]]:
    """Write one of each kind; (channels, sample type) of their results."""
    folder.mkdir(exist_ok=True)
    deep = PHOTO.astype(np.uint16) * 250 + 13
    alpha = np.linspace(0, 255, PHOTO.size // 3).astype(np.uint8).reshape(*PHOTO.shape[:2], 1)
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    exif[0x010F] = "Camera"
    exif.get_ifd(EXIF_IFD)[0x829A] = 0.01
    Image.fromarray(PHOTO).save(folder / "photo.jpg", quality=95, exif=exif.tobytes(), icc_profile=SRGB)
    Image.fromarray(PHOTO).save(folder / "photo.webp", lossless=True, exif=exif.tobytes(), icc_profile=SRGB)
    Image.fromarray(PHOTO).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(PHOTO).quantize(32).save(folder / "palette.png")
    Image.fromarray(PHOTO[:, :, 0]).save(folder / "grey.png")
    write(Picture(np.concatenate([PHOTO, alpha], axis=2), icc=SRGB), folder / "alpha.png")
    write(Picture(np.concatenate([PHOTO[:, :, :1], alpha], axis=2)), folder / "grey-alpha.png")
    write(Picture(deep), folder / "deep.png")
    write(Picture(deep[:, :, :1]), folder / "deep-grey.png")
    write(Picture(deep), folder / "deep.tif")
    tifffile.imwrite(folder / "float.tiff", (PHOTO / 255).astype(np.float32), photometric="rgb")
    return {
        "photo.jpg": (3, np.uint8),
        "photo.webp": (3, np.uint8),
        "cmyk.jpg": (3, np.uint8),
        "palette.png": (3, np.uint8),
        "grey.png": (1, np.uint8),
        "alpha.png": (4, np.uint8),
        "grey-alpha.png": (2, np.uint8),
        "deep.png": (3, np.uint16),
        "deep-grey.png": (1, np.uint16),
        "deep.tif": (3, np.uint16),
        "float.tiff": (3, np.float32),
    }


def test_a_folder_of_every_kind(fewstep, tmp_path):
    expected = photographs(tmp_path / "in")
    done = fewstep(tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["done"] == len(expected)
    assert names(tmp_path / "out") == sorted(f"{Path(n).stem}_x4{Path(n).suffix}" for n in expected)
    for name, (channels, dtype) in expected.items():
        picture = read(tmp_path / "out" / f"{Path(name).stem}_x4{Path(name).suffix}")
        turned = name.startswith("photo.")
        assert picture.pixels.shape == ((120, 80, channels) if turned else (80, 120, channels)), name
        assert picture.pixels.dtype == dtype, name
    for name in ("photo_x4.jpg", "photo_x4.webp"):
        with Image.open(tmp_path / "out" / name) as image:
            exif = image.getexif()
            assert exif[ORIENTATION] == 1
            assert exif[0x010F] == "Camera"
            assert float(exif.get_ifd(EXIF_IFD)[0x829A]) == pytest.approx(0.01)
            assert image.info["icc_profile"] == SRGB
    assert read(tmp_path / "out" / "alpha_x4.png").icc == SRGB
    # What changed is said.
    assert b"cmyk.jpg: is CMYK" in done.stderr
    assert b"palette.png: has a palette" in done.stderr
    notes = {Path(f["input"]).name: f["details"].get("notes") for f in report["files"]}
    assert notes["palette.png"]
    assert not notes["photo.jpg"]


def test_it_is_what_the_pipeline_makes(fewstep, tmp_path, tiny_folder):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    arguments = (
        "--mode",
        "detailed",
        "--steps",
        "2",
        "--seed",
        "9",
        "-s",
        "3",
        "-t",
        "16",
        "--tile_pad",
        "10",
    )
    done = fewstep("-i", tmp_path / "a.png", "-o", tmp_path / "b.png", *arguments, "--json")
    assert done.returncode == 0, done.stderr.decode()
    restorer = Restorer.from_pretrained(tiny_folder, device="cpu")
    expected = restorer(PHOTO, mode="detailed", steps=2, seed=9, scale=3, tile=16, tile_pad=10)
    got = read(tmp_path / "b.png").pixels
    # The other process may have another number of threads.
    assert np.abs(got.astype(int) - expected.pixels).max() <= 1
    details = json.loads(done.stdout)["files"][0]["details"]
    assert details["calls"] == expected.calls
    assert details["result_size"] == [90, 60]


def test_names_and_formats(fewstep, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg")
    Image.fromarray(PHOTO).save(tmp_path / "b.bmp")
    assert fewstep(tmp_path / "a.jpg", tmp_path / "b.bmp").returncode == 0
    assert names(tmp_path) == ["a.jpg", "a_x4.jpg", "b.bmp", "b_x4.png"]
    assert (
        fewstep("a.jpg", "-o", "out", "--suffix", "big", "--ext", "webp", "-s", "2", cwd=tmp_path).returncode
        == 0
    )
    with Image.open(tmp_path / "out" / "a_big.webp") as image:
        assert image.size == (60, 40)
    assert fewstep("a.jpg", "-o", "out/c.tiff", cwd=tmp_path).returncode == 0
    assert read(tmp_path / "out" / "c.tiff").format == "TIFF"


def test_patterns_recursion_and_skipping(fewstep, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a1.png", "a2.png", "b.png", "deep/c.png"):
        Image.fromarray(PHOTO).save(tmp_path / "in" / name)
    assert fewstep("in/a*.png", "-o", "out", cwd=tmp_path).returncode == 0
    assert names(tmp_path / "out") == ["a1_x4.png", "a2_x4.png"]
    before = (tmp_path / "out" / "a1_x4.png").stat().st_mtime_ns
    done = fewstep("in", "-o", "out", "--recursive", "--skip-existing", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert (report["done"], report["skipped"]) == (2, 2)
    assert names(tmp_path / "out") == ["a1_x4.png", "a2_x4.png", "b_x4.png", "deep/c_x4.png"]
    assert (tmp_path / "out" / "a1_x4.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pipes(fewstep, format):
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, format)
    done = fewstep("-", "-o", "-", stdin=buffer.getvalue())
    assert done.returncode == 0, done.stderr.decode()
    picture = read(done.stdout)
    assert picture.format == format
    assert picture.pixels.shape == (80, 120, 3)


def test_pipe_to_a_file_and_to_another_format(fewstep, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "JPEG")
    assert fewstep("-", "-o", tmp_path / "a.png", stdin=buffer.getvalue()).returncode == 0
    assert read(tmp_path / "a.png").format == "PNG"
    done = fewstep("-", "--ext", "tiff", stdin=buffer.getvalue())
    assert read(done.stdout).format == "TIFF"


def test_samples(fewstep, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    many = ("--mode", "detailed", "--samples", "3")
    done = fewstep("a.png", "-o", "out", *many, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert names(tmp_path / "out") == ["a_x4-1.png", "a_x4-2.png", "a_x4-3.png"]
    details = json.loads(done.stdout)["files"][0]["details"]
    assert details["seeds"] == [0, 1, 2]
    assert details["more_outputs"] == ["out/a_x4-2.png", "out/a_x4-3.png"]
    pictures = [read(tmp_path / "out" / f"a_x4-{k}.png").pixels for k in (1, 2, 3)]
    assert (pictures[0] != pictures[1]).any()
    assert fewstep("a.png", "-o", "one.png", *many, "--average", cwd=tmp_path).returncode == 0
    mean = np.mean([p.astype(float) for p in pictures], axis=0)
    assert np.abs(read(tmp_path / "one.png").pixels - mean).max() <= 1.5
    assert fewstep("a.png", "-o", "named.png", "--samples", "2", cwd=tmp_path).returncode == 0
    assert {"named-1.png", "named-2.png"} < set(names(tmp_path))
    assert "named.png" not in names(tmp_path)


def test_metadata_can_be_left_out(fewstep, tmp_path):
    photographs(tmp_path / "in")
    assert fewstep(tmp_path / "in" / "photo.jpg", "-o", tmp_path, "--strip-metadata").returncode == 0
    picture = read(tmp_path / "photo_x4.jpg")
    assert picture.exif is None
    assert picture.icc is None
    # The orientation is applied all the same.
    assert picture.pixels.shape == (120, 80, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
def test_one_pixel_sides(fewstep, tmp_path, shape):
    Image.fromarray(np.resize(PHOTO, (*shape, 3))).save(tmp_path / "a.png")
    assert fewstep("a.png", "--mode", "detailed", "-t", "16", cwd=tmp_path).returncode == 0
    assert read(tmp_path / "a_x4.png").pixels.shape == (4 * shape[0], 4 * shape[1], 3)


def test_help_and_list(fewstep):
    text = fewstep("--help").stdout.decode()
    for option in (
        "--input",
        "--outscale",
        "--tile",
        "--tile-pad",
        "--seed",
        "--suffix",
        "--ext",
        "--samples",
    ):
        assert option in text
    assert "restore [OPTIONS] [inputs]" in text
    assert fewstep("--list").returncode == 0
