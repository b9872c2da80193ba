"""The same bytes from a pool of processes and from a Dask cluster on this machine."""

import hashlib

from geomim.corpus.build import build
from geomim.corpus.pipeline import plan
from geomim.corpus.synthetic import write_scenes


def digest(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.relative_to(folder).parts[0] != "report"
    }


def test_a_dask_cluster_gives_the_same_bytes(tmp_path, monkeypatch):
    from dask.distributed import LocalCluster

    monkeypatch.setattr(plan, "SCENES_PER_TASK", 2)
    write_scenes(tmp_path / "synthetic", scenes=4, size=256)
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with LocalCluster(**options) as cluster:
        monkeypatch.chdir(tmp_path)  # the worker runs in another folder
        alone = build(["synthetic/scenes"], "alone", tile=64, masks="synthetic/labels", workers=1)
        far = build(["synthetic/scenes"], "far", tile=64, masks="synthetic/labels", cluster=cluster.scheduler_address)
    assert digest(far) == digest(alone)
