"""List the scenes of folders, patterns, archives and addresses."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from geomim.addresses import keep
from geomim.corpus.scenes.archives import archive_of, archive_root, is_archive, members, open_folder
from geomim.corpus.scenes.bandfiles import MSI_METADATA, PRODUCT, BandFiles, band_groups, band_of, group_of, groups_in
from geomim.corpus.scenes.files import SUFFIXES, is_remote, open_dataset, parts_of, split_address
from geomim.corpus.scenes.maps import without_maps
from geomim.corpus.store import holds_corpus
from geomim.errors import InputError

_PRODUCT = re.compile(r"S2.*\.SAFE|.*\.zarr", re.IGNORECASE)
_OTHERS = (".img", ".dat", ".bil", ".bip", ".bsq", ".bmp", ".webp", ".gpkg", ".mbtiles", ".hgt", ".ntf")
"""Rasters where GDAL says so."""
_UNREAD = (".asc", ".dt0", ".dt1", ".dt2", ".ecw", ".ers", ".flt", ".gif", ".grb", ".grb2", ".grib", ".grib2", ".h5")
_UNREAD += (".hdf", ".hdf5", ".he5", ".kea", ".nc4", ".nitf", ".pix", ".rst", ".sid", *_OTHERS)
"""Rasters of kinds that are opened only where they are named themselves, or that GDAL did not open."""
_ITEM_BYTES = 4 * 2**20  # STAC items are smaller


def find_scenes(sources: Iterable[str | os.PathLike[str]] | str | os.PathLike[str], maps: bool = False) -> list[str]:
    """List scenes: files as given, folders searched recursively, patterns expanded.

    In a folder these are scenes: rasters (`SUFFIXES`, and further ones that GDAL opens); and each as one, without the
    rasters it is made of, Sentinel-2 `.SAFE` folders and granules, `.zarr` stores (zipped ones too), `.nc` files, STAC
    items, and files of one band each whose names differ by that band alone (`T32UPU_20210601_B02.tif`, `..._B03.tif`):
    these are the scene `FOLDER/T32UPU_20210601`, or `FOLDER` where they have nothing but the band in their names or are
    the one Landsat product in it. ZIP and TAR archives are searched where they are named themselves. Links to folders
    are followed, each folder once; hidden files are left out, and, aloud, folders that are a corpus, maps that geomim
    made of scenes, and files that may be rasters of another kind (`.hdf`, `.zip`, ...). Addresses (`https://`,
    `/vsi...`) pass unchecked, without what signs them (see `geomim.addresses`).

    Args:
        sources: Files, folders, patterns, archives and addresses.
        maps: Whether maps that geomim made count as well: labels may be such, corrected by hand.

    Returns:
        Sorted, each once.

    Raises:
        InputError: A path does not exist, a pattern matches maps alone, an archive holds a path that leads out of it,
            nothing was found, or of a scene of many files some are given.
    """
    given = [str(source) for source in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    found: set[str] = set()
    files: dict[str, set[str]] = {}
    for source in given:
        if os.path.exists(split_address(source)[0]) or is_remote(source) or group_of(source):
            matches = [keep(source)]
        else:
            matches = _matching(source, maps)
        for path in matches:
            if os.path.isdir(path):
                found.update(_in_folder(path, maps))
            elif os.path.isfile(path) and is_archive(path):
                found.update(_in_archive(path))
            elif not is_remote(path) and band_of(os.path.basename(path)):
                files.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
            else:
                found.add(path)
    for folder, names in files.items():
        scenes, parts = _of_given(folder, names)
        found = (found | scenes) - parts
    if not found:
        raise InputError(f"no raster in {', '.join(given) or 'nothing'}: looked for {', '.join(SUFFIXES)}")
    return sorted(found)


def is_product(folder: str, files: Collection[str], folders: Collection[str]) -> bool:
    """Whether a folder is one scene, a Sentinel-2 product or granule or a zarr store, by its name or what is in it."""
    name = folder.rstrip("/").rpartition("/")[2]
    inside = "IMG_DATA" in folders or ("GRANULE" in folders and any(map(MSI_METADATA.match, files)))
    return _PRODUCT.fullmatch(name) is not None or inside or "zarr.json" in files or ".zgroup" in files


def source_files(uri: str) -> list[str]:
    """Files on this machine that a scene is made of, sorted: who hashes them knows whether it has changed.

    Args:
        uri: As `find_scenes` lists it.

    Returns:
        The file itself; the archive that it lies in; every file of a product or a store; a STAC item and its local
        assets; a virtual raster and its parts; of a scene of many files all of them. Empty for an address.
    """
    path, _ = split_address(uri)
    if archive := archive_of(path):
        return [archive]
    if is_remote(path):
        return []
    if not os.path.isfile(path):
        folder, group = group_of(path) or (path, None)
        names = group.files + group.beside if group else open_folder(path).names
        return sorted(os.path.join(folder, name) for name in names)
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


def _matching(pattern: str, maps: bool) -> list[str]:
    every = glob.glob(pattern, recursive=True)
    if not every:
        raise InputError(f"'{pattern}' does not exist: give a raster, a folder of rasters or a pattern")
    if not (matches := every if maps else without_maps(every)):
        raise InputError(f"'{pattern}' matches nothing but maps that geomim made: name one by itself if it is a scene")
    return sorted(matches)


def _in_folder(root: str, maps: bool) -> set[str]:
    found: dict[str, str] = {}
    unread: set[str] = set()
    corpora: list[str] = []
    parts: set[str] = set()  # of STAC items
    walked: set[str] = set()
    for parent, folders, files in os.walk(root, followlinks=True):
        linked = {name: os.path.islink(os.path.join(parent, name)) for name in folders if not name.startswith(".")}
        folders[:] = sorted(linked, key=lambda name: (linked[name], name))  # what a link leads to may be here, too
        if os.path.realpath(parent) in walked:
            folders.clear()
            continue
        walked.add(os.path.realpath(parent))
        # a corpus is made of scenes and is none
        if not {"tiles.zarr", "work"}.isdisjoint(folders) and holds_corpus(Path(parent)):
            corpora.append(parent)
            folders.clear()
        elif is_product(parent, files, folders):
            folders.clear()
            found[parent] = parent
        else:
            found |= _of_files(parent, files)
            unread |= _unread(parent, files) - found.keys()
            for item in (os.path.join(parent, name) for name in files if is_item(name)):
                if (inner := _item_parts(item)) is not None:
                    found[item] = item
                    parts.update(inner)
    whole = {uri for uri, file in found.items() if os.path.normpath(file) not in parts}
    _say("corpus is", "corpora are", corpora)
    if unread:
        parts.update(*map(parts_of, whole))
        _say_unread(path for path in unread if os.path.normpath(path) not in parts)
    return whole if maps else without_maps(whole)


def _of_files(parent: str, files: Iterable[str]) -> dict[str, str]:
    """Scenes among the files of one folder, and a file of each."""
    files = [name for name in files if not name.startswith(".")]
    groups = band_groups(files)
    found, taken = {}, set()
    for key, group in groups.items():
        if _count(os.path.join(parent, group.files[0])) < 2:  # the others are looked at where the scene is opened
            taken.update(group.files, group.beside)
            found[_named(parent, key, groups)] = os.path.join(parent, group.files[0])
    for name in files:
        path, lower = os.path.join(parent, name), name.lower()
        known = lower.endswith((*SUFFIXES, ".nc", ".zarr.zip"))
        if name not in taken and (known or (lower.endswith(_OTHERS) and _count(path))):
            found[path] = path
    return found


def _unread(parent: str, files: Iterable[str]) -> set[str]:
    """Files of a folder that may be rasters by their names; ENVI's have a header beside them, and often no suffix."""
    names = {name.lower(): os.path.join(parent, name) for name in files if not name.startswith(".")}
    return {
        path
        for name, path in names.items()
        if (name.endswith(_UNREAD) and not name.endswith((".dat", ".gpkg")))
        or is_archive(name)
        or f"{name}.hdr" in names
        or (name.endswith((".bin", ".dat", ".raw")) and f"{name[:-4]}.hdr" in names)
        or (name.endswith(".gpkg") and _holds_several(path))
    }


def _say_unread(paths: Iterable[str]) -> None:
    _say("file that may be a raster is", "files that may be rasters are", paths, ": give those that are by name")


def _say(one: str, many: str, paths: Iterable[str], what_to_do: str = "") -> None:
    if left := sorted(paths):
        said = f"1 {one}" if len(left) == 1 else f"{len(left)} {many}"
        print(f"note: {said} left out, such as '{left[0]}'{what_to_do}")


def _of_given(folder: str, names: set[str]) -> tuple[set[str], set[str]]:
    """Scenes among files that are named one by one, or by a pattern; and files that are parts of them."""
    scenes, parts = set(), set()
    groups = groups_in(folder or ".")
    for key, group in groups.items():
        given = names.intersection(group.files)
        if len(given) < 2 or _count(os.path.join(folder, group.files[0])) > 1:
            continue  # one band of many, asked for by its name, is a scene
        uri = _named(folder, key, groups)
        if len(given) < len(group.files):
            bands = [band for band, files in group.bands.items() if given.intersection(name for _, name in files)]
            raise InputError(
                f"{len(given)} of the {len(group.files)} files of one scene are given: give the scene, '{uri}', "
                f"and choose with --bands {','.join(bands)}"
            )
        scenes.add(uri)
        parts.update(group.files, group.beside)
    scenes.update(os.path.join(folder, name) for name in names - parts)
    return scenes, {os.path.join(folder, name) for name in parts}


def _named(folder: str, key: str, groups: Mapping[str, BandFiles]) -> str:
    """What `group_of` finds a scene by: its folder where this tells it, else `FOLDER/KEY`."""
    if not key or (len(groups) == 1 and PRODUCT.match(key)):
        return folder or "."
    uri = os.path.join(folder, key)
    if os.path.exists(uri):
        raise InputError(f"'{uri}' is there, and would be the name of the scene of {groups[key].files[0]}: rename it")
    return uri


def _count(path: str) -> int:
    """Bands of a raster; 0 where it is none, or cannot be opened."""
    try:
        with open_dataset(path) as dataset:
            return int(dataset.count)
    except InputError:
        return 0


def _holds_several(path: str) -> bool:
    """Whether a file holds rasters, and is none itself."""
    try:
        with open_dataset(path) as dataset:
            return dataset.count == 0 and bool(dataset.subdatasets)
    except InputError:
        return False


def _in_archive(archive: str) -> set[str]:
    root = archive_root(archive)
    inside: dict[str, list[str]] = {}
    unread: set[str] = set()
    for name in members(archive):
        folder, _, file = name.rpartition("/")
        inside.setdefault(folder, []).append(file)
    found: set[str] = set()
    below: dict[str, set[str]] = {}
    for steps in (folder.split("/") for folder in inside):
        for end, name in enumerate(steps):
            below.setdefault("/".join(steps[:end]), set()).add(name)
    every = {*inside, *below}
    products = {one for one in every if is_product(one, inside.get(one, ()), below.get(one, ()))}
    for folder, files in inside.items():
        steps = folder.split("/")
        above = ("/".join(steps[:end]) for end in range(len(steps) + 1))  # the archive itself, too
        product = next((one for one in above if one in products), None)
        if product is not None:
            found.add(f"{root}/{product}".rstrip("/"))
        elif not any(step.startswith(".") for step in steps if step):
            found.update(_of_files(f"{root}/{folder}".rstrip("/"), files))
            unread |= _unread(f"{root}/{folder}".rstrip("/"), files)
    _say_unread(unread - found)
    return found


def _item_parts(path: str) -> set[str] | None:
    """Local files that a STAC item is made of; None for any other JSON."""
    try:
        if os.path.getsize(path) > _ITEM_BYTES:
            return None
        content = Path(path).read_bytes()
        item = json.loads(content) if b'"stac_version"' in content else None
    except (OSError, ValueError):
        return None
    if not isinstance(item, dict) or item.get("type") != "Feature" or not isinstance(item.get("assets"), dict):
        return None
    hrefs = [asset.get("href", "") for asset in item["assets"].values() if isinstance(asset, dict)]
    hrefs = [href.removeprefix("file://") for href in hrefs]
    return {os.path.normpath(os.path.join(os.path.dirname(path), href)) for href in hrefs if "://" not in href}
