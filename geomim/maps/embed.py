"""What an encoder says of every patch of a scene of any size, as a raster that lies on the scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomim.addresses import plain
from geomim.corpus.scenes import Scene
from geomim.errors import ConfigError, InputError
from geomim.evaluate.features import encode, fast_half
from geomim.evaluate.saved import fingerprint
from geomim.maps.embeddings import Dtype, Rounding, described, replaced
from geomim.maps.looker import Looker
from geomim.maps.opening import check_scene, chosen_for, open_for, scale_note
from geomim.maps.patches import open_patches, write_patches
from geomim.maps.rasters import placed
from geomim.maps.strips import Strips, address, digest, scene_card
from geomim.maps.windows import Walk, blend
from geomim.models.fitting import fitted
from geomim.models.image_text import ImageText, open_image_text
from geomim.models.inputs import ContractInput
from geomim.models.weights import Loaded, read_encoder
from geomim.sensors import BandContract, get_sensor


@dataclass(frozen=True)
class GivenScene:
    """A scene as a user names it.

    Attributes:
        uri: A raster, product or cube.
        sensor: Name or YAML file of its sensor, if given.
        bands: Names of the file's bands, if given.
        all_bands: Give an encoder of any sensor all of them.
    """

    uri: str
    sensor: str | None = None
    bands: Sequence[str] | None = None
    all_bands: bool = False

    def chosen(self, loaded: Loaded, name: str) -> tuple[BandContract, tuple[str, ...]]:
        """What the encoder of this name sees it with, and what was assumed."""
        return chosen_for(loaded, name, self.uri, self.sensor, self.bands, self.all_bands)

    def open(self, contract: BandContract) -> tuple[Scene, ContractInput]:
        """Open it for a contract."""
        return open_for(contract, self.uri, None if self.sensor is None else get_sensor(self.sensor), self.bands)


def patch_encoder(checkpoint: str, scene: GivenScene, heads: int | None, device: torch.device) -> Looker:
    """An encoder whose answer is the token of each patch."""
    loaded = read_encoder(checkpoint, heads)
    contract, notes = scene.chosen(loaded, checkpoint)

    def at(gsd: float | None) -> Callable[[Tensor, Tensor], Tensor]:
        encoder = fitted(loaded.encoder, contract, gsd).to(device).eval()

        def look(images: Tensor, valid: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=fast_half(device)):
                _, tokens, grid = encode(encoder, images)
            return tokens.float().transpose(1, 2).unflatten(2, grid)

        return look

    sides = (loaded.encoder.image_size, loaded.encoder.patch_size)
    return _looker(loaded, contract, notes, fingerprint(loaded.encoder), sides, at, device)


def joint_encoder(checkpoint: str, scene: GivenScene, quickgelu: bool | None, device: torch.device) -> Looker:
    """A model of images and text whose answer is each patch in the space of sentences."""
    model = open_image_text(checkpoint, quickgelu)
    contract, notes = scene.chosen(model.loaded, checkpoint)

    def at(gsd: float | None) -> Callable[[Tensor, Tensor], Tensor]:
        ready: ImageText = model.fitted(contract, gsd).to(device)

        def look(images: Tensor, valid: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=fast_half(device)):
                patches = ready.encode_patches(images, valid)
            rows, columns = (side // ready.patch_size for side in images.shape[-2:])
            return patches.float().transpose(1, 2).unflatten(2, (rows, columns))

        return look

    sides = (model.image_size, model.patch_size)
    return _looker(model.loaded, contract, notes, model.fingerprint, sides, at, device)


def _looker(
    loaded: Loaded,
    contract: BandContract,
    notes: Sequence[str],
    made_by: str,
    sides: tuple[int, int],
    at: Callable[[float | None], Callable[[Tensor, Tensor], Tensor]],
    device: torch.device,
) -> Looker:
    side, cell = sides
    look, empty = at(None), torch.zeros(1, len(contract.names), side, side, device=device)
    with torch.inference_mode():
        width = look(empty, torch.ones(1, 1, side, side, dtype=torch.bool, device=device)).shape[1]
    names = tuple(f"dimension {number}" for number in range(width))
    looker = Looker(contract, side, cell, names, made_by, look, device, tuple(notes))
    if not loaded.encoder.config.get("gsd_positions"):
        return looker
    return replace(looker, scaled=lambda gsd: replace(looker, look=at(gsd)))


def embed_scene(
    given: GivenScene,
    looker: Looker,
    facts: dict[str, Any],
    out: Path,
    dtype: Dtype = "float16",
    overlap: float = 0.5,
    batch: int = 16,
) -> None:
    """Write what an encoder says of every patch of a scene; stopped and started again, it goes on.

    Args:
        given: The scene.
        looker: The encoder, of `patch_encoder` or `joint_encoder`.
        facts: What the file says of it: `checkpoint`, and of a joint space `joint`.
        out: `.tif` or `.zarr`.
        dtype: How vectors are kept.
        overlap: Share of its side that a window has in common with the next, 0 to 0.9.
        batch: Windows looked at together.

    Raises:
        BandError: The scene lacks bands that the encoder needs.
        ConfigError: The overlap is out of range, or `out` holds vectors of another scene.
        InputError: The scene cannot be read, holds no image, or its numbers are far from the encoder's.
    """
    if not 0 <= overlap <= 0.9:
        raise ConfigError(f"--overlap: expected a share of a window from 0 to 0.9; given {overlap:g}")
    if Path(given.uri).absolute() == out.absolute():
        raise ConfigError(f"--out would be written over the scene '{out}': name another file")
    scene, prepare = given.open(looker.contract)
    with scene:
        looker = looker.at(scene)
        walk = looker.walk(scene, overlap)
        which = scene_card(given.uri)
        card = {
            **facts,
            "encoder": looker.made_by,
            "contract": looker.contract.to_dict(),
            "sensor": prepare.sensor.to_dict(),
            "pool": "none",
            "image_size": looker.side,
            "patch_size": looker.cell,
            "overlap": overlap,
            "source": plain(address(given.uri)),
            "state": digest(which),
            "shape": [*walk.shape],
        }
        if _there(out, {**card, "dtype": dtype}):
            print(f"'{out}' is there already")
            return
        also = [scale_note(scene, looker.contract)] if looker.scaled else []
        check_scene(scene, prepare, walk.places, looker.side, [*looker.notes, *also])
        out.parent.mkdir(parents=True, exist_ok=True)
        with Strips(out, {**which, **card}) as strips:
            _walk(scene, walk, looker, prepare, strips, batch)
            rounding = Rounding.of(dtype, (strip.reshape(len(strip), -1).T for strip in strips))
            layout = {"layout_type": "regular_grid", "chip_size": [looker.cell] * 2, "stride": [looker.cell] * 2}
            said = described(card, len(looker.classes), rounding, layout)
            said |= {"geoemb:gsd": float(scene.gsd)} if scene.gsd else {}
            write_patches(out, placed(scene, looker.cell), said, rounding, strips)
            strips.remove()
    rows, columns = walk.shape
    print(f"wrote {out}: {rows} x {columns} patches of {looker.cell} px, {len(looker.classes)} values each, {dtype}")


def _walk(scene: Scene, walk: Walk, looker: Looker, prepare: ContractInput, strips: Strips, batch: int) -> None:
    """Encode what is not encoded yet."""
    try:
        for _, values in blend(scene, walk, looker.on(prepare), len(looker.classes), batch, strips.done):
            strips.add(values)
    except InputError:
        strips.broken()
        raise
    if not any(np.isfinite(strip[0]).any() for strip in strips):
        strips.remove()
        raise InputError(f"'{scene.uri}': no patch holds image, all is nodata: there is nothing to embed")


def _there(out: Path, card: dict[str, Any]) -> bool:
    """Whether just these vectors are there; says what is replaced."""
    if not out.exists():
        return False
    try:
        with open_patches(out) as found:
            before = found.card
    except InputError as error:
        raise ConfigError(f"--out '{out}' is there, and holds no vectors of patches: name another file") from error
    if all(before.get(key) == value for key, value in card.items()):
        return True
    for note in replaced(out, card, before):
        print(f"note: {note}")
    return False
