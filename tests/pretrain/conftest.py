"""FLOPs are counted where they are tested, and in a run of every recipe: elsewhere they were a tenth of the time."""

from collections.abc import Iterator

import pytest

from geomim.pretrain import module

COUNTING = ("test_throughput", "test_minutes", "test_resume")


@pytest.fixture(scope="module", autouse=True)
def uncounted(request: pytest.FixtureRequest) -> Iterator[None]:
    """In this process; what a test starts in another counts."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem not in COUNTING:
            patch.setattr(module, "count_flops", lambda *_: 1.0)
        yield
