"""Any torchgeo dataset as a source: its images by index as scenes, with the labels it gives them.

torchgeo is imported when the first sample is listed or opened, never before.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import numpy as np

from geomim.corpus.scenes import Scene, open_scene
from geomim.corpus.scenes.arrays import array_scene
from geomim.corpus.scenes.naming import Choice, Offer, choose
from geomim.corpus.sources.cards import Card, load_card
from geomim.corpus.sources.items import Item, blank_item
from geomim.corpus.sources.samples import annotate, numbers, read_mask
from geomim.errors import BandError, InputError, MissingExtraError, nearest
from geomim.sensors import Sensor, find_band

SCHEME = "torchgeo://"
_NAMESAKE = 50  # nm: bands of one name and this far apart are different ones, such as Landsat's B5 and Sentinel-2's B05


@dataclass(frozen=True)
class Sample:
    """One image of a torchgeo dataset, as written in its address.

    Attributes:
        dataset: Class in `torchgeo.datasets`.
        split: Split as the card names it, `all` where there is none.
        index: Place in the dataset.
        root: Folder of the dataset.
        args: Arguments of the class.
        card: Name or path of the source card, or None.
        date: Which of several dates, 0-based.
    """

    dataset: str
    split: str
    index: int
    root: str
    args: Mapping[str, Any]
    card: str | None = None
    date: int = 0

    @property
    def uri(self) -> str:
        """`torchgeo://DatasetClass/split/index?root=...&args=...`, quoted; `parse` reads it back."""
        return next(self.uris([self.index], [self.date]))

    def uris(self, indices: Iterable[int], dates: Iterable[int] = (0,)) -> Iterator[str]:
        """Addresses of samples that differ in index and date only: a million of them in seconds."""
        start = f"{SCHEME}{self.dataset}/{quote(self.split, safe='')}"
        query = {"root": self.root, "args": _frozen(self.args)} | ({"card": self.card} if self.card else {})
        end = urlencode(query, quote_via=quote)
        ends = [f"{end}&date={date}" if date else end for date in dates]
        return (f"{start}/{index}?{end}" for index in indices for end in ends)


def parse(uri: str) -> Sample:
    """Read a sample's address.

    Raises:
        InputError: It is not of that form.
    """
    parts = urlsplit(uri)
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    try:
        split, index = parts.path.strip("/").split("/")
        return Sample(
            dataset=uri.removeprefix(SCHEME).split("/")[0],  # urlsplit would keep the case too, but not promise it
            split=unquote(split),
            index=int(index),
            root=query["root"],
            args=json.loads(query.get("args", "{}")),
            card=query.get("card"),
            date=int(query.get("date", 0)),
        )
    except (KeyError, ValueError) as error:
        raise InputError(
            f"'{uri}' is no torchgeo sample: expected {SCHEME}DatasetClass/split/index?root=...&args=..."
        ) from error


def list_samples(card: Card, root: str, download: bool = False, splits: Sequence[str] | None = None) -> list[Item]:
    """Items of a torchgeo dataset, without opening an image.

    Args:
        card: Opened as `torchgeo`.
        root: Folder of the dataset.
        download: Let torchgeo fetch what is not there.
        splits: Only these.

    Returns:
        Samples, split by split; two a sample where the card says `dates: 2`. Files of a raster dataset without masks
        are plain rasters.

    Raises:
        InputError: torchgeo does not find a split under the root.
        MissingExtraError: torchgeo is not installed.
    """
    items: list[Item] = []
    for split, args in _splits(card):
        if splits is not None and split not in splits:
            continue
        blank = replace(blank_item(card), split=split, held_out=split in card.held_out)
        sample = Sample(card.options["dataset"], split or "all", 0, root, args, blank.card)
        try:
            if download:
                _construct(sample.dataset, root, _frozen(args), True)
            found = list(_list(card, sample, blank))
            if not found:
                raise InputError(f"{card.name}: torchgeo finds no image{f' of {split}' if split else ''} in '{root}'")
            items.extend(found)
        except InputError as error:
            here = [name for name in dict.fromkeys(item.split for item in items) if name]
            advice = f"; {card.name}@{root}:{'+'.join(here)} leaves the split '{split}' out" if here else ""
            raise InputError(f"{error}{advice}") from error
    return items


def _splits(card: Card) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Splits and the arguments that open each: `{split: NAME}` where the card gives only a list of names."""
    common = dict(card.options.get("args") or {})
    splits = card.options.get("splits")
    if not splits:
        yield (next(iter(card.splits)) if len(card.splits) == 1 else None), common
    elif isinstance(splits, Mapping):
        for split, args in splits.items():
            yield split, common | dict(args)
    else:
        for split in splits:
            yield split, common | {"split": split}


def _list(card: Card, sample: Sample, blank: Item) -> Iterator[Item]:
    dataset = _dataset(sample)
    files = _files(dataset, sample.root, card.options.get("layers") or {})
    if files is not None:
        for index, (image, mask) in enumerate(files):
            own = mask is not None or os.path.isdir(image)  # a folder of bands names them itself
            uri = image if mask is None else replace(sample, index=index).uri
            yield replace(blank, uri=uri, sensor=None if own else blank.sensor)
        return
    dates = card.options.get("dates", 1)
    targets = getattr(dataset, "targets", None)  # of image folders: classes without opening an image
    for place, uri in enumerate(sample.uris(range(len(dataset)), range(dates))):
        yield replace(
            blank, uri=uri, sensor=None, label=None if targets is None else dataset.classes[targets[place // dates]]
        )


def open_sample(uri: str, sensor: Sensor | None = None, bands: Sequence[str] | None = None) -> Scene:
    """Open one image of a torchgeo dataset.

    Args:
        uri: As `list_samples` gives it.
        sensor: Its bands, found by name among those of the card.
        bands: A choice among the card's bands by name, or names for them where there is no card.

    Returns:
        A scene in memory with its annotations, or the file itself for a raster dataset with masks.

    Raises:
        InputError: torchgeo cannot find or read the sample.
        BandError: The bands are not those of the card, or have no names.
        MissingExtraError: torchgeo is not installed.
    """
    sample = parse(uri)
    card = load_card(sample.card) if sample.card else None
    dataset = _dataset(sample)
    files = _files(dataset, sample.root, (card.options.get("layers") if card else None) or {})
    if files is not None:
        return _open_file(uri, files, sample, card, sensor, bands)
    values = _read(dataset, sample)
    pixels = _pixels(uri, values, sample, card)
    choice = _choose(uri, len(pixels), card, sensor, bands)
    annotations = annotate(values, card, dataset)
    if card and card.options.get("dates", 1) > 1 and sample.date == 0:
        annotations = replace(annotations, mask=None, classes=())  # a mask of change belongs to the later date

    return array_scene(
        uri,
        pixels[list(choice.places)],
        choice.sensor,
        licence=card.licence if card else None,
        annotations=annotations,
    )


def _choose(uri: str, count: int, card: Card | None, sensor: Sensor | None, bands: Sequence[str] | None) -> Choice:
    if card is None:
        return choose(Offer(uri, (None,) * count, False, None), sensor, bands)
    own = card.to_sensor()
    if len(own.bands) != count:
        raise BandError(
            f"'{uri}' has {count} bands; card '{card.name}' names {len(own.bands)} ({', '.join(own.names)}): "
            "correct its 'bands'"
        )
    if sensor is None and not bands:
        return Choice(own, tuple(range(count)), None)
    choice = choose(Offer(uri, own.bands, True, None), sensor or own, bands)
    for band, place in zip(choice.sensor.bands, choice.places, strict=True):
        namesake = find_band(band.name, own.bands)
        given = own.bands[place if namesake is None else namesake]
        if band.wavelength and given.wavelength and abs(band.wavelength - given.wavelength) > _NAMESAKE:
            raise BandError(
                f"'{uri}' is of sensor '{own.name}', whose {given.name} is at {given.wavelength:g} nm; "
                f"{choice.sensor.name}'s {band.name} is at {band.wavelength:g} nm: they share no more than the name"
            )
    return choice


def _pixels(uri: str, values: Mapping[str, Any], sample: Sample, card: Card | None) -> np.ndarray:
    """`(C, H, W)`, in the card's `dtype` where the numbers are whole and fit it."""
    if "image" not in values:
        raise InputError(f"'{uri}' gives no image, only {', '.join(values)}: choose one with the card's 'args'")
    pixels = numbers(values["image"])
    if pixels.ndim == 2:
        pixels = pixels[None]
    dates = card.options.get("dates", 1) if card else 1
    if pixels.ndim == 4 and len(pixels) == dates:
        pixels = pixels[sample.date]
    if pixels.ndim != 3:
        raise InputError(
            f"'{uri}' has the shape {pixels.shape}; expected bands, rows and columns"
            + (f", or {dates} dates of them" if dates > 1 else " (a card says 'dates: 2' for pairs)")
        )
    if card and (dtype := card.options.get("dtype")):
        with np.errstate(invalid="ignore"):  # a number that does not fit comes out as another one
            whole = pixels.astype(dtype)
        pixels = whole if np.array_equal(whole, pixels) else pixels
    return np.ascontiguousarray(pixels)


class _Utf8:
    """A tokenizer whose tokens are the bytes of a sentence: torchgeo 0.10 gives captions as tokens alone."""

    def encode(self, sentence: str) -> SimpleNamespace:
        return SimpleNamespace(ids=list(sentence.encode()))

    def decode(self, tokens: Any) -> str:
        return bytes(tokens.tolist()).decode()


def _read(dataset: Any, sample: Sample) -> Mapping[str, Any]:
    """One sample. Classes that draw a season at random are made to draw the same one every time."""
    state = random.getstate()
    random.seed(sample.index)
    try:
        values: Mapping[str, Any] = dataset[sample.index]
        if isinstance(tokenizer := getattr(dataset, "tokenizer", None), _Utf8):
            values = {**values, "caption": tokenizer.decode(values["caption"])}
    except Exception as error:  # whatever a dataset class raises for a broken file
        raise InputError(
            f"'{sample.uri}' cannot be read by torchgeo ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error
    finally:
        random.setstate(state)
    return values


def _files(dataset: Any, root: str, layers: Mapping[str, str]) -> list[tuple[str, str | None]] | None:
    """Rasters of a geographic dataset and the mask of each, or None for a dataset by index."""
    from torchgeo.datasets import GeoDataset

    if not isinstance(dataset, GeoDataset):
        return None
    if layers:  # a table of files with a column a layer
        folder, image, mask = os.path.join(root, layers.get("folder", "")), layers["image"], layers.get("mask")
        return sorted(
            (os.path.join(folder, row[image]), os.path.join(folder, row[mask]) if mask else None)
            for _, row in dataset.index.iterrows()
        )
    if hasattr(dataset, "image") and hasattr(dataset, "mask"):  # two datasets, an acquisition a folder
        masks = {str(Path(file).parent): file for file in dataset.mask.index.filepath}
        return [(file, masks.get(str(Path(file).parent))) for file in sorted(dataset.image.index.filepath)]
    files = sorted(dataset.index.filepath)
    if getattr(dataset, "separate_files", False):
        files = sorted({_product(Path(file)) for file in files})
    return [(file, None) for file in files]


def _product(file: Path) -> str:
    """The folder that holds all bands of one acquisition."""
    return str(next((parent for parent in file.parents if parent.suffix == ".SAFE"), file.parent))


def _open_file(
    uri: str,
    files: Sequence[tuple[str, str | None]],
    sample: Sample,
    card: Card | None,
    sensor: Sensor | None,
    bands: Sequence[str] | None,
) -> Scene:
    if sample.index >= len(files):
        raise InputError(f"'{uri}': the dataset has {len(files)} files")
    image, mask = files[sample.index]
    if sensor is None and not bands and card is not None:
        sensor = card.to_sensor()
        bands = sensor.names
    scene = open_scene(image, sensor, bands)
    annotations = read_mask(mask, card) if mask and card else None
    return replace(scene, uri=uri, annotations=annotations, licence=scene.licence or (card.licence if card else None))


def _frozen(args: Mapping[str, Any]) -> str:
    return json.dumps(dict(args), sort_keys=True)


def _dataset(sample: Sample) -> Any:
    return _construct(sample.dataset, sample.root, _frozen(sample.args))


def _kind(name: str) -> Any:
    """A dataset class of torchgeo by name."""
    try:
        from torchgeo import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"source '{name}' needs '{error.name}', which is not installed: pip install 'geomim[finetune]'"
        ) from error
    kind = getattr(datasets, name, None)
    if not (isinstance(kind, type) and issubclass(kind, datasets.GeoDataset | datasets.NonGeoDataset)):
        known = [one for one in datasets.__all__ if one[:1].isupper()]
        raise InputError(f"torchgeo has no dataset '{name}'{nearest(name, known)}")
    return kind


def _parameters(kind: Any) -> list[str]:
    """What a dataset class takes; a class marked as deprecated tells it only at `__init__`."""
    return list(inspect.signature(kind.__init__).parameters)[1:]


@lru_cache(maxsize=64)
def _construct(name: str, root: str, args: str, download: bool = False) -> Any:
    """The dataset object, built once a process: some classes read whole tables when they are built."""
    kind = _kind(name)
    from torchgeo import datasets

    parameters = _parameters(kind)
    # What is fetched is checked; what lies there is not hashed again at every opening, as torchgeo 0.10 would.
    defaults = {"checksum": download, "tokenizer": _Utf8()}
    given = {key: value for key, value in defaults.items() if key in parameters} | json.loads(args)
    given |= {"root" if "root" in parameters else "paths": root}
    given |= {"download": download} if "download" in parameters else {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some classes print
            dataset = kind(**given)
        if isinstance(getattr(dataset, "files", None), list):
            dataset.files.sort(key=str)  # some classes list files as the file system does, which is no order
        return dataset
    except datasets.DatasetNotFoundError as error:
        advice = "--download fetches it" if "download" in parameters else "fetch it by hand, torchgeo does not"
        raise InputError(
            f"torchgeo finds no {name} {args} in '{root}': expected it laid out as published; {advice}"
        ) from error
    except datasets.DependencyNotFoundError as error:
        raise MissingExtraError(f"torchgeo's {name} needs another library: {' '.join(str(error).split())}") from error
    except Exception as error:  # whatever a dataset class raises for another layout or wrong arguments
        raise InputError(
            f"torchgeo cannot open {name} {args} in '{root}' "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error


def check_class(card: Card) -> None:
    """Check that torchgeo has the class a card names, and that it takes the card's arguments.

    Raises:
        InputError: It has not, or an argument is unknown.
        MissingExtraError: torchgeo is not installed.
    """
    name = card.options["dataset"]
    parameters = _parameters(_kind(name))
    for _, args in _splits(card):
        unknown = [key for key in args if key not in parameters]
        if unknown:
            raise InputError(
                f"card '{card.name}': torchgeo's {name} takes no '{unknown[0]}'{nearest(unknown[0], parameters)}"
            )
