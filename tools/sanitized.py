"""A pytest plug-in (`-p tools.sanitized`): the package's native module is the one built with sanitizers.

`$RWKVBATCH_SANITIZED` is its file. Nothing is installed, so that the environment keeps its fast one.
"""

from __future__ import annotations

import importlib.util
import os
import sys

NAME = "rwkvbatch._native"


def take_the_place_of_the_native_module(path: str) -> None:
    """Load the extension at `path` under the name of the installed one, before anything else does.

    Raises:
        ImportError: it cannot be loaded, or the other is there already.
    """
    if NAME in sys.modules:
        raise ImportError(f"{NAME} is loaded already")
    spec = importlib.util.spec_from_file_location(NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no extension module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


take_the_place_of_the_native_module(os.environ["RWKVBATCH_SANITIZED"])
