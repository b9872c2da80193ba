"""From what the encoder saw to an answer at every asked position.

Every decoder is called as `decoder(memory, positions)` with `memory` the latents of what was seen, `positions (B, P)`
the patches to answer for, and behind them the latents of whatever else its term reads; it returns `(B, P, out)`.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.models.vit import Latents, Norm, Readout, ViT, init_weights, sincos_positions, take

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
        table = self.pos_embed[:, 1:].expand(positions.shape[0], -1, -1)
        return self.mask_token + take(table, positions)


class SelfAttention(Decoder):
    """Visible tokens and mask tokens attend to each other (MAE, He et al., CVPR 2022).

    Tokens carry their positions, so the visible ones stay in front and nothing is shuffled back.

    Args:
        encoder: The encoder whose latents are decoded.
        out: Number of values to answer a patch.
        depth: Number of blocks.
        width: Token width.
        heads: Attention heads.
    """

    def __init__(self, encoder: ViT, out: Out, depth: int = 8, width: int = 512, heads: int = 16) -> None:
        super().__init__(encoder, out, width, heads)
        self.embed = nn.Linear(encoder.width, width)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=Norm) for _ in range(depth))
        self.apply(init_weights)

    def forward(self, memory: Latents, positions: Tensor) -> Tensor:
        """Answer at `positions (B, P)`: `(B, P, out)`."""
        tokens = self.norm(self.sequence(memory, positions)[:, -positions.shape[1] :])
        answers: Tensor = self.pred(tokens, memory.sensor)
        return answers

    def sequence(self, memory: Latents, positions: Tensor) -> Tensor:
        """Class token, visible tokens and queries after the last block: `(B, prefix+K+P, width)`."""
        batch, queries = positions.shape
        seen = self.embed(memory.tokens)
        table = self.pos_embed.expand(batch, -1, -1)
        places = table[:, 1:] if memory.positions is None else take(table[:, 1:], memory.positions)
        seen = seen + torch.cat([table[:, : memory.prefix], places], 1)
        tokens = torch.cat([seen, self.queries(positions)], 1)
        mask = None
        if memory.key_valid is not None:
            mask = F.pad(memory.key_valid, (0, queries), value=True)[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, attn_mask=mask)
        return tokens


class CrossAttentionBlock(nn.Module):
    """Queries attend to a memory of another width, then to their own MLP; never to each other.

    Args:
        width: Width of the queries.
        memory_width: Width of the memory.
        heads: Attention heads.
    """

    def __init__(self, width: int, memory_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = Norm(width)
        self.cross_attn = nn.ModuleDict(
            {"q": nn.Linear(width, width), "kv": nn.Linear(memory_width, 2 * width), "proj": nn.Linear(width, width)}
        )
        self.norm2 = Norm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Update `(B, P, width)` queries from `(B, 1+K, memory_width)`; `mask (B, 1, 1, 1+K)` is False to ignore."""

        def split(tokens: Tensor) -> Tensor:
            return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)

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
        mask = None if memory.key_valid is None else memory.key_valid[:, None, None, :]
        for block, seen in zip(self.blocks, memories, strict=True):
            tokens = block(tokens, seen, mask)
        answers: Tensor = self.pred(self.norm(tokens), memory.sensor)
        return answers
