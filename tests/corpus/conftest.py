"""Curves and maps of a corpus' page are drawn where the page is tested; elsewhere they would be a tenth of the time."""

from collections.abc import Iterator

import pytest
from matplotlib.image import imsave
from numpy import zeros

from geomim.corpus.report import pictures


@pytest.fixture(scope="module", autouse=True)
def blank_plots(request: pytest.FixtureRequest) -> Iterator[None]:
    """In this process; what a test starts in another draws."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name != "report":
            patch.setattr(pictures, "_save", lambda path, *_: imsave(path, zeros((1, 1))))
        yield
