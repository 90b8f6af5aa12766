"""What a comparison needs to know of a manifest; tolerant, since other versions may have written it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast


@dataclass(frozen=True)
class RunFacts:
    """What was run, as far as the manifest says; None or empty where it does not.

    Attributes:
        script_sha256: hash of the conversations. seed: the run seed. version: the program's. created: a date.
        command: the command line. scripts: paths. cells: each cell's settings by its name, in the plan's
        order. models: one record a checkpoint. identity: all that the replies depend on, as it stands in the
        manifest. part: such as `2/8`, of a part of a run (`--shard`).
    """

    script_sha256: str | None = None
    seed: int | None = None
    repeats: int | None = None
    version: str | None = None
    created: str | None = None
    command: str | None = None
    scripts: tuple[str, ...] = ()
    cells: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    models: tuple[Mapping[str, Any], ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])
    part: str | None = None

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> RunFacts:
        """Read the content of a `manifest.json`; an empty one gives empty facts."""
        identity, about = _record(manifest.get("identity")), _record(manifest.get("about"))
        script = _record(identity.get("script"))
        return cls(
            script_sha256=_text(script.get("sha256")),
            seed=_integer(identity.get("seed")),
            repeats=_integer(identity.get("repeats")),
            version=_text(about.get("rwkvbatch")),
            created=_text(about.get("created")),
            command=_text(about.get("command")),
            scripts=tuple(str(path) for path in _entries(about.get("scripts"))),
            cells={name: _record(values) for name, values in _record(identity.get("cells")).items()},
            models=tuple(_record(model) for model in _entries(about.get("models"))),
            identity=identity,
            part=_part(manifest.get("shard")),
        )

    def setting(self, cell: str, key: str) -> Any:
        """One setting of one cell; None where the manifest does not say."""
        return self.cells.get(cell, {}).get(key)


def varied_settings(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings that differ between cells, with each one's values in the order in which they come up."""
    varied: dict[str, list[Any]] = {}
    keys = dict.fromkeys(key for settings in cells.values() for key in settings)
    for key in keys:
        values: list[Any] = []
        for settings in cells.values():
            value = settings.get(key)
            if value not in values:
                values.append(value)
        if len(values) > 1:
            varied[key] = values
    return varied


def _part(shard: object) -> str | None:
    match shard:
        case {"part": int(part), "parts": int(parts)}:
            return f"{part}/{parts}"
        case _:
            return None


def _record(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _entries(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None
