import numpy as np
import pytest

from geomim.corpus.statistics import moments


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_moments_are_those_of_valid_pixels(dtype, share):
    rng = np.random.default_rng(0)
    top = min(np.iinfo(dtype).max, 60_000) if np.dtype(dtype).kind in "iu" else 5
    pixels = (top - top * 0.02 * rng.random((3, 2, 64, 64))).astype(dtype)
    valid = rng.random((3, 64, 64)) < share
    if share < 1:
        valid[2] = False
    mean, squares, counts = moments(pixels, valid)
    for tile in range(3):
        values = pixels[tile][:, valid[tile]].astype(np.longdouble)
        assert counts[tile] == values.shape[1]
        if counts[tile]:
            np.testing.assert_allclose(mean[tile], values.mean(1).astype(float), rtol=1e-12)
            np.testing.assert_allclose(squares[tile], (values.var(1) * counts[tile]).astype(float), rtol=1e-6)
        else:
            assert not mean[tile].any() and not squares[tile].any()
