"""Pictures that look like nothing in particular but have structure at all scales, as photographs have."""

from pathlib import Path

import numpy as np
from PIL import Image


def photograph(seed: int, size: int | tuple[int, int] = 128) -> np.ndarray:
    """`(H, W, 3)` uint8: noise whose spectrum falls with frequency, in three related bands."""
    height, width = (size, size) if isinstance(size, int) else size
    random = np.random.default_rng(seed)
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(down, across), 1 / max(height, width)) ** 1.2
    layers = [np.fft.irfft2(np.fft.rfft2(random.standard_normal((height, width))) * fall, (height, width))]
    layers += [
        layers[0] + 0.3 * np.fft.irfft2(np.fft.rfft2(random.standard_normal((height, width))) * fall, (height, width))
        for _ in "ab"
    ]
    picture = np.stack(layers, -1)
    picture = (picture - picture.mean((0, 1))) / picture.std((0, 1))
    return np.clip(128 + 45 * picture, 0, 255).astype(np.uint8)


def save(path: Path, picture: np.ndarray, **options: int) -> Path:
    """Write a picture in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **options)
    return path


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    """The picture at another size."""
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS))
