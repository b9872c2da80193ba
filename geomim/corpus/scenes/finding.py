"""List the scenes of folders, patterns, archives and addresses."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from geomim.corpus.scenes.archives import archive_of, archive_root, is_archive, members
from geomim.corpus.scenes.files import is_remote, parts_of
from geomim.errors import InputError

SUFFIXES = (".tif", ".tiff", ".gtif", ".gtiff", ".vrt", ".jp2", ".j2k", ".png", ".jpg", ".jpeg")
"""What `find_scenes` picks up inside a folder, in lower case."""

LANDSAT = re.compile(
    r"(L[COTEM]\d\d_L[12]\w\w_\d{6}_\d{8}_\d{8}_\d\d_\w\w)_((?:SR_|ST_)?B\d+\w*)\.tiff?$", re.IGNORECASE
)
"""A band of a Landsat Collection: name of the product, and of the band."""

_PRODUCT = re.compile(r"S2.*\.SAFE|.*\.zarr", re.IGNORECASE)
_INDEX = ("MTD_MSIL1C.xml", "MTD_MSIL2A.xml", "zarr.json", ".zgroup")
_ITEM_BYTES = 4 * 2**20  # STAC items are smaller


def find_scenes(sources: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[str]:
    """List scenes: files as given, folders searched recursively, patterns expanded.

    In a folder these are scenes: rasters (`SUFFIXES`); and each as one, without the rasters it is made of, Sentinel-2
    `.SAFE` folders, folders of Landsat bands, `.zarr` stores (zipped ones too), `.nc` files and STAC items. Of a folder
    with bands of several Landsat products, each product is a scene: `FOLDER/PRODUCT`. ZIP and TAR archives are searched
    where they are named themselves. Hidden files, and folders that are a corpus, are left out. Addresses (`https://`,
    `/vsi...`) pass unchecked.

    Returns:
        Sorted, each once.

    Raises:
        InputError: A path does not exist, an archive holds a path that leads out of it, or nothing was found.
    """
    given = [str(source) for source in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    found: set[str] = set()
    for source in given:
        if os.path.isdir(source):
            found.update(_in_folder(source))
        elif os.path.isfile(source) and is_archive(source):
            found.update(_in_archive(source))
        elif os.path.exists(source.partition("#")[0]) or is_remote(source):
            found.add(source)
        elif matches := glob.glob(source, recursive=True):
            found.update(find_scenes(matches))
        else:
            raise InputError(f"'{source}' does not exist: give a raster, a folder of rasters or a pattern")
    if not found:
        raise InputError(f"no raster in {', '.join(given) or 'nothing'}: looked for {', '.join(SUFFIXES)}")
    return sorted(found)


def is_product(folder: str, files: Sequence[str]) -> bool:
    """Whether a folder is one scene: a Sentinel-2 product or a zarr store, by its name or by the files in it."""
    name = folder.rstrip("/").rpartition("/")[2]
    return _PRODUCT.fullmatch(name) is not None or any(file.startswith(_INDEX) for file in files)


def landsat_products(files: Iterable[str]) -> list[str]:
    """Products with at least two bands among the files of a folder, sorted."""
    count = Counter(match[1] for name in files if name[:1] in "Ll" and (match := LANDSAT.match(name)))
    return sorted(product for product, bands in count.items() if bands > 1)


def source_files(uri: str) -> list[str]:
    """Files on this machine that a scene is made of, sorted: who hashes them knows whether it has changed.

    Args:
        uri: As `find_scenes` lists it.

    Returns:
        The file itself; the archive that it lies in; every file of a product or a store; a STAC item and its local
        assets; a virtual raster and its parts. Empty for an address.
    """
    path = uri if os.path.exists(uri) else uri.partition("#")[0]
    if archive := archive_of(path):
        return [archive]
    if is_remote(path):
        return []
    if os.path.isdir(path):
        return sorted(os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names)
    if not os.path.exists(path):
        return sorted(glob.glob(f"{glob.escape(path)}_*"))  # one of several Landsat products
    parts = (_item_parts(path) if is_item(path) else None) or set(parts_of(path))
    return sorted({path, *filter(os.path.isfile, parts)})


def scene_name(uri: str) -> str:
    """What a scene is called wherever its data lie, so that draws by it outlast a move of the data.

    Returns:
        The name of its file or folder; of a torchgeo sample its address without the paths of the dataset and the card.
    """
    if uri.startswith("torchgeo://"):
        return re.sub(r"(?<=[?&])(root|card)=[^&]*&?", "", uri)
    return os.path.basename(uri.rstrip("/"))


def is_item(uri: str) -> bool:
    """Whether an address is one of a JSON file, which a STAC item is."""
    return re.search(r"\.json(\?.*)?$", uri, re.IGNORECASE) is not None


def _in_folder(root: str) -> set[str]:
    found: set[str] = set()
    parts: set[str] = set()  # of STAC items
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if "corpus.json" in files:  # a corpus is made of scenes and is none
            folders.clear()
        elif is_product(parent, files):
            folders.clear()
            found.add(parent)
        else:
            found.update(_of_files(parent, files))
            for name in files:
                if name.endswith((".json", ".JSON")) and (inner := _item_parts(os.path.join(parent, name))) is not None:
                    found.add(os.path.join(parent, name))
                    parts.update(inner)
    return {uri for uri in found if os.path.normpath(uri) not in parts} if parts else found


def _of_files(parent: str, files: Sequence[str]) -> Iterable[str]:
    """Scenes among the files of one folder."""
    products = landsat_products(files)
    if products:
        yield from [parent] if len(products) == 1 else [os.path.join(parent, product) for product in products]
    for name in files:
        if name.startswith(".") or not name.lower().endswith((*SUFFIXES, ".nc", ".zarr.zip")):
            continue
        if not products or not name.startswith(tuple(products)):
            yield os.path.join(parent, name)


def _in_archive(archive: str) -> set[str]:
    root = archive_root(archive)
    inside: dict[str, list[str]] = {}
    for name in members(archive):
        folder, _, file = name.rpartition("/")
        inside.setdefault(folder, []).append(file)
    found: set[str] = set()
    products: list[str] = []
    for folder in sorted(inside):
        if any(f"{folder}/".startswith(f"{product}/") for product in products):
            continue
        steps = folder.split("/")
        named = next(("/".join(steps[: n + 1]) for n, step in enumerate(steps) if is_product(step, ())), None)
        if named is not None or is_product(folder, inside[folder]):
            products.append(folder if named is None else named)
            found.add(f"{root}/{products[-1]}".rstrip("/"))
        elif not any(step.startswith(".") for step in steps if step):
            found.update(_of_files(f"{root}/{folder}".rstrip("/"), inside[folder]))
    return found


def _item_parts(path: str) -> set[str] | None:
    """Local files that a STAC item is made of; None for any other JSON."""
    try:
        if os.path.getsize(path) > _ITEM_BYTES:
            return None
        with open(path, "rb") as file:
            content = file.read()
        if b'"stac_version"' not in content:
            return None
        item = json.loads(content)
    except (OSError, ValueError):
        return None
    if not isinstance(item, dict) or item.get("type") != "Feature" or not isinstance(item.get("assets"), dict):
        return None
    hrefs = [asset.get("href", "") for asset in item["assets"].values() if isinstance(asset, dict)]
    return {os.path.normpath(os.path.join(os.path.dirname(path), href)) for href in hrefs if "://" not in href}
