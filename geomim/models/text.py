"""Text towers: open_clip's, built from their sizes, with their tokenizers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from geomim.errors import CheckpointError, ConfigError
from geomim.models.clip import SOURCES, Clip, architecture, open_clip, read_clip
from geomim.models.weights import fill

_FOLDER = (
    "download the model's folder, with the tokenizer's files, and give it as local-dir:FOLDER, or take an architecture "
    "with CLIP's tokenizer, as ViT-B-32"
)
_SAID = ["A River crosses farm-land; 3 ships_at (N. Pier)!", "ein  Fluß, 12.5 ha, \N{SHIP}", ""]
"""Sentences that tell tokenizers apart."""
TINY = {"embed_dim": 192, "quick_gelu": False, "text_cfg": {"width": 192, "heads": 3, "layers": 2}}
"""A text tower for CPUs, with CLIP's tokenizer."""


@cache
def _of_clip(context_length: int) -> Any:
    """CLIP's tokenizer, which reads a large vocabulary: once a process."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=context_length)


class TextTower(nn.Module):
    """Sentences to vectors, not normalised.

    It always runs as in evaluation: dropout, where a model of Hugging Face has any, would not be addressed.

    Args:
        config: `embed_dim`, `quick_gelu` and `text_cfg`, as open_clip's configurations hold them; and `tokenizer`, a
            digest of the content of one from a folder, where it must be the same.

    Attributes:
        dim: Width of what it answers.
        context_length: Most tokens of a sentence; the rest is cut off.
        causal: Tokens see no later ones, so that what stands behind the end of a sentence need not be computed.
        notes: What was assumed of its weights, in sentences.
        rights: Of weights that it started from, as an encoder has them.
    """

    notes: tuple[str, ...] = ()
    rights: tuple[dict[str, Any], ...] = ()

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        open_clip()
        from open_clip.model import _build_text_tower  # of any kind: its constructors differ

        self.config = {
            key: config[key] for key in ("embed_dim", "quick_gelu", "text_cfg", "tokenizer") if key in config
        }
        sizes = dict(self.config["text_cfg"])
        try:
            offline = sizes | ({"hf_model_pretrained": False} if "hf_model_name" in sizes else {})
            self.network: Any = _build_text_tower(config["embed_dim"], offline, config["quick_gelu"])
        except Exception as error:  # sizes that do not fit, a model that is not there
            raise ConfigError(f"open_clip cannot build the text tower {sizes} ({error})") from error
        self.dim = int(config["embed_dim"])
        self.context_length = int(sizes.get("context_length", 77))
        mask = getattr(self.network, "attn_mask", None)
        pool, tail = getattr(self.network, "pool_type", ""), getattr(self.network, "cls_emb", None)
        self.causal = mask is not None and tail is None and pool in ("argmax", "eos")

    @property
    def identity(self) -> str:
        """What its tokens follow from."""
        names = ("context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")
        return str({name: self.content["text_cfg"].get(name) for name in names})

    @property
    def content(self) -> dict[str, Any]:
        """Its `config` wherever its tokenizer lies: a digest stands for the name."""
        sizes = self.config["text_cfg"]
        if not sizes.get("hf_tokenizer_name"):
            return self.config
        _ = self._tokenizer  # which tells the digest
        return {**self.config, "text_cfg": sizes | {"hf_tokenizer_name": self.config["tokenizer"]}}

    @property
    def blocks(self) -> nn.ModuleList | None:
        """Its transformer's, where ranks share their weights or keep less of them."""
        blocks: nn.ModuleList | None = getattr(getattr(self.network, "transformer", None), "resblocks", None)
        return blocks

    def train(self, mode: bool = True) -> TextTower:
        """Stay as in evaluation."""
        return super().train(False)

    @cached_property
    def _tokenizer(self) -> Any:
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

        sizes = self.config["text_cfg"]
        options = {"context_length": self.context_length, **(sizes.get("tokenizer_kwargs") or {})}
        if name := sizes.get("hf_tokenizer_name"):
            try:
                found = HFTokenizer(name, tokenizer_mode=sizes.get("tokenizer_mode"), **options)
            except Exception as error:  # no such files, no network, a library that is missing
                reason = " ".join(str(error).split())[:200]
                raise ConfigError(f"the text tower's tokenizer '{name}' cannot be had ({reason}): {_FOLDER}") from error
            digest = _digest(found)
            if self.config.setdefault("tokenizer", digest) != digest:
                raise CheckpointError(f"the tokenizer '{name}' is another than the text tower has: put its own there")
            return found
        tokenizer = SimpleTokenizer(**options) if sizes.get("tokenizer_kwargs") else _of_clip(self.context_length)
        if (number := sizes.get("vocab_size", tokenizer.vocab_size)) < tokenizer.vocab_size:
            raise ConfigError(f"the text tower knows {number} tokens; CLIP's tokenizer has {tokenizer.vocab_size}")
        return tokenizer

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        """Tokens `(n, context_length)` int64; of a longer sentence the first ones, and its end."""
        tokens: Tensor = self._tokenizer(list(sentences))
        return tokens

    def trim(self, tokens: Tensor) -> Tensor:
        """Leave out what no sentence of `tokens (n, T)` reaches, to a multiple of 8; exact, and only where causal."""
        if not self.causal or not len(tokens):
            return tokens
        longest = int(self._ends(tokens).max()) + 1
        return tokens[:, : -(-longest // 8) * 8]

    def _ends(self, tokens: Tensor) -> Tensor:
        """Where each sentence of `tokens (n, T)` ends: `(n,)`."""
        if self.network.pool_type == "eos":
            ends: Tensor = tokens == self.network.eos_id
            return ends.int().argmax(1)
        return tokens.argmax(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors `(U, dim)` of `tokens (U, T)`, T up to the context length where it is causal, else just that."""
        network, length = self.network, tokens.shape[1]
        if not self.causal:
            whole: Any = network(tokens)
            vectors: Tensor = whole[0] if isinstance(whole, tuple) else whole  # CoCa's gives its tokens as well
            return vectors
        states = network.token_embedding(tokens) + network.positional_embedding[:length]
        states = network.transformer(states, attn_mask=network.attn_mask[:length, :length])
        states = network.ln_final(states)[torch.arange(len(tokens), device=tokens.device), self._ends(tokens)]
        projection = network.text_projection
        if projection is not None:
            states = projection(states) if isinstance(projection, nn.Module) else states @ projection
        answer: Tensor = states
        return answer


@dataclass(frozen=True)
class Text:
    """Which text tower a recipe has.

    Args:
        name: `tiny`, of 2 layers 192 wide; an architecture of open_clip whose tokenizer is CLIP's, as `ViT-B-32`; or
            `local-dir:FOLDER` with `open_clip_config.json` and the tokenizer's files.
        weights: Start from those of a model: `remoteclip:PATH`, `open_clip:NAME/PRETRAINED`, for a folder
            `open_clip:local-dir:FOLDER`.
        frozen: Its weights are not trained.
        quickgelu: Its activation, where neither weights nor architecture say.
    """

    name: str = "tiny"
    weights: str | None = None
    frozen: bool = False
    quickgelu: bool | None = None

    def build(self) -> TextTower:
        """Make it, see `build_text`."""
        return build_text(self.name, self.weights, self.frozen, self.quickgelu)


@dataclass(frozen=True)
class Stored:
    """The text tower of a checkpoint, in place of `Text`: built as it was, whatever that would be by now.

    Args:
        config: Of the tower; its weights come with the checkpoint.
        weights: What they started from, which is not read.
        frozen: As of `Text`.
    """

    config: Mapping[str, Any]
    weights: str | None = None
    frozen: bool = False

    def build(self) -> TextTower:
        """Make it."""
        return _ready(TextTower(self.config), self.frozen)


def stored(method: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a recipe for a checkpoint of it, whose text tower is built as it was.

    Args:
        method: The arguments.
        entry: The `geomim` entry of the checkpoint.
    """
    if not (joint := entry.get("joint")):
        return dict(method)
    text = method.get("text") or Text()
    return {**method, "text": Stored(joint["text"], text.weights, text.frozen)}


def build_text(
    name: str = "tiny", weights: str | None = None, frozen: bool = False, quickgelu: bool | None = None
) -> TextTower:
    """Make a text tower; arguments as of `Text`, weights as `read_clip` reads them.

    Raises:
        ConfigError: There is no such architecture here.
        CheckpointError: The weights cannot be read, or are of another one.
    """
    if weights is not None:
        tower = text_tower(read_clip(weights, quickgelu))
        _same(name, tower.config, weights)
    else:
        config = {"quick_gelu": False, **_sizes(name)}
        tower = TextTower(config if quickgelu is None else config | {"quick_gelu": quickgelu})
    return _ready(tower, frozen)


def _ready(tower: TextTower, frozen: bool) -> TextTower:
    tower.tokenize([""])  # what cannot be had is said before anything is read
    return tower.requires_grad_(not frozen)


def _digest(tokenizer: Any) -> str:
    """Of the words of a tokenizer of Hugging Face and what it makes of some, whatever version of a library reads it."""
    said = [sorted(tokenizer.tokenizer.get_vocab().items()), tokenizer(_SAID).tolist()]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


def text_tower(clip: Clip) -> TextTower:
    """The text tower of a model, with its weights."""
    tower = TextTower(clip.config)
    theirs = getattr(clip.model, "text", clip.model).state_dict()
    state = {name: value for name, value in theirs.items() if name in tower.network.state_dict()}
    fill(clip.source, tower.network, state, "a text tower")
    tower.notes = (f"text tower started from {clip.source}, {clip.notes[-1]}",)
    tower.rights = ({"weights": clip.source, "licences": [], "attributions": []},)  # such files state none
    return tower


def _sizes(name: str) -> dict[str, Any]:
    """`embed_dim` and `text_cfg` of an architecture; only what is here, nothing is fetched."""
    if name == "tiny":
        return TINY
    if name.startswith(SOURCES):
        raise ConfigError(f"text '{name}' is a source of weights: give it as weights, and the architecture as name")
    try:
        config = architecture(name)
    except CheckpointError as error:
        raise ConfigError(f"text: {error}, or tiny") from error
    sizes = config["text_cfg"]
    fetched = sizes.get("hf_tokenizer_name") or sizes.get("hf_model_name")
    if fetched and not name.startswith("local-dir:"):
        raise ConfigError(
            f"text '{name}' needs the tokenizer '{fetched}', which does not come with open_clip: {_FOLDER}"
        )
    return config


def _same(name: str, given: Mapping[str, Any], weights: str) -> None:
    """Refuse weights of another architecture or vocabulary than the one that is named."""

    def sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
        every = asdict(open_clip().CLIPTextCfg(**config["text_cfg"])) | {"dim": config["embed_dim"]}
        return every | {"hf_tokenizer_name": bool(every["hf_tokenizer_name"])}  # one folder has several names

    ours, theirs = sizes_of(_sizes(name)), sizes_of(given)
    others = [key for key in ours if ours[key] != theirs[key]]
    if others:
        own, named = (", ".join(f"{key} {sizes[key]}" for key in others) for sizes in (theirs, ours))
        raise CheckpointError(f"'{weights}' has a text tower of {own}; '{name}' has {named}: name the weights' own")
