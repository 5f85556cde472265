"""From any `--model` to what tells its networks: a known name, a folder or a configuration."""

from __future__ import annotations

import os
from pathlib import Path

from deepcache.models.catalog import SUFFIXES, is_hub_id, repository


def described(name: str) -> str:
    """What `architecture` and `skeleton` take, for whatever `load` takes.

    Raises:
        DeepCacheError: a hub id whose files are not in the hub's cache, or a file that cannot be read or needs a
            configuration that is not here.
    """
    path = Path(name)
    if os.path.isfile(path) and path.suffix.lower() in SUFFIXES:
        from deepcache.models.single_file import configuration  # slow, and hardly ever needed

        return configuration(path)
    is_file = path.suffix.lower() in (".json", *SUFFIXES)  # or a name for one that is not there
    return str(repository(name)) if is_hub_id(name) and not os.path.exists(path) and not is_file else name
