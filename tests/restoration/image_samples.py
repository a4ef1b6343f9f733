"""Small pictures whose every value is known, for the tests of reading and writing."""

import numpy as np
from PIL import Image, ImageCms

HEIGHT, WIDTH = 23, 37
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION, EXIF_IFD, GPS_IFD = 0x0112, 0x8769, 0x8825


def pixels(channels: int, dtype: type = np.uint8) -> np.ndarray:
    """A picture without symmetry, whose channels differ."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = np.stack([(7 * y + 5 * x + 40 * k) % 256 for k in range(channels)], axis=-1)
    if dtype == np.float32:
        return (planes / 255).astype(np.float32)
    # 257·v fills 16 bits; the low byte carries something of its own.
    return (
        planes.astype(np.uint8)
        if dtype == np.uint8
        else (planes * 255 + y[..., None] % 200).astype(np.uint16)
    )


def camera_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "Camera & Co"
    exif[0x013B] = "José Müller ©".encode()
    exif.get_ifd(EXIF_IFD).update({0x829A: 0.0125, 0xA002: WIDTH, 0xA003: HEIGHT})
    exif.get_ifd(GPS_IFD).update({1: "N", 2: (48.0, 12.0, 30.0)})
    return exif
