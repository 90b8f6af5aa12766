"""`PinnedPrefixes`: the positions of a conversation tree in an engine's prefix cache."""

from __future__ import annotations

from rwkvbatch.chat.tree import ConversationTree, Exchange, Position
from rwkvbatch.endpoint.engine import EndpointEngine
from rwkvbatch.engine.engine import ZERO_ROOT, Engine
from rwkvbatch.engine.prefix_cache import Node
from rwkvbatch.model.base import State


class PinnedPrefixes:
    """The positions of a conversation tree as pinned prefixes in an engine's prefix cache.

    A request has only the tokens of its own turn and the root of the prefix before it. The states at the ends of the
    branches are pinned. An opening begins with the zero state unless `add_state` set another one.
    """

    def __init__(self, engine: Engine | EndpointEngine, tree: ConversationTree) -> None:
        self._engine = engine
        self._tree = tree
        self._roots: dict[Position, int] = {}
        self._pinned_states: dict[Position, Node] = {}
        self._initial_roots: dict[int, int] = {}

    def add_state(self, opening: int, state: State) -> None:
        """Use `state` as the initial state of `opening`, which must not have exchanges yet."""
        self._initial_roots[opening] = self._engine.add_root(state)

    def share_state(self, opening: int, other: int) -> None:
        """Use the initial state of `opening` also for `other`, which must not have exchanges yet."""
        if opening in self._initial_roots:
            self._initial_roots[other] = self._initial_roots[opening]

    def initial_root(self, position: Position) -> int:
        """The root of the initial state of the position's opening."""
        return self._initial_roots.get(position.opening, ZERO_ROOT)

    def root_after(self, position: Position) -> int:
        """The root of the prefix of all tokens up to `position`; pins it if it is not pinned."""
        unpinned: list[Exchange] = []
        while position not in self._roots and position.exchange is not None:
            unpinned.append(self._tree.exchanges[position.exchange])
            position = self._tree.before(unpinned[-1])
        if position not in self._roots:
            opening = self._tree.openings[position.opening]
            self._roots[position] = self._engine.pin_prefix(opening.tokens, self.initial_root(position))
        root = self._roots[position]
        for exchange in reversed(unpinned):
            root = self._engine.pin_prefix(exchange.tokens, root)
            self._roots[Position(exchange.opening, exchange.number)] = root
        return root

    def pin_branch_states(self) -> None:
        """Pin the states at the ends of the branches that the user made or switched to, and unpin all others."""
        kept = self._tree.kept
        ends = {position for name, position in self._tree.branches.items() if name not in kept}
        for position in [position for position in self._pinned_states if position not in ends]:
            self._engine.unpin_state(self._pinned_states.pop(position))
        for position in ends - self._pinned_states.keys():
            node = self._engine.pin_state((), self.root_after(position))
            if node is not None:
                self._pinned_states[position] = node

    def close(self) -> None:
        """Unpin all prefixes and states."""
        for root in self._roots.values():
            self._engine.unpin_prefix(root)
        for node in self._pinned_states.values():
            self._engine.unpin_state(node)
