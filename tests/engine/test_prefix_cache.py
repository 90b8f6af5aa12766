"""The prefix tree: splits, eviction order, pinned states."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvbatch.engine.prefix_cache import Node, PrefixTree

token_lists = st.lists(st.lists(st.integers(0, 2), min_size=0, max_size=8).map(tuple), min_size=1, max_size=12)


def make_tree() -> PrefixTree:
    tree = PrefixTree()
    tree.add_root(0, None)
    return tree


def tokens_of(node: Node) -> tuple[int, ...]:
    return tuple(token for ancestor in reversed(list(node.path())) for token in ancestor.edge)


@given(token_lists)
def test_a_node_has_exactly_the_tokens_of_its_insertion(lists: list[tuple[int, ...]]) -> None:
    tree = make_tree()
    nodes = [tree.insert(0, tokens) for tokens in lists]
    for node, tokens in zip(nodes, lists, strict=True):
        assert tokens_of(node) == tokens
        assert node.depth == len(tokens)
        assert tree.insert(0, tokens) is node


@given(token_lists, st.lists(st.integers(0, 2), max_size=10).map(tuple))
def test_the_deepest_cached_state_is_the_longest_cached_prefix(
    lists: list[tuple[int, ...]], query: tuple[int, ...]
) -> None:
    tree = make_tree()
    cached: set[tuple[int, ...]] = {()}
    for slot, tokens in enumerate(lists):
        if tree.store(tree.insert(0, tokens), slot):
            cached.add(tokens)
    longest = max((tokens for tokens in cached if query[: len(tokens)] == tokens), key=len)
    assert tokens_of(tree.deepest_cached(tree.insert(0, query))) == longest


@given(token_lists)
def test_pending_counts_survive_splits_and_return_to_zero(lists: list[tuple[int, ...]]) -> None:
    tree = make_tree()
    root = tree.base(0)
    nodes: list[Node] = []
    for tokens in lists:
        node = tree.insert(0, tokens)
        tree.begin_pending(node, root)
        nodes.append(node)
    for node, tokens in zip(nodes, lists, strict=True):
        below = sum(other[: len(tokens)] == tokens for other in lists)
        assert node.num_pending == (below if node is not root else 0)
    for number, node in enumerate(nodes):
        tree.end_pending(node, root, number)
    assert not root.children, "unused nodes are removed"


def test_states_are_evicted_in_the_order_of_their_last_use() -> None:
    tree = make_tree()
    nodes = [tree.insert(0, (number,)) for number in range(3)]
    for slot, node in enumerate(nodes):
        assert tree.store(node, slot)
    tree.deepest_cached(tree.insert(0, (0, 9)))
    assert [tree.evict_oldest() for _ in range(4)] == [1, 2, 0, None]


def test_a_pinned_state_is_not_evicted() -> None:
    tree = make_tree()
    pinned, other = tree.insert(0, (1,)), tree.insert(0, (2,))
    tree.store(pinned, 0)
    tree.store(other, 1)
    pinned.num_state_pins += 1
    assert tree.evict_oldest() == 1
    assert tree.evict_oldest() is None


def test_a_second_state_for_the_same_tokens_is_refused() -> None:
    tree = make_tree()
    assert tree.store(tree.insert(0, (1, 2)), 0)
    assert not tree.store(tree.insert(0, (1, 2)), 1)


def test_roots_do_not_share_anything() -> None:
    tree = make_tree()
    tree.add_root(1, slot=7)
    tree.store(tree.insert(0, (1, 2)), 0)
    assert tree.deepest_cached(tree.insert(1, (1, 2))).slot == 7
    with pytest.raises(ValueError, match="no initial state 2"):
        tree.insert(2, ())


def test_long_edges_are_split_where_the_first_difference_is() -> None:
    generator = random.Random(1)
    base = tuple(generator.randrange(4) for _ in range(1000))
    tree = make_tree()
    tree.insert(0, base)
    for index in (0, 1, 2, 499, 997, 998, 999):
        other = (*base[:index], 9, *base[index + 1 :])
        assert tokens_of(tree.insert(0, other)) == other
        assert tokens_of(tree.insert(0, base)) == base
