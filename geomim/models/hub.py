"""An export on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import HfApi

from geomim import __version__
from geomim.errors import InputError


def push_folder(folder: Path, repository: str) -> str:
    """Put an export on the Hub as `repository`, USER/NAME, compare it with what the Hub then has, and give its address.

    A new repository is private: its owner opens it. What earlier exports had and this one has not is removed.

    Raises:
        InputError: The Hub cannot be reached, refuses, or holds other bytes.
    """
    files, api = {path.name: path for path in sorted(folder.iterdir())}, HfApi(library_name="geomim")
    message, ours = f"geomim {__version__}: {', '.join(files)}", ["model.*", "joint.*"]
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message, delete_patterns=ours)
        there = {one.path: one for one in api.get_paths_info(repository, list(files))}
    except Exception as error:  # no network, no token, no right to write: it raises many kinds
        why = " ".join(str(error).split())[:300] or type(error).__name__
        how = "`hf auth login` with a token that may write there, and push again"
        raise InputError(f"'{folder}' is whole, but was not pushed to '{repository}' ({why}): {how}") from error
    for name, path in files.items():
        size, large = (getattr(there.get(name), key, None) for key in ("size", "lfs"))
        if size != path.stat().st_size or (large and large.sha256 != hashlib.sha256(path.read_bytes()).hexdigest()):
            raise InputError(f"'{repository}' does not hold {name} as it is in '{folder}': push again")
    return str(made)
