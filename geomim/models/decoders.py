"""From what the encoder saw to an answer at every asked position.

Every decoder is called as `decoder(memory, positions)` with `memory` the latents of what was seen, `positions (B, P)`
the patches to answer for, and behind them the latents of whatever else its term reads; it returns `(B, P, out)`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm as Norm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.models.hierarchical import Encoder
from geomim.models.joint import Joint, unit
from geomim.models.patches import Latents, Readout, sincos_positions, take
from geomim.models.vit import ViT, init_weights

Out = int | Literal["pixels"]


class Decoder(nn.Module):
    """What all decoders share: positions, a mask token for what was not seen, a norm and a linear answer.

    Args:
        encoder: The encoder whose latents are decoded.
        out: Number of values to answer a patch, or the pixels of whatever sensor was seen.
        width: Token width of the decoder.
        heads: Attention heads of the decoder.
    """

    pos_embed: Tensor
    reads_levels = False
    """Whether `memory.levels` is needed."""

    def __init__(self, encoder: ViT, out: Out, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"expected the decoder's width a multiple of its heads; given {width}/{heads}")
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("pos_embed", sincos_positions(width, encoder.grid))
        self.norm = Norm(width)
        self.pred = encoder.pixel_head(width) if out == "pixels" else Readout(width, out)
        nn.init.normal_(self.mask_token, std=0.02)

    def queries(self, positions: Tensor) -> Tensor:
        """Mask tokens at `(B, P)` positions: `(B, P, width)`."""
        return self.mask_token + self.places(positions)

    def places(self, positions: Tensor | None, batch: int = 1, prefix: int = 0) -> Tensor:
        """Position embedding `(B, prefix+P, width)` of patches, all of them where None."""
        table = self.pos_embed.expand(batch if positions is None else len(positions), -1, -1)
        places = table[:, 1:] if positions is None else take(table[:, 1:], positions)
        return torch.cat([table[:, :prefix], places], 1) if prefix else places


class Linear(nn.Module):
    """One linear map of what the encoder says at each position (SimMIM, Xie et al., CVPR 2022).

    As a 1x1 convolution before a pixel shuffle, with the answers in the order row, column, channel.

    Args:
        encoder: The encoder whose latents are decoded; it must see all patches.
        out: Number of values to answer a patch, or the pixels of whatever sensor was seen.
    """

    def __init__(self, encoder: Encoder, out: Out) -> None:
        super().__init__()
        self.pred = encoder.pixel_head(encoder.width) if out == "pixels" else Readout(encoder.width, out)

    def forward(self, memory: Latents, positions: Tensor) -> Tensor:
        """Answer at `positions (B, P)`: `(B, P, out)`."""
        answers: Tensor = self.pred(take(memory.patches, positions), memory.sensor)
        return answers


class SelfAttention(Decoder):
    """Visible tokens and mask tokens attend to each other (MAE, He et al., CVPR 2022).

    Tokens carry their positions, so the visible ones stay in front and nothing is shuffled back.

    Args:
        encoder: The encoder whose latents are decoded.
        out: Number of values to answer a patch.
        depth: Number of blocks.
        width: Token width.
        heads: Attention heads.
        cross: Every block also attends to a second memory (CroCo, Weinzaepfel et al., NeurIPS 2022).
    """

    def __init__(
        self, encoder: ViT, out: Out, depth: int = 8, width: int = 512, heads: int = 16, cross: bool = False
    ) -> None:
        super().__init__(encoder, out, width, heads)
        self.embed = nn.Linear(encoder.width, width)
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(width, width, heads, joint=True)
            if cross
            else Block(width, heads, qkv_bias=True, norm_layer=Norm)
            for _ in range(depth)
        )
        self.apply(init_weights)

    def forward(self, memory: Latents, positions: Tensor, *others: Latents) -> Tensor:
        """Answer at `positions (B, P)`: `(B, P, out)`."""
        tokens = self.norm(self.sequence(memory, positions, *others)[:, -positions.shape[1] :])
        answers: Tensor = self.pred(tokens, memory.sensor)
        return answers

    def place(self, memory: Latents) -> Tensor:
        """What was seen in the decoder's width, with its positions: `(B, prefix+K, width)`."""
        placed: Tensor = self.embed(memory.tokens) + self.places(memory.positions, len(memory.tokens), memory.prefix)
        return placed

    def sequence(self, memory: Latents, positions: Tensor, *others: Latents) -> Tensor:
        """Class token, visible tokens and queries after the last block: `(B, prefix+K+P, width)`."""
        tokens, mask = torch.cat([self.place(memory), self.queries(positions)], 1), None
        if memory.key_valid is not None:
            mask = F.pad(memory.key_valid, (0, positions.shape[1]), value=True)[:, None, None, :]
        # what a block is given of others is the same for all
        given = [part for one in others for part in (self.place(one), _mask(one))]
        for block in self.blocks:
            tokens = block(tokens, *given, attn_mask=mask)
        return tokens


def _mask(memory: Latents) -> Tensor | None:
    """Which tokens may be attended to, `(B, 1, 1, prefix+K)`; None where all may be."""
    return None if memory.key_valid is None else memory.key_valid[:, None, None, :]


class CrossAttentionBlock(nn.Module):
    """Queries attend to a memory of another width, then to their own MLP; to each other only where `joint`.

    Args:
        width: Width of the queries.
        memory_width: Width of the memory.
        heads: Attention heads.
        joint: Queries attend to each other first, and the memory has a norm of its own (Latent MIM, CroCo).
    """

    def __init__(self, width: int, memory_width: int, heads: int, joint: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.joint = nn.ModuleDict() if joint else None
        if self.joint is not None:
            self.joint.update({"norm": Norm(width), "attn": Attention(width, heads, qkv_bias=True)})
            self.joint["norm_memory"] = Norm(memory_width)
        self.norm1 = Norm(width)
        self.cross_attn = nn.ModuleDict(
            {"q": nn.Linear(width, width), "kv": nn.Linear(memory_width, 2 * width), "proj": nn.Linear(width, width)}
        )
        self.norm2 = Norm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """Update `(B, P, width)` queries from `(B, 1+K, memory_width)`.

        `mask (B, 1, 1, 1+K)` of the memory and `attn_mask (B, 1, 1, P)` of the queries are False to ignore.
        """

        def split(tokens: Tensor) -> Tensor:
            return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)

        if self.joint is not None:
            queries = queries + self.joint["attn"](self.joint["norm"](queries), attn_mask=attn_mask)
            memory = self.joint["norm_memory"](memory)
        part = self.cross_attn
        keys, values = part["kv"](memory).chunk(2, -1)
        pooled = F.scaled_dot_product_attention(
            split(part["q"](self.norm1(queries))), split(keys), split(values), attn_mask=mask
        )
        queries = queries + part["proj"](pooled.transpose(1, 2).flatten(2))
        updated: Tensor = queries + self.mlp(self.norm2(queries))
        return updated


class LevelMix(nn.Module):
    """A learned mix of the encoder's levels for every decoder block (CrossMAE, Fu et al., TMLR 2025, section 3.3).

    Args:
        encoder: The encoder whose levels are mixed.
        depth: Number of decoder blocks.
    """

    def __init__(self, encoder: ViT, depth: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(depth, encoder.depth + 1))
        self.norms = nn.ModuleList(Norm(encoder.width) for _ in range(depth))
        nn.init.normal_(self.weight, std=(encoder.depth + 1) ** -0.5)

    def mixed(self, levels: list[Tensor]) -> list[Tensor]:
        """Weighted sums of the levels, raw weights, one for every decoder block: each `(B, 1+K, D)`."""
        stacked = torch.stack(levels)
        return list(torch.tensordot(self.weight.to(stacked.dtype), stacked, 1))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One normalised memory for every decoder block: each `(B, 1+K, D)`."""
        return [norm(mix) for norm, mix in zip(self.norms, self.mixed(levels), strict=True)]


class CrossAttention(Decoder):
    """Each position asks the visible tokens alone, so any subset of positions can be answered (CrossMAE).

    Args:
        encoder: The encoder whose latents are decoded.
        out: Number of values to answer a patch.
        depth: Number of blocks.
        width: Token width.
        heads: Attention heads.
        mix_levels: Learn a mix of the encoder's levels for every block, instead of its normalised output.
    """

    def __init__(
        self, encoder: ViT, out: Out, depth: int = 12, width: int = 512, heads: int = 16, mix_levels: bool = False
    ) -> None:
        super().__init__(encoder, out, width, heads)
        self.mix = LevelMix(encoder, depth) if mix_levels else None
        self.reads_levels = mix_levels
        self.blocks = nn.ModuleList(CrossAttentionBlock(width, encoder.width, heads) for _ in range(depth))
        self.apply(init_weights)

    def forward(self, memory: Latents, positions: Tensor) -> Tensor:
        """Answer at `positions (B, P)`: `(B, P, out)`."""
        tokens = self.queries(positions)
        memories = [memory.tokens] * len(self.blocks) if self.mix is None else self.mix(memory.levels)
        mask = _mask(memory)
        for block, seen in zip(self.blocks, memories, strict=True):
            tokens = block(tokens, seen, mask)
        answers: Tensor = self.pred(self.norm(tokens), memory.sensor)
        return answers


class Pointwise(nn.Module):
    """Every visible token answers for its own patch through an MLP and a linear map (Ma et al., arXiv 2301.00230).

    Args:
        encoder: The encoder whose latents are read.
        out: Number of values to answer a patch.
        width: Width of the MLP.
    """

    def __init__(self, encoder: ViT, out: int, width: int = 512) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            *(nn.Linear(encoder.width, width), Norm(width), nn.GELU()),
            *(nn.Linear(width, width), Norm(width), nn.GELU()),
            *(nn.Linear(width, width), Norm(width, affine=False)),
        )
        self.pred = nn.Linear(width, out)
        self.apply(init_weights)

    def forward(self, memory: Latents, positions: Tensor) -> Tensor:
        """Answer at the memory's own positions, which `positions (B, K)` must be: `(B, K, out)`."""
        answers: Tensor = self.pred(self.projector(memory.patches))
        return answers


class LevelHeads(nn.Module):
    """Every visible token answers for some levels of a teacher from a learned mix of its own (Xue et al., CVPR 2023).

    Args:
        encoder: The encoder whose levels are mixed.
        levels: Levels to answer for, the teacher's last.
        out: Values of a level.
    """

    reads_levels = True

    def __init__(self, encoder: ViT, levels: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(levels, encoder.depth).flip(0, 1) + 0.01)
        self.heads = nn.ModuleList(nn.Linear(encoder.width, out) for _ in range(levels))
        self.apply(init_weights)

    def forward(self, memory: Latents, positions: Tensor) -> Tensor:
        """Answer for class token and patches at the memory's own positions: `(B, 1+K, levels*out)`."""
        stacked = torch.stack(memory.levels[1:])
        mixed = torch.tensordot(self.weight.to(stacked.dtype), stacked, 1)
        return torch.cat([head(level) for head, level in zip(self.heads, mixed, strict=True)], -1)


class Projector(nn.Module):
    """From tokens to where latents are compared: linear maps without bias, each with a norm behind it, GELU between.

    As in Latent MIM (Wei et al., ECCV 2024). As a decoder it answers for the patches that its memory holds.

    Args:
        width: Width of the tokens, before and after.
        hidden: Width between the three maps.
    """

    def __init__(self, width: int, hidden: int = 4096) -> None:
        super().__init__()
        widths = (width, hidden, hidden, width)
        layers = [(nn.Linear(*sides, bias=False), nn.LayerNorm(sides[1]), nn.GELU()) for sides in pairwise(widths)]
        self.layers = nn.Sequential(*[layer for group in layers for layer in group][:-1])
        self.apply(init_weights)

    def project(self, memory: Latents) -> Tensor:
        """Project all tokens, class token too: `(B, prefix+K, D)`; once, whoever asks."""
        if self not in memory.known:
            memory.known[self] = self.layers(memory.tokens)
        return memory.known[self]

    def forward(self, memory: Latents, positions: Tensor) -> Tensor:
        """The projected tokens of the seen patches, `(B, K, D)`; `positions` are theirs."""
        return self.project(memory)[:, memory.prefix :]


class Latent(Decoder):
    """Queries with a visual cue ask each other and the projected visible tokens (Latent MIM, Wei et al., ECCV 2024).

    The cue of a position is the mean of the visible tokens, weighted by how near they are in position embedding.

    Args:
        encoder: The encoder whose latents are decoded.
        projector: Where the visible tokens go first, and in whose space the answers are.
        depth: Number of blocks.
        width: Token width.
        heads: Attention heads.
    """

    def __init__(self, encoder: ViT, projector: Projector, depth: int = 3, width: int = 512, heads: int = 16) -> None:
        super().__init__(encoder, encoder.width, width, heads)
        self.projector = projector
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.embed = nn.Linear(encoder.width, width)
        self.blocks = nn.ModuleList(CrossAttentionBlock(width, width, heads, joint=True) for _ in range(depth))
        self.apply(init_weights)

    def forward(self, memory: Latents, positions: Tensor) -> Tensor:
        """Answer at `positions (B, P)`: `(B, P, D)`."""
        batch, prefix = len(positions), memory.prefix
        embedded = self.embed(self.projector.project(memory))
        places = self.places(memory.positions, batch, prefix)
        mask = _mask(memory)
        # not -inf, which gives no number where nothing visible was measured
        near = None if mask is None else torch.where(mask[..., prefix:], 0.0, -1e4)
        seen, values = places[:, None, prefix:], embedded[:, None, prefix:]
        cue = F.scaled_dot_product_attention(self.places(positions)[:, None], seen, values, attn_mask=near)[:, 0]
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), self.queries(positions) + cue], 1)
        for block in self.blocks:
            tokens = block(tokens, embedded + places, mask)
        answers: Tensor = self.pred(self.norm(tokens[:, 1:]), memory.sensor)
        return answers


class Pooled(nn.Module):
    """The vector of the whole image in the space of images and sentences.

    Args:
        joint: The space.
    """

    reads_levels = False

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        self._joint = (joint,)  # in a tuple, since it is no part of this one

    def forward(self, memory: Latents, positions: Tensor) -> Tensor:
        """`(B, 1, D)` of what was seen, whatever the positions."""
        return self._joint[0].image(memory)[:, None]


class Spoken(nn.Module):
    """What a decoder answers, put into the space of images and sentences as what the encoder says is (RILS).

    Args:
        decoder: Answers as many values as the encoder has channels.
        joint: The space.
    """

    def __init__(self, decoder: Decoder, joint: Joint) -> None:
        super().__init__()
        self.decoder, self.reads_levels = decoder, decoder.reads_levels
        self._joint = (joint,)

    def forward(self, memory: Latents, positions: Tensor) -> Tensor:
        """Unit vectors at `positions (B, P)`: `(B, P, D)`."""
        return unit(self._joint[0].project(self.decoder(memory, positions)))
