"""Places in dialogues that the engine is asked to remember: what to read after, and which states not to drop."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rwkvbatch.model.base import check_tokens


class SlotAllocator:
    """Hands out the numbers 0 .. capacity - 1, each to one owner at a time."""

    def __init__(self, capacity: int) -> None:
        self._free = list(range(capacity - 1, -1, -1))
        self.capacity = capacity

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int | None:
        """A free slot, or None."""
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        self._free.append(slot)


Tokens = tuple[int, ...]


@dataclass(eq=False, slots=True)
class Node:
    """Tokens `edge` after `parent`; `depth` tokens after the root.

    Attributes:
        slot: the pool slot with the state after these tokens, if it is kept.
        num_pending: requests, not yet fully read, that end at or below this node and begin above it.
        reader: the request that is on its way to this node and will leave a state here.
        num_holds: while above 0, the state here is not dropped.
        num_pins: while above 0, the node stays in the tree, with a state or without.
    """

    edge: Tokens
    parent: Node | None
    depth: int
    children: dict[int, Node] = field(default_factory=dict["int", "Node"])
    slot: int | None = None
    num_pending: int = 0
    reader: int | None = None
    num_holds: int = 0
    num_pins: int = 0

    def path(self, base: Node | None = None) -> Iterator[Node]:
        """This node and its ancestors, deepest first; those below `base` when that is given."""
        node: Node | None = self
        while node is not None and node is not base:
            yield node
            node = node.parent


class PrefixTree:
    """Finds, splits, keeps and drops prefixes."""

    def __init__(self) -> None:
        self._roots: dict[int, Node] = {}
        self._kept: OrderedDict[int, Node] = OrderedDict()
        """Nodes that own a slot and may lose it, by slot, least recently used first."""
        self._num_marks = 0

    @property
    def num_kept(self) -> int:
        return len(self._kept)

    def add_root(self, root: int, slot: int | None) -> None:
        """Begin a tree under the initial state in `slot` (None: the zero state). Roots are never dropped."""
        self._roots[root] = Node(edge=(), parent=None, depth=0, slot=slot)

    def base(self, root: int) -> Node:
        """The node that `root` stands for.

        Raises:
            ValueError: there is no such root.
        """
        node = self._roots.get(root)
        if node is None:
            raise ValueError(f"there is no initial state {root}")
        return node

    def mark(self, root: int, tokens: Tokens) -> int:
        """A root that stands behind `tokens`, until `unmark`. Marks have numbers below 0."""
        node = self.insert(root, tokens)
        self.pin(node)
        self._num_marks += 1
        self._roots[-self._num_marks] = node
        return -self._num_marks

    def unmark(self, mark: int) -> None:
        """The opposite of `mark`; what is below stays."""
        self.unpin(self._roots.pop(mark))

    def insert(self, root: int, tokens: Tokens) -> Node:
        """The node that stands for exactly `tokens` after `root`, made (and others split) where needed."""
        return self.extend(self.base(root), tokens)

    def extend(self, base: Node, tokens: Tokens) -> Node:
        """Like `insert`, after any node."""
        node, offset = base, 0
        while offset < len(tokens):
            child = node.children.get(tokens[offset])
            if child is None:
                new = Node(edge=tokens[offset:], parent=node, depth=base.depth + len(tokens))
                node.children[new.edge[0]] = new
                return new
            shared = _common_length(child.edge, tokens, offset)
            if shared < len(child.edge):
                child = self._split(child, shared)
            node, offset = child, offset + shared
        return node

    def pin(self, node: Node) -> None:
        """Let `node` stay where it is until `unpin`."""
        node.num_pins += 1

    def unpin(self, node: Node) -> None:
        """The opposite of `pin`."""
        node.num_pins -= 1
        self._prune(node)

    def begin_pending(self, node: Node, base: Node) -> None:
        """A request that begins at `base` and ends at `node` is waiting for its tokens to be read."""
        for ancestor in node.path(base):
            ancestor.num_pending += 1

    def end_pending(self, node: Node, base: Node, request: int) -> None:
        """That request has been read, or given up."""
        for ancestor in node.path(base):
            ancestor.num_pending -= 1
            if ancestor.reader == request:
                ancestor.reader = None
        self._prune(node)

    def deepest_kept(self, node: Node) -> Node:
        """The nearest ancestor of `node`, or itself, that has a state; the root at the worst."""
        for ancestor in node.path():
            if ancestor.slot is not None or ancestor.parent is None:
                if ancestor.slot in self._kept:
                    self._kept.move_to_end(ancestor.slot)
                return ancestor
        raise AssertionError("every path ends in a root")

    def keep(self, node: Node, slot: int) -> bool:
        """Leave the state in `slot` at `node`; False when the node has one already (the slot is not taken)."""
        if node.slot is not None or node.parent is None:
            if node.slot in self._kept:
                self._kept.move_to_end(node.slot)
            return False
        node.slot, node.reader = slot, None
        self._kept[slot] = node
        return True

    def hold(self, root: int, tokens: Tokens) -> Node | None:
        """Keep the nearest state on the way to `tokens` from being dropped; None when there is none but the root's."""
        end = self.insert(root, tokens)
        node = self.deepest_kept(end)
        if node.parent is not None:
            node.num_holds += 1
        self._prune(end)
        return None if node.parent is None else node

    def release(self, node: Node) -> None:
        """The opposite of `hold`."""
        node.num_holds -= 1

    def drop_oldest(self) -> int | None:
        """Forget the least recently used state that nothing holds; its slot, or None."""
        for slot, node in self._kept.items():
            if node.num_holds == 0:
                del self._kept[slot]
                node.slot = None
                self._prune(node)
                return slot
        return None

    def _split(self, node: Node, length: int) -> Node:
        """Put a node after the first `length` tokens of `node`'s edge; returns it."""
        assert node.parent is not None
        upper = Node(
            edge=node.edge[:length],
            parent=node.parent,
            depth=node.depth - len(node.edge) + length,
            num_pending=node.num_pending,
        )
        node.parent.children[upper.edge[0]] = upper
        node.edge, node.parent = node.edge[length:], upper
        upper.children[node.edge[0]] = node
        return upper

    def _prune(self, node: Node) -> None:
        """Remove `node` and its ancestors as far as they stand for nothing."""
        while (
            node.parent is not None
            and node.slot is None
            and not node.children
            and node.num_pending == 0
            and node.num_holds == 0
            and node.num_pins == 0
        ):
            parent = node.parent
            del parent.children[node.edge[0]]
            node = parent


def _common_length(edge: Tokens, tokens: Tokens, offset: int) -> int:
    """How many tokens of `edge` are also those of `tokens` from `offset` on."""
    limit = min(len(edge), len(tokens) - offset)
    if edge[:limit] == tokens[offset : offset + limit]:
        return limit
    # The first difference lies in this range: halve it, comparing slices at C speed.
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if edge[low:middle] == tokens[offset + low : offset + middle]:
            low = middle
        else:
            high = middle
    return low


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
