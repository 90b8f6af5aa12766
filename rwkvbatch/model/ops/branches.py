"""Work that does not need each other's results, on several streams: in a CUDA graph they become branches.

A single row's products are too small to fill a GPU, and each waits a microsecond or two for the one before it; side
by side they wait together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


class Stream(Protocol):
    """As `torch.cuda.Stream`."""

    def wait_stream(self, stream: Any) -> None:
        """What is launched here from now on comes after all that was launched on `stream` so far."""
        ...


def in_branches(
    work: Sequence[Callable[[], Result]],
    main: Stream,
    side: Sequence[Stream],
    on: Callable[[Any], AbstractContextManager[object]],
) -> list[Result]:
    """Call each of `work` on a stream of `side`; all come after `main` so far, and `main` goes on after all of them.

    Memory that is allocated on a side stream and given back is only used again there, after the next fork, so after
    everything that `main` did with it.

    Args:
        on: makes a stream the current one, as `torch.cuda.stream` does.
    """
    used = side[: len(work)]
    for stream in used:
        stream.wait_stream(main)
    results: list[Result] = []
    for index, do in enumerate(work):
        with on(used[index % len(used)]):
            results.append(do())
    for stream in used:
        main.wait_stream(stream)
    return results
