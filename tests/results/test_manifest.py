"""The digest of the program's code in the manifest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import rwkvbatch
from rwkvbatch.replay.continuing.identity import code_sha256


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
