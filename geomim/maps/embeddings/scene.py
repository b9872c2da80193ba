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
from geomim.corpus.scenes.files import is_same
from geomim.errors import ConfigError, InputError
from geomim.evaluate.features import device_of, fast_half
from geomim.evaluate.saved import fingerprint
from geomim.maps.embeddings.patches import open_patches, write_patches
from geomim.maps.embeddings.rows import slow_note
from geomim.maps.embeddings.vectors import Dtype, Rounding, described, replaced
from geomim.maps.files.rasters import placed
from geomim.maps.scenes.opening import check_scene, chosen_for, gsd_note, open_for, scale_note
from geomim.maps.walk.encoder import open_encoder
from geomim.maps.walk.looker import Looker
from geomim.maps.walk.strips import Strips, address, digest, scene_card, told_when_full
from geomim.maps.walk.windows import Walk, blend, check_overlap
from geomim.models.image_text import ImageText, open_image_text
from geomim.models.inputs import ContractInput
from geomim.models.weights import Loaded
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


def patch_encoder(checkpoint: str, scene: GivenScene, heads: int | None, device: str) -> Looker:
    """An encoder whose answer is the token of each patch.

    Raises:
        ConfigError: All bands are asked of a plain encoder.
    """
    frozen = open_encoder(checkpoint, heads, device, lambda loaded: scene.chosen(loaded, checkpoint))
    if scene.all_bands and not frozen.source.config.get("spectral"):
        raise ConfigError(f"'{checkpoint}' is a plain encoder of its own bands: leave out --all_bands")
    side, bands = frozen.encoder.image_size, len(frozen.contract.names)
    width = frozen.tokens(torch.zeros(1, bands, side, side, device=frozen.device)).shape[1]
    return frozen.looker(_names(width), lambda tokens: tokens, fingerprint(frozen.source))


def joint_encoder(checkpoint: str, scene: GivenScene, quickgelu: bool | None, device: str) -> Looker:
    """A model of images and text whose answer is each patch in the space of sentences."""
    model, target = open_image_text(checkpoint, quickgelu), device_of(device)
    contract, notes = scene.chosen(model.loaded, checkpoint)
    side, cell = model.image_size, model.patch_size

    def at(gsd: float | None) -> Callable[[Tensor, Tensor], Tensor]:
        ready: ImageText = model.fitted(contract, gsd).to(target)

        def look(images: Tensor, valid: Tensor) -> Tensor:
            with torch.autocast(target.type, torch.bfloat16, enabled=fast_half(target)):
                patches = ready.encode_patches(images, valid)
            return patches.float().transpose(1, 2).unflatten(2, (side // cell, side // cell))

        return look

    look, empty = at(None), torch.zeros(1, len(contract.names), side, side, device=target)
    names = _names(look(empty, torch.ones_like(empty[:, :1], dtype=torch.bool)).shape[1])
    looker = Looker(contract, side, cell, names, model.fingerprint, look, target, tuple(notes))
    if not model.encoder.config.get("gsd_positions"):
        return looker
    return replace(looker, scaled=lambda gsd: replace(looker, look=at(gsd)))


def _names(width: int) -> tuple[str, ...]:
    return tuple(f"dimension {number}" for number in range(width))


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
        InputError: The scene cannot be read, holds no image, or its numbers are far from the encoder's; another process
            writes the same, or the disk is full.
    """
    check_overlap(overlap)
    if is_same(given.uri, out):
        raise ConfigError(f"--out would be written over the scene '{out}': name another file")
    scene, prepare = given.open(looker.contract)
    with scene:
        looker = looker.at(scene)
        walk = looker.walk(scene, overlap)
        which, made = scene_card(given.uri), _made(given, looker, walk, prepare) | facts | {"overlap": overlap}
        card = {**made, "state": digest(which)}
        if _there(out, {**card, "dtype": dtype}):
            print(f"'{out}' is there already")
            return
        also = [scale_note(scene, looker.contract)] if looker.scaled else gsd_note(scene, looker.contract, looker.gsd)
        notes = [*looker.notes, *also, *slow_note(out, (len(looker.classes), *walk.shape))]
        check_scene(scene, prepare, walk.places, looker.side, notes)
        out.parent.mkdir(parents=True, exist_ok=True)
        with told_when_full(out), Strips(out, {**which, **made, "device": looker.device.type}) as strips:
            _walk(scene, walk, looker, prepare, strips, batch)
            _finish(scene, looker, card, dtype, strips)
            strips.remove()
    rows, columns = walk.shape
    print(f"wrote {out}: {rows} x {columns} patches of {looker.cell} px, {len(looker.classes)} values each, {dtype}")


def _made(given: GivenScene, looker: Looker, walk: Walk, prepare: ContractInput) -> dict[str, Any]:
    """What the vectors depend on besides the scene's own state."""
    return {
        "encoder": looker.made_by,
        "contract": looker.contract.to_dict(),
        "sensor": prepare.sensor.to_dict(),
        "pool": "none",
        "image_size": looker.side,
        "patch_size": looker.cell,
        "source": plain(address(given.uri)),
        "shape": [*walk.shape],
    }


def _finish(scene: Scene, looker: Looker, card: dict[str, Any], dtype: Dtype, strips: Strips) -> None:
    """Write the vectors of all strips."""
    rounding = Rounding.of(dtype, (strip.reshape(len(strip), -1).T for strip in strips))
    layout = {"layout_type": "regular_grid", "chip_size": [looker.cell] * 2, "stride": [looker.cell] * 2}
    said = described(card, len(looker.classes), rounding, layout)
    said |= {"geoemb:gsd": float(scene.gsd)} if scene.gsd else {}
    write_patches(strips.path, placed(scene, looker.cell), said, rounding, strips, strips.work)


def _walk(scene: Scene, walk: Walk, looker: Looker, prepare: ContractInput, strips: Strips, batch: int) -> None:
    """Encode what is not encoded yet."""
    found = blend(scene, walk, looker.on(prepare), len(looker.classes), batch, strips.done)
    strips.fill(found, lambda strip: strip[1])
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
