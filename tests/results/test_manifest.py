"""Manifests: the digest of the program's code, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.errors import RunDamagedError, RunDirectoryError
from rwkvbatch.replay.continuing.identity import code_sha256
from rwkvbatch.results.manifest import FORMAT, read_manifest
from tests.manifests import manifest_of, save_manifest


def test_the_digest_of_the_code_covers_every_source_and_library_of_the_package() -> None:
    package = Path(rwkvbatch.__file__).parent
    sources = [
        Path(folder) / name
        for folder, _, names in os.walk(package)
        for name in names
        if name.endswith((".py", ".so", ".pyd"))
    ]
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())

    assert code_sha256() == digest.hexdigest()


VALUES: dict[str, Any] = {
    "format": FORMAT,
    "identity": {"seed": 1, "cells": {"base": {"temperature": 1.0}}},
    "about": {},
}


def test_a_manifest_of_a_development_version_is_refused_with_its_format(tmp_path: Path) -> None:
    """Early ones have no checksum, and settings by their short names."""
    cells = {"base": {"temperature": 1.0, "presence": 0.5}}
    old = {"format": 1, "identity": {"seed": 1, "cells": cells}, "about": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    with pytest.raises(RunDirectoryError, match=f"has format 1; this version reads {FORMAT}") as caught:
        read_manifest(tmp_path)
    assert "the version that wrote it" in (caught.value.hint or "")
    save_manifest(tmp_path, old)
    with pytest.raises(RunDirectoryError, match="has format 1"):
        read_manifest(tmp_path)


def test_a_manifest_without_its_checksum_is_refused(tmp_path: Path) -> None:
    save_manifest(tmp_path, VALUES)
    assert read_manifest(tmp_path) == VALUES
    content = manifest_of(tmp_path)
    del content["sha256"]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(RunDamagedError, match="checksum does not match"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("about", 5, "about must be an object, got 5"),
        ("about.files", None, "about.files must be an object, got null"),
        ("about.files", [1], "about.files must be an object, got [1]"),
        ("about.files", {"base": 5}, "about.files.base must be an object, got 5"),
        ("about.files", {"base": {"model": 5}}, "about.files.base.model must be a string, got 5"),
        ("about.vocab", 5, "about.vocab must be a string, got 5"),
        ("identity.given_for_all", 5, "identity.given_for_all must be an array, got 5"),
        ("identity.given_for_all", [["seed"]], 'identity.given_for_all.0 must be a string, got ["seed"]'),
    ],
)
def test_a_manifest_with_a_value_of_a_wrong_type_is_refused(
    key: str, value: object, problem: str, tmp_path: Path
) -> None:
    changed = copy.deepcopy(VALUES)
    holder, _, name = key.rpartition(".")
    (changed[holder] if holder else changed)[name] = value
    save_manifest(tmp_path, changed)
    with pytest.raises(RunDamagedError, match=re.escape(problem)):
        read_manifest(tmp_path)


@pytest.mark.parametrize("identity", [None, 1, {}, {"cells": []}, {"cells": {"base": 1}}])
def test_a_manifest_whose_identity_has_no_cells_is_refused(identity: object, tmp_path: Path) -> None:
    save_manifest(tmp_path, {**VALUES, "identity": identity})
    with pytest.raises(RunDamagedError, match="is not the manifest of a run"):
        read_manifest(tmp_path)
