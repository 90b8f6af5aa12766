"""`PrefixTree`: the token sequences that requests share, and the recurrent states cached after them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from rwkvbatch.errors import ArgumentError

Tokens = tuple[int, ...]


@dataclass(eq=False, slots=True)
class Node:
    """Tokens `edge` after `parent`; `depth` tokens after the root.

    Attributes:
        slot: the pool slot with the state after these tokens, if that is cached.
        num_pending: number of requests whose unread prompt passes through or ends at this node.
        reader: the request that will reach this node and cache a state here.
        num_state_pins: while above 0, the state here is not evicted.
        num_pins: while above 0, the node stays in the tree, even without a state.
    """

    edge: Tokens
    parent: Node | None
    depth: int
    children: dict[int, Node] = field(default_factory=dict["int", "Node"])
    slot: int | None = None
    num_pending: int = 0
    reader: int | None = None
    num_state_pins: int = 0
    num_pins: int = 0

    def path(self, base: Node | None = None) -> Iterator[Node]:
        """This node and its ancestors, deepest first, down from `base` (exclusive) or the root (inclusive)."""
        node: Node | None = self
        while node is not None and node is not base:
            yield node
            node = node.parent


class PrefixTree:
    """Finds and splits prefixes, caches their states, and evicts the least recently used ones."""

    def __init__(self) -> None:
        self._roots: dict[int, Node] = {}
        self._cached: OrderedDict[int, Node] = OrderedDict()
        """Nodes with an evictable state, by slot, least recently used first."""
        self._num_pinned_prefixes = 0

    @property
    def num_states(self) -> int:
        """Cached states, those of roots not included."""
        return len(self._cached)

    def add_root(self, root: int, slot: int | None) -> None:
        """Add a root for the initial state in `slot` (None: the zero state). Roots are never evicted."""
        self._roots[root] = Node(edge=(), parent=None, depth=0, slot=slot)

    def base(self, root: int) -> Node:
        """The node of `root`.

        Raises:
            ArgumentError: there is no such root.
        """
        node = self._roots.get(root)
        if node is None:
            raise ArgumentError(f"there is no initial state {root}")
        return node

    def pin_prefix(self, root: int, tokens: Tokens) -> int:
        """A root, with a negative number, for the prefix `tokens` after `root`; valid until `unpin_prefix`."""
        node = self.insert(root, tokens)
        self.pin(node)
        self._num_pinned_prefixes += 1
        self._roots[-self._num_pinned_prefixes] = node
        return -self._num_pinned_prefixes

    def unpin_prefix(self, root: int) -> None:
        """Undo `pin_prefix`; nodes below the prefix stay."""
        self.unpin(self._roots.pop(root))

    def insert(self, root: int, tokens: Tokens) -> Node:
        """The node of exactly `tokens` after `root`; creates it, and splits an edge, if needed."""
        return self.extend(self.base(root), tokens)

    def extend(self, base: Node, tokens: Tokens) -> Node:
        """Like `insert`, but after the node `base`."""
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
        """Keep `node` in the tree until `unpin`."""
        node.num_pins += 1

    def unpin(self, node: Node) -> None:
        node.num_pins -= 1
        self._prune(node)

    def begin_pending(self, node: Node, base: Node) -> None:
        """Count a request that starts at `base` and whose prompt, not yet read, ends at `node`."""
        for ancestor in node.path(base):
            ancestor.num_pending += 1

    def end_pending(self, node: Node, base: Node, request: int) -> None:
        """Undo `begin_pending`: the prompt was read, or the request ended."""
        for ancestor in node.path(base):
            ancestor.num_pending -= 1
            if ancestor.reader == request:
                ancestor.reader = None
        self._prune(node)

    def deepest_cached(self, node: Node) -> Node:
        """The deepest node on the path to `node` that has a state; the root if no other has one."""
        for ancestor in node.path():
            if ancestor.slot is not None or ancestor.parent is None:
                if ancestor.slot in self._cached:
                    self._cached.move_to_end(ancestor.slot)
                return ancestor
        raise AssertionError("every path ends in a root")

    def store(self, node: Node, slot: int) -> bool:
        """Cache the state in `slot` at `node`. Returns False, and does not take the slot, if the node has a state."""
        if node.slot is not None or node.parent is None:
            if node.slot in self._cached:
                self._cached.move_to_end(node.slot)
            return False
        node.slot, node.reader = slot, None
        self._cached[slot] = node
        return True

    def pin_state(self, root: int, tokens: Tokens) -> Node | None:
        """Protect the deepest cached state on the path to `tokens` from eviction; None when only the root has one."""
        end = self.insert(root, tokens)
        node = self.deepest_cached(end)
        if node.parent is not None:
            node.num_state_pins += 1
        self._prune(end)
        return None if node.parent is None else node

    def evict_oldest(self) -> int | None:
        """Evict the least recently used state that is not pinned; returns its slot, None if there is none."""
        for slot, node in self._cached.items():
            if node.num_state_pins == 0:
                del self._cached[slot]
                node.slot = None
                self._prune(node)
                return slot
        return None

    def _split(self, node: Node, length: int) -> Node:
        """Insert a node after the first `length` tokens of `node`'s edge; returns the new node."""
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
        """Remove `node` and its ancestors as long as nothing uses them."""
        while (
            node.parent is not None
            and node.slot is None
            and not node.children
            and node.num_pending == 0
            and node.num_state_pins == 0
            and node.num_pins == 0
        ):
            parent = node.parent
            del parent.children[node.edge[0]]
            node = parent


def _common_length(edge: Tokens, tokens: Tokens, offset: int) -> int:
    """How many leading tokens `edge` and `tokens[offset:]` share."""
    limit = min(len(edge), len(tokens) - offset)
    if edge[:limit] == tokens[offset : offset + limit]:
        return limit
    # Bisect for the first difference, comparing slices at C speed.
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if edge[low:middle] == tokens[offset + low : offset + middle]:
            low = middle
        else:
            high = middle
    return low
