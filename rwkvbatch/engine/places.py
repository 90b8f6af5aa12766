"""Places in dialogues that the engine is asked to remember: what to read after, and which states not to drop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rwkvbatch.engine.prefix import Node, PrefixTree
from rwkvbatch.engine.request import check_tokens


@dataclass(frozen=True, eq=False)
class Hold:
    """A state that is not dropped; see `Places.hold`."""

    node: Node


class Places:
    """Marks and holds.

    Args:
        max_holds: at most so many states are held at a time.
    """

    def __init__(self, tree: PrefixTree, max_holds: int, vocab_size: int) -> None:
        self._tree = tree
        self._max_holds = max_holds
        self._vocab_size = vocab_size
        self._num_holds = 0

    def mark(self, tokens: Sequence[int], root: int = 0) -> int:
        """A root that stands for `tokens` after `root`; `root` may be such a mark itself.

        Where a dialogue's turns end in marks, the next one takes the same time however long the dialogue is: a
        request does not name the tokens before its root. A mark keeps tokens, not a state; one that was dropped
        is made again.

        Raises:
            ValueError: a token outside the vocabulary, or an unknown root.
        """
        check_tokens(tokens, self._vocab_size)
        return self._tree.mark(root, tuple(tokens))

    def unmark(self, mark: int) -> None:
        """Forget a mark, once; those made after it, and requests under way, stay as they are."""
        self._tree.unmark(mark)

    def hold(self, tokens: Sequence[int], root: int = 0) -> Hold | None:
        """Keep the nearest state on the way to `tokens` from being dropped, until `release`.

        Returns:
            None when there is no such state, or when as many as allowed are held already.

        Raises:
            ValueError: an unknown root.
        """
        if self._num_holds >= self._max_holds:
            return None
        node = self._tree.hold(root, tuple(tokens))
        if node is None:
            return None
        self._num_holds += 1
        return Hold(node)

    def release(self, hold: Hold) -> None:
        """Let a held state be dropped when its memory is needed. Once for each hold."""
        self._tree.release(hold.node)
        self._num_holds -= 1
