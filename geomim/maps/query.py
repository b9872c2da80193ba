"""`geomim query`: what a sentence speaks of, found in a scene."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Literal

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor
from torch.nn import functional as F

from geomim.addresses import plain
from geomim.corpus.scenes import Scene
from geomim.corpus.scenes.files import is_same
from geomim.errors import ConfigError, InputError
from geomim.evaluate.features import device_of, fast_half
from geomim.maps.answers import classify, enlarge, outline
from geomim.maps.files.layers import check_replaced
from geomim.maps.files.pictures import check_picture, quick_look
from geomim.maps.files.rasters import NODATA, check_endings, create, placed, write_cog
from geomim.maps.scenes.opening import check_scene, chosen_for, open_for, scale_note
from geomim.maps.walk.strips import Strips, address, scene_card, told_when_full
from geomim.maps.walk.windows import Look, Walk, blend, check_overlap
from geomim.models.image_text import ImageText, open_image_text
from geomim.models.inputs import ContractInput, patch_validity
from geomim.sensors import get_sensor

PROMPT = "a satellite photo of {}."
"""The sentence that a text is put into: that of RemoteCLIP (Liu et al., TGRS 2024)."""

BACKGROUND = ["an area", "a place", "something", "things"]
"""Texts that say nothing in particular."""

Score = Literal["relevance", "cosine"]
_BATCH = 16  # windows looked at together


@dataclass(frozen=True)
class Question:
    """Texts as a model has them.

    Attributes:
        texts: What is sought.
        vectors: `(K + 1, D)` unit vectors of the texts, and of the background last.
        scale: What the model multiplies cosines by.
        score: Relevance, or cosines as they are.
    """

    texts: tuple[str, ...]
    vectors: Tensor
    scale: float
    score: Score

    def scores(self, cosines: np.ndarray) -> np.ndarray:
        """Scores `(K, ...)` of the texts, of cosines `(K + 1, ...)` to texts and background; NaN stays NaN."""
        if self.score == "cosine":
            return cosines[:-1]
        return 1 / (1 + np.exp(self.scale * (cosines[-1:] - cosines[:-1])))


def query(
    scene: str,
    model: str,
    text: list[str],
    out: str,
    prompt: str = PROMPT,
    background: list[str] = BACKGROUND,
    score: Score = "relevance",
    resolution: Literal["patch", "pixel"] = "patch",
    overlap: float = 0.25,
    classes: str | None = None,
    polygons: str | None = None,
    threshold: float | None = None,
    sensor: str | None = None,
    bands: list[str] | None = None,
    all_bands: bool = False,
    quickgelu: bool | None = None,
    device: str = "auto",
) -> list[Path]:
    """Ask a scene where it shows what texts say: a placed raster with a band a text, and a picture beside it.

    A score is the relevance of a text at a place: a softmax, with the model's own scale, of two cosines, to the text
    and to the background. It lies in 0..1 and is above 0.5 where the text fits better than the background does. It
    does not depend on the other texts that are asked for, so that their bands compare. The background is the mean of
    sentences that say nothing in particular; naming what else the scene shows instead often sharpens an answer, and a
    small model, which hardly knows such sentences, needs it: what exceeds 0.5 nearly everywhere is said.
    `--score cosine` gives the cosines to the texts as they are, whose usual height differs from text to text.

    Windows of the model's size overlap, the last ones moved inside, and are blended. Patches of mostly nodata, or that
    lie mostly beyond the scene, are NaN. What is stopped goes on when the same command is given again.

    Examples:
        geomim query scene.tif --model last.ckpt --text "oil tanks" --text river --out heat.tif
        geomim query naip.tif --sensor naip --model remoteclip:RemoteCLIP-ViT-B-32.pt --text river --out river.tif
        geomim query scene.tif --model last.ckpt --text river --background forest,farmland --out river.tif
        geomim query scene.tif --model last.ckpt --text water,forest --out heat.tif --classes classes.tif
        geomim query scene.tif --model last.ckpt --text water --out heat.tif --polygons water.gpkg --threshold 0.6

    Args:
        scene: A raster, product or cube.
        model: One of images and text: a geomim checkpoint or export of a recipe with sentences; or
            `remoteclip:PATH[@ARCH]`, or `open_clip:NAME/PRETRAINED`.
        text: What to look for, one or more: `--text "oil tanks" --text river`, or with commas between.
        out: The raster, a cloud-optimised GeoTIFF that ends in `.tif`; bands are described by their texts. A PNG of the
            same name shows it.
        prompt: The sentence that each text, also of the background, is put into at `{}`; `{}` alone leaves them as they
            are.
        background: Texts that relevance is measured against.
        score: `relevance` or `cosine`.
        resolution: Pixels as large as a `patch`, or as a `pixel` of the scene: the former interpolated bilinearly.
        overlap: Share of its side that a window has in common with the next, 0 to 0.9; more is smoother and slower.
        classes: A raster of the text that scores highest, `.tif`; of none where all are below the threshold.
        polygons: A GeoPackage of where texts score at least the threshold, along the borders of patches, `.gpkg`.
        threshold: Least score of `classes` and `polygons`; 0.5 where not given, of cosines none: give one for their
            polygons.
        sensor: Name or YAML file of the scene's sensor.
        bands: Names of the file's bands in file order, where it does not name them. Without `sensor`, a scene of no
            stated unit is taken to store numbers as the model's sensor does, which is printed.
        all_bands: Give an encoder of any sensor all bands of the scene, not only those it was trained on.
        quickgelu: Activation of a CLIP model, which its file does not tell; as its source says where not given.
        device: `auto`, `cpu`, `cuda` or another torch device.

    Returns:
        The files written.

    Raises:
        CheckpointError: The model cannot be read, or knows no sentences.
        BandError: The scene lacks bands that the model needs.
        ConfigError: Arguments do not fit together.
        InputError: The scene's numbers are far from those that the model was trained on, it holds no image, or the file
            `out` is of another scene.
    """
    texts = words("text", text)
    threshold = _checked(texts, prompt, words("background", background), score, overlap, threshold, polygons, classes)
    files = Files(scene, out, classes, polygons, threshold, resolution == "pixel")
    for flag, file in {"--out": out, "--classes": classes, "--polygons": polygons}.items():
        if file:
            check_replaced(flag, Path(file), plain(address(scene)))
    check_picture("--out", files.picture)
    target = device_of(device)
    opened, prepare, asked, made_by = _open(scene, model, quickgelu, sensor, bands, all_bands)
    asked = asked.to(target)
    question = ask(asked, texts, prompt, background, score)
    side = asked.image_size // asked.patch_size
    tags = {"MODEL": model, "ENCODER": made_by, "PROMPT": prompt, "SCORE": score, "SCENE": plain(address(scene))}
    tags |= {"BACKGROUND": ", ".join(background)} if score == "relevance" else {}
    with opened:
        walk = Walk.over(opened, asked.patch_size, side, overlap)
        seen_as = {"contract": prepare.contract.to_dict(), "sensor": prepare.sensor.to_dict(), "gsd": opened.gsd}
        card = scene_card(scene) | tags | seen_as | {"texts": texts, "background": background}
        card |= {"walk": [*astuple(walk)], "device": target.type}
        with told_when_full(Path(out)), Strips(Path(out), card) as strips:
            check_scene(opened, prepare, walk.places, asked.image_size)
            found = blend(opened, walk, _look(asked, prepare, question), len(texts) + 1, _BATCH, strips.done)
            strips.fill(found, lambda one: question.scores(one[1]))
            patches = _raster(opened, walk, strips, question, tags)
            written = files.write(opened, patches, walk.cell, question, tags)
            strips.remove()
    print(f"wrote {', '.join(map(str, written))}: {' x '.join(map(str, walk.shape))} patches of {walk.cell} px")
    return written


def words(what: str, given: Sequence[str]) -> tuple[str, ...]:
    """Texts without spaces around them.

    Raises:
        ConfigError: There are none, or one is empty or given twice.
    """
    texts = tuple(" ".join(one.split()) for one in given)
    if not texts or not all(texts):
        raise ConfigError(f'{what}: expected words, such as "oil tanks"; given {", ".join(map(repr, given)) or "none"}')
    if twice := sorted({one for one in texts if texts.count(one) > 1}):
        raise ConfigError(f"{what} is given twice: '{twice[0]}'")
    return texts


def _checked(
    texts: Sequence[str],
    prompt: str,
    background: Sequence[str],
    score: Score,
    overlap: float,
    threshold: float | None,
    polygons: str | None,
    classes: str | None,
) -> float | None:
    """The threshold, or a sentence on what does not fit together."""
    check_overlap(overlap)
    if "{}" not in prompt:
        raise ConfigError(f"--prompt: expected {{}} where a text stands, as '{PROMPT}'; given '{prompt}'")
    if score == "cosine" and list(background) != BACKGROUND:
        raise ConfigError("--background is what relevance is measured against: leave it out with --score cosine")
    lowest = 0 if score == "relevance" else -1
    if threshold is not None and not lowest <= threshold <= 1:
        raise ConfigError(f"--threshold: a score of {score} lies in {lowest} to 1; given {threshold:g}")
    if threshold is not None and not (polygons or classes):
        raise ConfigError("--threshold is of --classes and --polygons: name a file for one of them")
    if classes and len(texts) >= NODATA:
        raise ConfigError(f"--classes: a map holds at most {NODATA - 1} texts; given {len(texts)}")
    if polygons and score == "cosine" and threshold is None:
        raise ConfigError("--polygons: cosines have no usual threshold: give one with --threshold")
    return 0.5 if threshold is None and score == "relevance" else threshold


@dataclass(frozen=True)
class Files:
    """What is written of scores.

    Args:
        scene: What is asked, which is not written over.
        out: The raster.
        classes: A raster of the text that scores highest, if any.
        polygons: A GeoPackage, if any.
        threshold: Least score of the latter two.
        pixels: The rasters have the scene's pixels, not patches.

    Raises:
        ConfigError: They cannot be written, or would be written over each other or over the scene.
    """

    scene: str
    out: str
    classes: str | None
    polygons: str | None
    threshold: float | None
    pixels: bool

    def __post_init__(self) -> None:
        rasters = {"out": (self.out, ".tif", ".tiff"), "classes": (self.classes, ".tif", ".tiff")}
        check_endings(**rasters, polygons=(self.polygons, ".gpkg"))
        if self.classes and is_same(self.classes, self.out):
            raise ConfigError(f"--out and --classes are one file, '{self.out}'")
        written = (self.out, self.picture, self.classes, self.polygons)
        if any(is_same(self.scene, file) for file in written if file):
            raise ConfigError(
                f"the scene '{self.scene}' would be written over by a map or its picture: name other files"
            )

    @property
    def picture(self) -> Path:
        """Shows the raster."""
        return Path(self.out).with_suffix(".png")

    def write(self, scene: Scene, patches: Path, cell: int, question: Question, tags: Mapping[str, str]) -> list[Path]:
        """Write all of them from the scores of patches of `cell` pixels, which have the tags already."""
        shown, size = (enlarge(patches, scene, cell), 1) if self.pixels else (patches, cell)
        write_cog(shown, Path(self.out), "average")
        quick_look(self.picture, scene, patches, question.texts, question.score)
        written = [Path(self.out), self.picture]
        if self.classes:
            place = placed(scene, size)
            written.append(classify(shown, place, question.texts, self.threshold, Path(self.classes), tags))
        if self.polygons and self.threshold is not None:
            written.append(outline(patches, scene, cell, self.threshold, Path(self.polygons), tags))
        return written


def _open(
    uri: str, source: str, quickgelu: bool | None, sensor: str | None, bands: Sequence[str] | None, all_bands: bool
) -> tuple[Scene, ContractInput, ImageText, str]:
    """The scene, what brings it to the model's contract, the model for that, and its fingerprint as it was read."""
    model = open_image_text(source, quickgelu)
    contract, notes = chosen_for(model.loaded, source, uri, sensor, bands, all_bands)
    scene, prepare = open_for(contract, uri, None if sensor is None else get_sensor(sensor), bands)
    scaled = [scale_note(scene, contract)] if model.encoder.config.get("gsd_positions") else []
    for note in (*notes, *scaled):
        print(f"note: {note}")
    return scene, prepare, model.fitted(contract, scene.gsd), model.fingerprint


def ask(model: ImageText, texts: Sequence[str], prompt: str, background: Sequence[str], score: Score) -> Question:
    """Texts and background as vectors of a model."""
    vectors = sentences_as_vectors(model, [prompt.replace("{}", one) for one in (*texts, *background)])
    mean = F.normalize(vectors[len(texts) :].mean(0, keepdim=True), dim=1)
    return Question(tuple(texts), torch.cat([vectors[: len(texts)], mean]), model.logit_scale, score)


def sentences_as_vectors(model: ImageText, sentences: Sequence[str]) -> Tensor:
    """Unit vectors `(n, D)` of sentences; says which are longer than the model reads."""
    tokens, longer = (model.joint.text.tokenize([one + end for one in sentences]) for end in ("", " and more"))
    for sentence, cut in zip(sentences, (tokens == longer).all(1).tolist(), strict=True):
        if cut:
            said = shorten(sentence, 60, placeholder=" ...")
            print(f"note: the model reads no further than {tokens.shape[1]} tokens: the end of '{said}' is cut off")
    return model.encode_text(sentences)


def _look(model: ImageText, prepare: ContractInput, question: Question) -> Look:
    side, device = model.image_size // model.patch_size, question.vectors.device

    def look(numbers: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        images, seen = prepare(numbers.to(device), valid.to(device))
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=fast_half(device)):
            patches = model.encode_patches(images, seen)
        cosines = (patches.float() @ question.vectors.T).transpose(1, 2).unflatten(2, (side, side))
        return cosines, patch_validity(seen, model.patch_size).view(-1, side, side)

    return look


def _raster(scene: Scene, walk: Walk, strips: Strips, question: Question, tags: dict[str, str]) -> Path:
    """Write the scores of all patches beside the strips."""
    path, (height, width), top = strips.work / "patches.tif", walk.shape, 0
    count, seen, above = len(question.texts), 0, np.zeros(len(question.texts))
    profile = {"dtype": "float32", "count": count, "height": height, "width": width, "nodata": np.nan}
    with create(path, profile | placed(scene, walk.cell)) as raster:
        raster.descriptions = question.texts
        raster.update_tags(**tags)
        for scores in strips:
            seen, above = seen + np.isfinite(scores[0]).sum(), above + (scores > 0.5).sum((1, 2))
            raster.write(scores, window=Window(0, top, width, scores.shape[1]))
            top += scores.shape[1]
    if not seen:
        strips.remove()
        raise InputError(f"'{scene.uri}': no patch holds image, all is nodata: nothing to look for")
    everywhere = [text for text, share in zip(question.texts, above / seen, strict=True) if share > 0.95]
    if everywhere and question.score == "relevance":
        print(
            f"note: '{shorten(', '.join(everywhere), 60, placeholder=' ...')}' fits better than the background nearly "
            "everywhere: name what else the scene shows with --background, or compare within a text by --score cosine"
        )
    return path
