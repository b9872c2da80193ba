"""What a failed save means for ranks that write nothing."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from geomim.errors import GeomimError
from geomim.pretrain.checkpoints import Checkpoints
from geomim.pretrain.signals import Signals


def test_all_ranks_end_where_the_first_cannot_save(tmp_path):
    """The first raises after the barrier that the others wait in, and they learn of it."""
    told, barrier = [], []

    def broadcast(own):
        told.append(own)
        return told[0]

    def end(rank):
        def save(path):
            if rank == 0:
                strategy.checkpoint_io.save_checkpoint({"weights": 1}, path)
            barrier.append(rank)

        strategy = SimpleNamespace(broadcast=broadcast)
        trainer = SimpleNamespace(save_checkpoint=save, strategy=strategy, global_step=3, max_steps=3, world_size=1)
        callback = Checkpoints(tmp_path / "run", 1, 0, Signals())
        callback.setup(trainer)
        with pytest.raises(GeomimError, match=r"cannot save '.*last.ckpt' at step 3"):
            callback.on_train_batch_end(trainer, SimpleNamespace(aside=nullcontext))

    (tmp_path / "run").write_text("a file where the folder should be")
    end(0)
    end(1)
    assert barrier == [0, 1] and told[0] and told[1] is None
    assert [path.name for path in Path(tmp_path).iterdir()] == ["run"]
