"""What shapes the samples of a store; two stores with the same have the same samples."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError
from deepcache.temporary import whole

FILE = "manifest.json"
SCHEMA = 1
SHARD_SIZE = 250  # seeds a file
_SHOWN = 60  # characters of a value in a refusal


@dataclass(frozen=True)
class Manifest:
    """Plain values that JSON gives back as they are.

    Attributes:
        model: its name, for the reader.
        weights: "trained" or "random", and a hash of the weights of all its networks.
        scheduler, scheduler_config: by name, and its noise schedule.
        num_steps: of the scheduler, which may call the U-Net more often.
        guidance_scale: None for a model that has none.
        conditions: what a seed is asked to show: the rule, with a hash of the prompts.
        plan: `CachePlan` as a dict, or None for no cache.
        dtype: in which the networks compute.
        image_size: height and width.
        shard_size: seeds a file; the first writer's counts, since all shapes of files give the same samples.
        made_with: versions and device of the first writer: what may change samples by float rounding.
        schema: of the store.
    """

    model: str
    weights: str
    scheduler: str
    scheduler_config: dict[str, Any]
    num_steps: int
    guidance_scale: float | None
    conditions: str
    plan: dict[str, Any] | None
    dtype: str
    image_size: list[int]
    shard_size: int = field(default=SHARD_SIZE, compare=False)
    made_with: dict[str, Any] = field(default_factory=dict, compare=False)
    schema: int = SCHEMA

    @property
    def is_trained(self) -> bool:
        """Whether its samples mean something."""
        return not self.weights.startswith("random ")

    @property
    def name(self) -> str:
        """A folder's: words for the reader, and a hash of all that is compared."""
        steps = "uncached" if self.plan is None else f"{len(self.plan['full_steps'])}-full"
        words = f"{self.model}-{self.scheduler}-{self.num_steps}-{steps}".lower()
        digest = sha256(json.dumps(self._compared(), sort_keys=True).encode()).hexdigest()
        return f"{re.sub('[^a-z0-9.+]+', '-', words)}-{digest[:10]}"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def require(self, found: Manifest, folder: Path) -> None:
        """Refuse a store of other samples, naming what differs.

        Raises:
            DeepCacheError: `found`, the manifest of the store in `folder`, is not this one.
        """
        ours, theirs = _flat(self._compared()), _flat(found._compared())
        differing = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
        if differing:
            parts = [f"{name} (there {_short(theirs.get(name))}, here {_short(ours.get(name))})" for name in differing]
            raise DeepCacheError(
                f"expected a store of the same samples in {folder}, which differs in {'; '.join(parts)}; take another "
                "folder"
            )

    def _compared(self) -> dict[str, Any]:
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def read(folder: Path) -> Manifest:
    """A store's.

    Raises:
        DeepCacheError: there is none, or it is of another version of the package.
    """
    try:
        found = json.loads((folder / FILE).read_text())
    except (OSError, ValueError) as error:
        raise DeepCacheError(f"expected a store with a {FILE} in {folder}, got none ({error})") from error
    known = {f.name for f in fields(Manifest)}
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or found.keys() != known:
        raise DeepCacheError(f"expected a manifest of schema {SCHEMA} in {folder / FILE}; take another folder")
    return Manifest(**found)


def join(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest of the store in a folder: this one if it is the first, else the one there, if that is equal.

    Raises:
        DeepCacheError: another store is there, or the folder cannot be written.
    """
    if not (folder / FILE).exists():
        with whole(folder / FILE, replace=False) as file:  # of several processes at once, one wins
            file.write(manifest.to_json().encode())
    found = read(folder)
    manifest.require(found, folder)
    return found


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dots in its names."""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key in value for k, v in _flat(value[key], f"{name}.{key}".lstrip(".")).items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
