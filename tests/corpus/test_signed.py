"""Sources at addresses that answer only to a token: the token is used, and stands nowhere afterwards."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from geomim import cli
from geomim.corpus import build as building
from geomim.corpus.build import build
from geomim.corpus.exchange import pack
from geomim.corpus.exclusion import exclude
from geomim.corpus.store import Corpus
from geomim.errors import CorpusError, InputError


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder served to whoever gives `?sig=` one of the tokens."""
    folder, tokens = tmp_path / "served", {"s3cr3t-one"}
    folder.mkdir()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def answer(self, body):
            path, _, query = self.path.partition("?")
            file = folder / path.strip("/").replace("%2C", ",")
            if query.removeprefix("sig=") not in tokens or not file.is_file():
                self.send_response(404 if query.removeprefix("sig=") in tokens else 403)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            content = file.read_bytes()
            found = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first, last = (int(found[1]), int(found[2] or len(content) - 1)) if found else (0, len(content) - 1)
            part = content[first : last + 1]
            self.send_response(206 if found else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            if found:
                self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
            self.end_headers()
            if body:
                self.wfile.write(part)
            return None

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("VSI_CACHE", "FALSE")
    monkeypatch.setenv("CPL_VSIL_CURL_NON_CACHED", "/vsicurl/http://127.0.0.1")
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield folder, tokens, f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def picture(file, seed, **place):
    pixels = np.kron(np.random.default_rng(seed).integers(0, 256, (3, 8, 8), dtype=np.uint8), np.ones((8, 8), np.uint8))
    with rasterio.open(file, "w", driver="GTiff", count=3, height=64, width=64, dtype="uint8", **place) as to:
        to.write(pixels)


def item(href):
    """A STAC item of one asset with three bands."""
    bands = [{"name": name, "common_name": name} for name in ("red", "green", "blue")]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "one",
        "geometry": None,
        "bbox": [0, 0, 1, 1],
        "properties": {"datetime": "2020-06-01T00:00:00Z"},
        "links": [],
        "assets": {"image": {"href": href, "type": "image/tiff", "eo:bands": bands}},
    }


def secrets_in(folder: Path) -> list[str]:
    return [str(file) for file in folder.rglob("*") if file.is_file() and b"s3cr3t" in file.read_bytes()]


def test_tokens_stand_nowhere(store, tmp_path):
    folder, _, url = store
    picture(folder / "b,1.tif", 1)
    picture(folder / "a.tif", 2)
    (folder / "c.tif").write_bytes(b"no raster")
    picture(folder / "d.tif", 3, crs="EPSG:32632", transform=Affine(10, 0, 5e5, 0, -10, 54e5))
    (folder / "d.json").write_text(json.dumps(item(f"{url}/d.tif?sig=s3cr3t-one")))
    (folder / "e.json").write_text(json.dumps(item(f"{url}/gone.tif?sig=s3cr3t-one")))
    names = ("b,1.tif", "a.tif", "c.tif", "d.json", "e.json")
    sources = [f"{url}/{name}?sig=s3cr3t-one" for name in names]
    out = tmp_path / "corpus"
    words = ["corpus", "build", ",".join(sources), "--out", str(out), "--tile", "64", "--sensor", "rgb"]
    assert cli.main(words) == 0
    corpus = Corpus.open(out)
    assert corpus.table(["source"])["source"].to_pylist() == [f"{url}/{one}" for one in ("a.tif", "b,1.tif", "d.json")]
    assert corpus.meta["recipe"]["source"] == [f"{url}/{name}" for name in names]
    assert corpus.skipped()["source"].to_pylist() == [f"{url}/c.tif", f"{url}/e.json"]
    exclude(str(out), [f"mine={url}/a.tif?sig=s3cr3t-one"], workers=1)
    assert Corpus.open(out).table(["kept"])["kept"].to_pylist() == [False, True, True]
    pack(str(out), str(tmp_path / "packed"))
    assert secrets_in(out) == [] and secrets_in(tmp_path / "packed") == []
    assert json.loads((out / "audit" / "audit.json").read_text())["benchmarks"][0]["given"] == f"mine={url}/a.tif"


def test_a_build_goes_on_with_a_fresh_token(store, tmp_path, monkeypatch):
    folder, tokens, url = store
    for number in range(3):
        picture(folder / f"{number}.tif", number)

    def stop(*_, **__):
        raise CorpusError("stopped")

    given = {"out": str(tmp_path / "c"), "tile": 64, "sensor": "rgb", "workers": 1}
    with monkeypatch.context() as patch:
        patch.setattr(building, "write_pixels", stop)
        with pytest.raises(CorpusError, match="stopped"):
            build([f"{url}/{number}.tif?sig=s3cr3t-one" for number in (2, 0, 1)], **given)
    assert secrets_in(tmp_path / "c") == []
    tokens.clear()
    tokens.add("s3cr3t-two")
    cut = building.cut
    monkeypatch.setattr(building, "cut", stop)  # what is cut is cut
    build([f"{url}/{number}.tif?sig=s3cr3t-two" for number in (2, 0, 1)], **given)
    monkeypatch.setattr(building, "cut", cut)
    fresh = [f"{url}/{number}.tif?sig=s3cr3t-two" for number in (2, 0, 1)]
    build(fresh, **given | {"out": str(tmp_path / "d"), "workers": 2})
    assert (tmp_path / "c" / "corpus.lock").read_bytes() == (tmp_path / "d" / "corpus.lock").read_bytes()


def test_workers_know_what_signs(store, tmp_path, monkeypatch):
    folder, _, url = store
    for number in range(2):
        picture(folder / f"{number}.tif", number)
    monkeypatch.setattr("geomim.corpus.pipeline.plan._INLINE_SOURCES", 0)
    monkeypatch.setattr("geomim.corpus.pipeline.plan.SCENES_PER_SCAN", 1)
    build([f"{url}/{n}.tif?sig=s3cr3t-one" for n in range(2)], str(tmp_path / "c"), tile=64, sensor="rgb", workers=2)
    assert len(Corpus.open(tmp_path / "c").table()) == 2


def test_the_sentence_says_how_to_sign_again(store, tmp_path):
    folder, _, url = store
    picture(folder / "a.tif", 0)
    with pytest.raises(InputError, match="give the full address again, or sign it by the environment") as refusal:
        build([f"{url}/a.tif?sig=s3cr3t-old"], str(tmp_path / "c"), tile=64, sensor="rgb", workers=1)
    assert "s3cr3t" not in str(refusal.value)
