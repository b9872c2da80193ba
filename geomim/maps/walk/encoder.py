"""A frozen encoder that windows of scenes are shown to, patch by patch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomim.evaluate.features import device_of, encode, fast_half
from geomim.maps.walk.looker import Looker
from geomim.models.fitting import Chosen, fitted
from geomim.models.hierarchical import Encoder
from geomim.models.weights import Loaded, contract_of, read_encoder
from geomim.sensors import BandContract


@dataclass(frozen=True)
class Frozen:
    """An encoder for one sensor.

    Attributes:
        encoder: On `device`.
        contract: Bands and statistics its input must have.
        device: Where it runs.
        source: The encoder as it was read.
        notes: What was assumed of it.
        gsd: Metres a pixel that it is used for, where positions follow them; else None.
    """

    encoder: Encoder
    contract: BandContract
    device: torch.device
    source: Encoder
    notes: tuple[str, ...] = ()
    gsd: float | None = None

    @property
    def follows(self) -> bool:
        """Whether positions follow the metres a pixel."""
        return bool(self.source.config.get("gsd_positions"))

    def at(self, gsd: float | None) -> Frozen:
        """The same for so many metres a pixel."""
        if not self.follows:
            return self
        return replace(self, encoder=fitted(self.source, self.contract, gsd).to(self.device), gsd=gsd)

    @torch.inference_mode()
    def tokens(self, images: Tensor) -> Tensor:
        """Patch tokens `(B, D, h, w)` float32 of normalised images, on `device`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_half(self.device)):
            _, tokens, grid = encode(self.encoder, images)
        return tokens.float().transpose(1, 2).unflatten(2, grid)

    def looker(self, classes: tuple[str, ...], decide: Callable[[Tensor], Tensor], made_by: str) -> Looker:
        """What looks at windows with it.

        Args:
            classes: Their names.
            decide: Patch tokens `(B, L, D)` to probabilities `(B, L, K)`.
            made_by: Digest of encoder and head.
        """

        def look(images: Tensor, valid: Tensor) -> Tensor:
            tokens = self.tokens(images)
            return decide(tokens.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, tokens.shape[2:])

        def scaled(gsd: float | None) -> Looker:
            return replace(self.at(gsd).looker(classes, decide, made_by), gsd=self.gsd)

        return Looker(
            contract=self.contract,
            side=self.encoder.image_size,
            cell=self.encoder.patch_size,
            classes=classes,
            made_by=made_by,
            look=look,
            device=self.device,
            notes=self.notes,
            gsd=self.gsd,
            scaled=scaled if self.follows else None,
        )


def open_encoder(
    checkpoint: str, heads: int | None, device: str, choose: Callable[[Loaded], Chosen], gsd: float | None = None
) -> Frozen:
    """Read an encoder; one of any sensor is baked for the contract that is then chosen, and for the metres a pixel.

    Args:
        checkpoint: As of `read_encoder`; likewise `heads`.
        heads: See there.
        device: As of `device_of`.
        choose: The contract of a spectral encoder.
        gsd: Metres a pixel, where positions follow them.

    Raises:
        CheckpointError: It cannot be read.
        BandError: It names no bands and is not for RGB.
    """
    loaded = read_encoder(checkpoint, heads)
    spectral = loaded.encoder.config.get("spectral")
    contract, notes = choose(loaded) if spectral else contract_of(loaded, checkpoint)
    target = device_of(device)
    return Frozen(fitted(loaded.encoder, contract, gsd).to(target), contract, target, loaded.encoder, notes, gsd)
