"""A run: plan, driver, store, manifest, summary.

The package can be called: `rwkvbatch.run(...)` is the library's function (`rwkvbatch.run.api.run`), and once this
package is imported it stands in the function's place as an attribute of `rwkvbatch`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        """See `rwkvbatch.run.api.run`."""
        from rwkvbatch.run.api import run

        return run(*args, **settings)


sys.modules[__name__].__class__ = _CallablePackage
