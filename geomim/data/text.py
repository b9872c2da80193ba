"""The sentences of a run's tiles: each distinct one is made tokens once, and a batch holds those that were drawn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from rich.console import Console
from rich.progress import track
from torch import Tensor

from geomim.corpus.captions.origins import files_of
from geomim.corpus.remote import aside
from geomim.corpus.store import write_json
from geomim.data.tiles import TileSet
from geomim.errors import ConfigError, CorpusError
from geomim.randomness import Draws

_AT_ONCE = 4096  # sentences
_COLUMNS = pa.schema([(name, pa.list_(pa.string())) for name in ("captions", "caption_origins")])
_PLACED = "-placed"


class Drawing(NamedTuple):
    """Draws sentences for tiles of a corpus.

    Tile r has the sentences `keys[starts[r] : starts[r + 1]]`: rows of a file of int32 tokens `shape`, of which the
    last is the empty sentence. Where no token sees those behind it (`causal`), what is longer than a batch is not read.
    Where `length` is not 0, shapes are few: T is `length` in all batches, and U no more than four numbers.
    """

    starts: np.ndarray
    keys: np.ndarray
    file: Path
    shape: tuple[int, int]
    causal: bool
    length: int = 0

    def __call__(self, rows: np.ndarray, draws: Draws) -> dict[str, Tensor]:
        """One sentence of each of some tiles.

        Args:
            rows: `(B,)` int64, the tiles.
            draws: Their randomness.

        Returns:
            All int64. `tokens (U, T)` and `key (U,)`: each sentence that was drawn once, in the order of the tiles, and
            its number among all of the run; `of (B,)`: the row that a tile has, -1 where it has no sentence. U is the
            smallest multiple of ceil(B / 8) above 0, where shapes are few by a power of 2: surplus rows have key -1 and
            the tokens of the empty sentence. T is the context length, or where causal the smallest multiple of 8 that
            its sentences need.
        """
        first, count = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        place = first + np.minimum((draws("caption").numpy() * count).astype(np.int64), count - 1)
        drawn = pa.array(self.keys[place], pa.int64(), mask=count == 0).dictionary_encode()
        number, step = len(drawn.dictionary), -(-len(rows) // 8)
        times = max(1, -(-number // step))
        times = 1 << (times - 1).bit_length() if self.length else times
        key = np.pad(drawn.dictionary.to_numpy(), (0, times * step - number), constant_values=-1)
        kept = np.memmap(self.file, np.int32, "r", shape=self.shape)  # opened anew, as the features of a teacher are
        tokens = kept[key]
        if self.length:
            tokens = tokens[:, : self.length]
        elif self.causal:
            blank = kept[-1, -1]
            longest = np.flatnonzero((tokens != blank).any(0)).max(initial=0) + 1
            longest += kept[-1, 1] == blank  # some fill the rest with the end
            tokens = tokens[:, : -(-longest // 8) * 8]
        found = {"tokens": tokens, "key": key, "of": drawn.indices.fill_null(-1).to_numpy()}
        return {name: torch.from_numpy(np.array(values, np.int64)) for name, values in found.items()}


class Sentences:
    """The distinct sentences of all corpora of a run, numbered in the order of their tiles, and a file of their tokens.

    White space counts as one blank, and a sentence of nothing else not at all. Nothing is written before `fill`.

    Args:
        sets: The tiles that take part.
        tokenizer: Has `tokenize(sentences)`, which gives `(n, context_length)` integers; `context_length`; `causal`,
            whether no token sees those behind it; and `identity`, a string that its numbers follow from.
        origins: Take sentences of these origins; of all where None.
        moved: Tiles are flipped or turned: sentences of an origin that ends in `-placed` would not stay true, and are
            left out.

    Attributes:
        texts: `(n,)` the sentences, an Arrow array.
        said: What a user should know of them.
        files: `origin`, `file` and `licence` of what those that are taken come from.

    Raises:
        ConfigError: No sentence is of one of the origins.
        CorpusError: No tile has a sentence.
    """

    def __init__(
        self, sets: Sequence[TileSet], tokenizer: Any, origins: Sequence[str] | None = None, moved: bool = True
    ) -> None:
        self.sets, self.tokenizer, self._origins, self._moved = sets, tokenizer, origins, moved
        self.starts, self.said, self.files = [], [], []
        pieces, known, end = [], Counter[str](), 0
        for tiles in sets:
            counts, own = [np.array([end])], set[str]()
            for number, tile, sentence, origin in _read(tiles):
                known.update({one["values"]: one["counts"] for one in pc.value_counts(origin).to_pylist()})
                taken = _taken(origin, origins, moved)
                words = _distinct(sentence.filter(taken))
                own.update(origin.filter(taken).filter(words.is_valid()).unique().to_pylist())
                tile = tile.filter(taken).filter(words.is_valid())
                counts.append(np.bincount(tile.to_numpy(), minlength=number))
                pieces.append(words.drop_null())
            self.starts.append(np.concatenate(counts).cumsum())
            end, some = self.starts[-1][-1], np.count_nonzero(np.concatenate(counts[1:]))
            self.said.append(f"'{tiles.corpus.path}': {some} of {len(tiles)} tiles have sentences")
            told = [(name, one) for name in sorted(own) for one in files_of(tiles.corpus.meta, name)]
            rights = [{"origin": name, "file": one["file"], "licence": one["licence"]} for name, one in told]
            self.files += [one for one in rights if one not in self.files]
        self._check(known, origins, moved, end)
        joined = pa.chunked_array(pieces).unify_dictionaries()
        self.texts = joined.chunk(0).dictionary
        self.keys = np.concatenate([one.indices.to_numpy() for one in joined.chunks])
        origin = ", ".join(f"{number} {name}" for name, number in sorted(known.items()))
        self.said.append(f"{len(self.texts)} different sentences are learned from; by origin there are {origin}")

    def _check(self, known: Counter[str], origins: Sequence[str] | None, moved: bool, number: int) -> None:
        unknown = [name for name in origins or () if name not in known]
        if known and unknown:
            raise ConfigError(f"data.captions: no tile has a sentence of origin {unknown}; there are {sorted(known)}")
        placed = [name for name in origins or known if name.endswith(_PLACED)]
        if placed and moved:
            self.said.append(
                f"sentences of {', '.join(sorted(placed))} say where things lie and are left out, as tiles are flipped "
                "or turned: --data.flip none --data.turn false takes them"
            )
        if not number:
            paths = ", ".join(f"'{tiles.corpus.path}'" for tiles in self.sets)
            why = self.said[-1] if placed and moved else "write some with 'geomim corpus caption CORPUS'"
            raise CorpusError(f"no tile of {paths} has a sentence to train with, and the recipe needs some: {why}")

    def _file(self, folder: Path) -> Path:
        """Where their tokens are; another place where sentences or tokenizer are others."""
        content = xxhash.xxh3_128(f"{self.tokenizer.identity} {self.tokenizer.context_length}".encode())
        for buffer in self.texts.buffers()[1:]:
            content.update(buffer)
        return folder / f"tokens-{content.hexdigest()}.i32"

    def first(self, tiles: TileSet, ids: Tensor) -> dict[str, Tensor]:
        """The first sentence that takes part of each of some tiles of a corpus, as a batch holds them, a row a tile."""
        where = pc.field("id").isin(pa.array(ids.tolist()))
        rows = {row["id"]: row for row in tiles.corpus.table(["id", *_COLUMNS.names], where=where).to_pylist()}
        texts = []
        for said in ((row["captions"] or [], row["caption_origins"] or []) for row in map(rows.get, ids.tolist())):
            origin = pa.array([name or "human" for name, _ in zip_longest(said[1], said[0])], pa.string())
            taken = _taken(origin, self._origins, self._moved).to_pylist()
            some = (" ".join((text or "").split()) for text, takes in zip(said[0], taken, strict=False) if takes)
            texts.append(next(filter(None, some), ""))
        of = torch.tensor([row if text else -1 for row, text in enumerate(texts)])
        return {"tokens": self.tokenizer.tokenize(texts), "key": of, "of": of}

    def fill(self, folder: Path) -> str:
        """Have the tokens in a file, written where it is not there; for one process alone. In words, how many they are.

        Raises:
            CorpusError: The file cannot be written.
        """
        file = self._file(folder)
        if not (file.exists() and file.with_suffix(".json").exists()):
            with aside(file) as out:
                longest, cut = self._write(out)
            about = {"tokenizer": self.tokenizer.identity, "longest": longest}
            write_json(file.with_suffix(".json"), about | {"cut": len(cut), "such": cut[:3]})
        about = json.loads(file.with_suffix(".json").read_text())
        such = ", ".join(f"'{text}...'" for text in about["such"])
        return (
            f"sentences take up to {about['longest']} tokens; {about['cut']} of {len(self.texts)} are longer than the "
            f"{self.tokenizer.context_length} that the text tower sees and are cut there"
            f"{', such as ' * bool(such)}{such}"
        )

    def _write(self, out: BinaryIO) -> tuple[int, list[str]]:
        """Tokens of every sentence, and of the empty one; how many the longest has, and how the cut ones begin."""
        tokenize, limit = self.tokenizer.tokenize, self.tokenizer.context_length
        empty, longest, cut = tokenize([""]), 0, []
        starts = range(0, len(self.texts), _AT_ONCE)
        for start in track(starts, "sentences to tokens", console=Console(stderr=True), transient=True):
            texts = self.texts[start : start + _AT_ONCE].to_pylist()
            tokens = tokenize(texts)
            lengths = ((tokens != empty[0, -1]) * torch.arange(1, limit + 1)).amax(1)
            lengths = (lengths + (empty[0, 1] == empty[0, -1])).clamp(max=limit)  # some fill the rest with the end
            longest = max(longest, int(lengths.max()))
            # of the full ones are cut which lack nothing without their end
            if full := (lengths == limit).nonzero().flatten().tolist():
                same = (tokenize([texts[row][:-1] for row in full]) == tokens[full]).all(1).tolist()
                cut += [texts[row][:60] for row, one in zip(full, same, strict=True) if one]
            out.write(tokens.int().numpy().tobytes())
        out.write(empty.int().numpy().tobytes())
        return longest, cut

    def attach(self, folder: Path, few_shapes: bool = False) -> None:
        """Have batches hold sentences from now on.

        Args:
            folder: Where their tokens are.
            few_shapes: As of `Drawing.length`.

        Raises:
            ConfigError: There is no file of their tokens.
        """
        file = self._file(folder)
        if not file.with_suffix(".json").exists():
            raise ConfigError(f"'{file}' is not here: give an --out that all machines share")
        shape, causal = (len(self.texts) + 1, self.tokenizer.context_length), self.tokenizer.causal
        longest = json.loads(file.with_suffix(".json").read_text())["longest"] if causal else shape[1]
        length = min(shape[1], -(-longest // 8) * 8) if few_shapes else 0
        for tiles, starts in zip(self.sets, self.starts, strict=True):
            tiles.text = Drawing(starts, self.keys, file, shape, causal, length)


def _read(tiles: TileSet) -> Iterator[tuple[int, pa.Array, pa.Array, pa.Array]]:
    """Piece by piece how many tiles there are, and of all their sentences the tile, the sentence and its origin."""
    catalogue = tiles.corpus.rows()
    catalogue = catalogue.replace_schema(pa.unify_schemas([catalogue.schema, _COLUMNS]))
    kept = pc.field("kept") & (pc.field("size") == tiles.tiles.size)
    end = 0
    for batch in catalogue.to_batches(columns=_COLUMNS.names, filter=kept):
        start, end = end, end + len(batch)
        low, high = np.searchsorted(tiles.rows, [start, end])
        captions, origins = batch.take(pa.array(tiles.rows[low:high] - start)).columns
        tile = pc.list_parent_indices(captions).to_numpy()
        count, named = (pc.fill_null(pc.list_value_length(one), 0).to_numpy() for one in (captions, origins))
        place = np.arange(len(tile)) - (np.cumsum(count) - count)[tile]  # in the list of its tile
        at = pa.array((np.cumsum(named) - named)[tile] + place, mask=place >= named[tile])
        yield high - low, pa.array(tile), captions.flatten(), origins.flatten().take(at).fill_null("human")


def _taken(origin: pa.Array, origins: Sequence[str] | None, moved: bool) -> pa.Array:
    """Which sentences take part."""
    taken = origin.is_valid() if origins is None else pc.is_in(origin, pa.array(origins, pa.string()))
    return pc.and_not(taken, pc.ends_with(origin, _PLACED)) if moved else taken


def _distinct(sentences: pa.Array) -> pa.DictionaryArray:
    """Sentences with single blanks, each distinct one kept once; null where nothing is left."""
    given = sentences.cast(pa.large_string()).dictionary_encode()  # 13 million take more than 2 GB
    words = pc.utf8_split_whitespace(given.dictionary)
    texts = pc.utf8_trim_whitespace(pc.binary_join(words, pa.scalar(" ", pa.large_string())))
    texts = pc.if_else(pc.equal(texts, ""), None, texts).dictionary_encode()
    return pa.DictionaryArray.from_arrays(texts.indices.take(given.indices), texts.dictionary)
