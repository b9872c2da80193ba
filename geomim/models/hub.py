"""An export on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import HfApi

from geomim import __version__
from geomim.errors import InputError


def push_folder(folder: Path, repository: str) -> str:
    """Put an export's files on the Hub, and compare them with what it then says to have.

    A new repository is private: its owner opens it. What earlier exports had and this one has not is removed.

    Args:
        folder: The export.
        repository: USER/NAME.

    Returns:
        Its address.

    Raises:
        InputError: The Hub cannot be reached, refuses, or holds other bytes.
    """
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    api = HfApi(library_name="geomim", library_version=__version__)
    said = {"commit_message": f"geomim {__version__}: {', '.join(files)}", "delete_patterns": ["model.*", "joint.*"]}
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, **said)  # type: ignore[call-overload]
        there = {one.path: one for one in api.get_paths_info(made.repo_id, list(files))}
    except Exception as error:  # no network, no token, no right to write: it raises many kinds
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"'{folder}' is whole, but was not pushed to '{repository}' ({why}): `hf auth login` with a token that may "
            "write there, and push again"
        ) from error
    for name, path in files.items():
        size, large = (getattr(there.get(name), key, None) for key in ("size", "lfs"))
        if size != path.stat().st_size or (large and large.sha256 != hashlib.sha256(path.read_bytes()).hexdigest()):
            raise InputError(f"'{repository}' does not hold {name} as it is in '{folder}': push again")
    return str(made)
