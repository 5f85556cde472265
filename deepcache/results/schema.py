"""What an entry of a results file or a baseline must look like, checked whole where the file is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_Number = Annotated[float, Field(allow_inf_nan=False)]


class Entry(BaseModel):
    """A record as JSON has it; `deepcache.results.record.Record` checks the values of settings and metrics."""

    model_config = ConfigDict(strict=True, extra="forbid")

    experiment: str
    row: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    environment: dict[str, Any] = {}
    outcome: str = "unknown"
    per_seed: dict[str, list[_Number]] = {}
    pictures: list[dict[str, str]] = []


def fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a `Record` out of an entry.

    Raises:
        ValueError: a field that is missing, unknown, or of another type; the message names the first such field.
    """
    try:
        return Entry.model_validate(entry).model_dump()
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, found["loc"]))
        raise ValueError(f"{place}: {found['msg'][:1].lower()}{found['msg'][1:]}") from error
