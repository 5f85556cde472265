"""The manifest of a sample store: all that shapes the samples; stores with equal manifests have equal samples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from deepcache.errors import DeepCacheError, on_one_line, shown
from deepcache.files import read_json, refused
from deepcache.plan import MOST_STEPS, CachePlan
from deepcache.sampling.limits import MOST_A_BATCH, MOST_A_SHARD, MOST_PIXELS_A_SIDE

FILE = "manifest.json"
SCHEMA = 2
SHARD_SIZE = 250  # seeds a file, unless another size is asked for
LAYOUT = ("shard_size", "batch_size")  # attributes that change no more than the rounding of samples
_SHOWN = 60  # characters of a value in an error


@dataclass(frozen=True)
class Manifest:
    """The facts that shape a store's samples, as plain values that JSON keeps.

    The annotations are the schema by which `read` checks a file.

    Attributes:
        model: name of the model, for the reader.
        weights: "trained" or "random", and a hash of the weights of all networks.
        scheduler, scheduler_config: name of the solver, and its noise schedule.
        num_steps: steps of the solver, which may call the U-Net more often.
        guidance_scale: scale of classifier-free guidance; None for a model without guidance.
        conditions: the rule by which a seed's class or prompt is chosen, with a hash of the prompts.
        plan: the `CachePlan` as a dict; None for no cache.
        dtype: number format in which the networks compute.
        image_size: height and width in pixels.
        batch_size: how many samples run together.
        shard_size: seeds a file; no batch crosses the end of a file.
        made_with: versions, device and threads of the first writer. They are not compared, though they may change how
            samples are rounded, as the batch size does.
        schema: version of the store's format.
    """

    model: str
    weights: str
    scheduler: str
    scheduler_config: dict[str, Any]
    num_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    guidance_scale: Annotated[float, Field(allow_inf_nan=False)] | None
    conditions: str
    plan: dict[str, Any] | None
    dtype: str
    image_size: Annotated[list[Annotated[int, Field(ge=1, le=MOST_PIXELS_A_SIDE)]], Field(min_length=2, max_length=2)]
    batch_size: Annotated[int, Field(ge=1, le=MOST_A_BATCH)]
    shard_size: Annotated[int, Field(ge=1, le=MOST_A_SHARD)] = SHARD_SIZE
    made_with: dict[str, Any] = field(default_factory=dict, compare=False)
    schema: int = SCHEMA

    @property
    def is_trained(self) -> bool:
        """Whether the samples mean something."""
        return not self.weights.startswith("random ")

    @property
    def name(self) -> str:
        """Name of a new store's folder: words for the reader, and a hash of all that is compared."""
        steps = "uncached" if self.plan is None else f"{len(self.plan['full_steps'])}-full"
        words = f"{self.model}-{self.scheduler}-{self.num_steps}-{steps}".lower()
        return f"{re.sub('[^a-z0-9.+]+', '-', words)}-{self.digest[:10]}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that is compared; every shard holds it, which tells a foreign shard."""
        return sha256(json.dumps(self._compared(), sort_keys=True).encode()).hexdigest()

    def following(self, other: Manifest, names: Iterable[str]) -> Manifest:
        """Return this manifest with some attributes of another."""
        return replace(self, **{name: getattr(other, name) for name in names})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def require(self, found: Manifest, folder: Path) -> None:
        """Refuse the store in a folder if its manifest, `found`, is not this one.

        Raises:
            DeepCacheError: the manifests differ; the error names what differs.
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


_SCHEMA = TypeAdapter(Manifest)


def read(folder: Path) -> Manifest:
    """Return the manifest of the store in a folder.

    Raises:
        DeepCacheError: there is no manifest, it was altered, or another version of the package wrote it.
    """
    path, what = folder / FILE, f"a store with a {FILE}"
    found = read_json(path, what)
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        reason = f"which has schema {shown(schema)} and not {SCHEMA}, this version's; take another folder"
        raise refused(path, what, reason)
    try:
        manifest = _SCHEMA.validate_json(json.dumps(found), strict=True, extra="forbid")
        if manifest.plan is not None:
            CachePlan.from_json(json.dumps(manifest.plan), "its plan")
    except (ValidationError, DeepCacheError) as error:
        raise refused(path, what, f"which was altered ({_first(error)}); restore it or take another folder") from error
    return manifest


def _first(error: ValidationError | DeepCacheError) -> str:
    """Return the first thing that is wrong, on one line."""
    if isinstance(error, DeepCacheError):
        return on_one_line(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'all'}: {first['msg']}, got {shown(first['input'])}"


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with dots in its keys."""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key in value for k, v in _flat(value[key], f"{name}.{key}".lstrip(".")).items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
