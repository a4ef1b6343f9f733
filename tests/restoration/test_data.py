"""Training crops: pairs that belong together, every symmetry, reproducible."""

import numpy as np
import pytest
from PIL import Image
from skimage import data

from fewstep.restoration.data import PairedCrops, dihedral, list_images, read_rgb, reduce_image, to_signed
from fewstep.restoration.resize import imresize

PHOTO = data.astronaut()[:130, :170]


def crops(patch: int = 32) -> PairedCrops:
    return PairedCrops.from_arrays([PHOTO, PHOTO[:, ::-1]], scale=4, patch=patch)


def test_a_batch_is_what_networks_see():
    batch = crops().batch(np.random.default_rng(0), 5)
    assert batch["x0"].shape == (5, 3, 32, 32)
    assert batch["lq"].shape == (5, 3, 8, 8)
    for values in batch.values():
        assert values.min() >= -1
        assert values.max() <= 1
        # 8-bit values on the network's scale.
        steps = (values + 1) * 127.5
        assert (steps - steps.round()).abs().max() < 1e-4


def test_crops_belong_to_their_reductions():
    """Reducing an HR crop gives its LR crop, except near the border, where the LR crop knows more."""
    batch = crops().batch(np.random.default_rng(1), 40)
    for high, low in zip(batch["x0"], batch["lq"], strict=True):
        again = imresize(high.double(), 0.25).clamp(-1, 1)[:, 2:-2, 2:-2]
        assert (again - low[:, 2:-2, 2:-2]).abs().max() <= 0.51 / 127.5


def test_all_symmetries_are_drawn_and_differ():
    square = np.arange(16).reshape(4, 4)
    assert len({dihedral(square, k).tobytes() for k in range(8)}) == 8
    one = PairedCrops.from_arrays([PHOTO[:32, :32]], scale=4, patch=32)
    seen = {x.numpy().tobytes() for x in one.batch(np.random.default_rng(0), 200)["x0"]}
    assert len(seen) == 8


def test_draws_reach_every_corner():
    generator = np.random.default_rng(0)
    small = PairedCrops.from_arrays(
        [np.arange(40 * 44 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 44, 3)], 4, 32
    )
    firsts = {x.numpy().tobytes() for x in small.batch(generator, 2000)["x0"]}
    # Three places down, four across, eight symmetries.
    assert len(firsts) == 3 * 4 * 8


def test_same_generator_same_batch():
    first, second = (crops().batch(np.random.default_rng(7), 3)["x0"] for _ in range(2))
    assert (first == second).all()


def test_folders_and_lists(tmp_path):
    (tmp_path / "deep").mkdir()
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    Image.fromarray(PHOTO).convert("L").save(tmp_path / "deep" / "b.PNG")
    Image.fromarray(PHOTO[:20]).save(tmp_path / "small.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.PNG", "small.jpg"]
    # Too small for a patch: left out.
    assert len(PairedCrops.from_files(tmp_path, patch=64)) == 2
    assert len(PairedCrops.from_files([tmp_path / "a.png"], patch=64)) == 1
    assert read_rgb(tmp_path / "a.png", multiple=4).shape == (128, 168, 3)


def test_reduction_is_rounded_antialiased_bicubic():
    small = reduce_image(PHOTO[:128, :168], 4)
    expected = np.clip(imresize(PHOTO[:128, :168].astype(np.float64), 0.25), 0, 255)
    assert np.abs(small - expected).max() <= 0.5
    assert to_signed(small[None]).shape == (1, 3, 32, 42)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: PairedCrops.from_files(p / "none"), "source.*none"),
        (PairedCrops.from_files, "no images"),
        (lambda p: PairedCrops.from_arrays([PHOTO], patch=30), "patch.*30"),
        (lambda p: PairedCrops.from_arrays([PHOTO], patch=256), "256"),
    ],
)
def test_bad_arguments_are_named(make, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        make(tmp_path)
