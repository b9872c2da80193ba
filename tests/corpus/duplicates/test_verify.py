import numpy as np

from geomim.corpus.duplicates.fingerprint import inverse, orient, signature
from geomim.corpus.duplicates.verify import MIN_CORRELATION, correlation


def test_the_second_signature_is_turned():
    means = np.random.default_rng(0).normal(size=(8, 32, 32))
    turned = np.stack([orient(means[k], inverse(k)) for k in range(8)])
    one, two = signature(means), signature(turned)
    np.testing.assert_allclose(correlation(one, two, np.arange(8)), 1, atol=2e-3)
    assert (correlation(one, two, np.roll(np.arange(8), 1)) < MIN_CORRELATION).all()
