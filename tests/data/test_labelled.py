import numpy as np
import pytest
from PIL import Image
from tiny_corpus import write_corpus

from geomim.data.labelled import open_labelled
from geomim.errors import CorpusError


@pytest.mark.parametrize("finished_once", [True, False])
def test_an_unfinished_corpus_is_refused_and_no_folder_of_pictures(tmp_path, finished_once):
    out = write_corpus(tmp_path / "corpus")
    (out / "work").mkdir()
    (out / "work" / "recipe.json").write_text('{"source": ["a"]}')
    if not finished_once:
        (out / "corpus.json").unlink()
    for name in ("a", "b"):
        (out / "report" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out / "report" / name / "tile.png")
    with pytest.raises(CorpusError, match="is an unfinished corpus: run its `geomim corpus build` again"):
        open_labelled(out)
