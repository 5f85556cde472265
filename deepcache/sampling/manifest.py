"""The manifest of a sample store: all that shapes the samples; stores with equal manifests have equal samples."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from deepcache.errors import DeepCacheError, on_one_line, shown
from deepcache.files import read_json, refused
from deepcache.plan import MOST_STEPS, CachePlan
from deepcache.sampling.seeds import MOST_A_BATCH, MOST_A_SHARD, MOST_PIXELS_A_SIDE

FILE = "manifest.json"
SCHEMA = 2
SHARD_SIZE = 250  # seeds a file, unless another size is asked for
LAYOUT = ("shard_size", "batch_size")  # attributes that change no more than the rounding of samples


@dataclass(frozen=True)
class Manifest:
    """The facts that shape a store's samples, as plain values that JSON keeps; the annotations are the file's schema.

    Versions, device and threads (`made_with`) are not compared, though they may change how samples are rounded.
    """

    model: str  # name of the model, for the reader
    weights: str  # "trained" or "random", and a hash of the weights of all networks
    scheduler: str
    scheduler_config: dict[str, Any]  # the solver's noise schedule
    num_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]  # of the solver, which may call the U-Net more often
    guidance_scale: Annotated[float, Field(allow_inf_nan=False)] | None  # None for a model without guidance
    conditions: str  # the rule by which a seed's class or prompt is chosen, with a hash of the prompts
    plan: dict[str, Any] | None  # the `CachePlan`; None for no cache
    dtype: str  # number format in which the networks compute
    # height and width in pixels
    image_size: Annotated[list[Annotated[int, Field(ge=1, le=MOST_PIXELS_A_SIDE)]], Field(min_length=2, max_length=2)]
    batch_size: Annotated[int, Field(ge=1, le=MOST_A_BATCH)]  # how many samples run together
    shard_size: Annotated[int, Field(ge=1, le=MOST_A_SHARD)] = SHARD_SIZE  # seeds a file; no batch crosses its end
    made_with: dict[str, Any] = field(default_factory=dict, compare=False)  # about the first writer
    schema: int = SCHEMA  # version of the store's format

    @property
    def is_trained(self) -> bool:
        """True for trained weights; samples of random weights are noise."""
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

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def require(self, found: Manifest, folder: Path, follows: Collection[str] = ()) -> None:
        """Refuse the store in a folder if its manifest, `found`, is not this one but for the attributes `follows`."""
        ours, theirs = _flat(self._compared()), _flat(found._compared())
        parts = [
            f"{name} (there {shown(theirs.get(name))}, here {shown(ours.get(name))})"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name) and name not in follows
        ]
        if parts:
            raise DeepCacheError(
                f"expected a store of the same samples in {folder}, which differs in {'; '.join(parts)}; take another "
                "folder"
            )

    def _compared(self) -> Any:
        return json.loads(json.dumps({f.name: getattr(self, f.name) for f in fields(self) if f.compare}))


_SCHEMA = TypeAdapter(Manifest)


def read(folder: Path) -> Manifest:
    """Return the manifest of the store in a folder; refuse a manifest that was altered or is of another schema."""
    path, what = folder / FILE, f"a store with a {FILE}"
    found = read_json(path, what)
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise refused(path, what, f"which has schema {shown(schema)} and not {SCHEMA}; take another folder")
    try:
        manifest = _SCHEMA.validate_json(json.dumps(found), strict=True, extra="forbid")
        if manifest.plan is not None:
            CachePlan.from_json(json.dumps(manifest.plan), "its plan")
    except (ValidationError, DeepCacheError) as error:
        reason = on_one_line(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc'])) or 'all'}: {first['msg']}, got {shown(first['input'])}"
        raise refused(path, what, f"which was altered ({reason}); restore it or take another folder") from error
    return manifest


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with dots in its keys."""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key in value for k, v in _flat(value[key], f"{name}.{key}".lstrip(".")).items()}
