"""Manifests that tests make or change, with their checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkvbatch.results.manifest import CHECKSUM, MANIFEST_NAME, checksum_of


def manifest_of(directory: Path) -> dict[str, Any]:
    """The manifest's values as they are in the file."""
    return json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))


def save_manifest(directory: Path, values: Mapping[str, Any]) -> None:
    """Write a manifest with the checksum of its values."""
    content = {name: value for name, value in values.items() if name != CHECKSUM}
    sealed = {**content, CHECKSUM: checksum_of(content)}
    (directory / MANIFEST_NAME).write_text(json.dumps(sealed), encoding="utf-8")
