"""A picture in a record: a PNG as a data URI, with its name and alternative text, so that one file holds all."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError

_PREFIX = "data:image/png;base64,"


def picture(name: str, alt: str, image: Any) -> dict[str, str]:
    """For `record(..., pictures=[...])`.

    Args:
        name: of the file that it becomes, without ending, e.g. "figure7".
        alt: what it shows, in words, for those who cannot see it.
        image: a PIL image, or a matplotlib figure.
    """
    buffer = io.BytesIO()
    if hasattr(image, "savefig"):
        image.savefig(buffer, format="png", dpi=144, bbox_inches="tight")
    else:
        image.save(buffer, format="PNG", optimize=True)
    return {"name": name, "alt": alt, "data": _PREFIX + base64.b64encode(buffer.getvalue()).decode()}


def write(found: dict[str, str], folder: Path) -> Path:
    """As `folder/NAME.png`.

    Raises:
        DeepCacheError: it is no PNG, or cannot be written.
    """
    path = folder / f"{Path(found['name']).name}.png"
    try:
        path.write_bytes(base64.b64decode(found["data"].removeprefix(_PREFIX), validate=True))
    except (ValueError, OSError) as error:
        raise DeepCacheError(f"cannot write the picture {path}: {error}; choose another folder") from error
    return path
