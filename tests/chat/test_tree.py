"""The tree of a session: writing and reading, undo, redo, branches that keep removed turns."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvbatch.chat.session import Session
from rwkvbatch.chat.tree_codec import read_tree, tree_values
from rwkvbatch.errors import UsageError
from tests.chat.sessions import new_session


def test_a_tree_is_read_as_written() -> None:
    session = new_session()
    session.ask("a")
    session.retry()
    session.tree.branch("b")
    session.ask("c")
    read = read_tree(tree_values(session.tree), session.engine.model.spec.vocab_size)
    assert read == session.tree
    assert read.history() == session.tree.history()


def test_an_inconsistent_tree_is_refused() -> None:
    session = new_session()
    session.ask("a")
    values = tree_values(session.tree)
    values["branches"]["main"]["exchange"] = 7
    with pytest.raises(ValueError, match="7"):
        read_tree(values, session.engine.model.spec.vocab_size)
    values = tree_values(session.tree)
    values["exchanges"][0]["parent"] = 0
    with pytest.raises(ValueError, match="exchange 0"):
        read_tree(values, session.engine.model.spec.vocab_size)
    values = tree_values(session.tree)
    values["exchanges"][0]["turn"] = 1
    with pytest.raises(ValueError, match="turn 0, got 1"):
        read_tree(values, session.engine.model.spec.vocab_size)
    session.ask("b")
    session.begin()
    values = tree_values(session.tree)
    values["exchanges"][1]["opening"] = 1
    with pytest.raises(ValueError, match="another opening"):
        read_tree(values, session.engine.model.spec.vocab_size)


@pytest.mark.parametrize("count", [0, 3, -1])
def test_undoing_an_impossible_number_of_turns_is_refused(count: int) -> None:
    session = new_session()
    session.ask("a")
    session.ask("b")
    with pytest.raises(UsageError, match="1 to 2"):
        session.tree.undo(count)
    assert len(session.tree.path()) == 2


def _messages(session: Session) -> list[str]:
    return [exchange.user for exchange in session.tree.path()]


def test_turns_removed_by_pick_are_kept_as_a_branch() -> None:
    session = new_session()
    session.ask("a")
    session.again(2)
    for message in ("b", "c", "d"):
        session.ask(message)
    before = session.tree.path()
    session.pick(1)
    cut = session.tree.last_cut
    assert cut is not None
    assert cut.kept is not None
    assert len(session.tree.path()) == 1
    session.tree.switch(cut.kept)
    assert session.tree.path() == before


@pytest.mark.parametrize("command", ["undo", "retry", "edit", "pick"])
def test_redo_restores_turns_removed_by_a_command(command: str) -> None:
    session = new_session()
    session.ask("a")
    session.ask("b")
    session.again(1)
    before, branches = session.tree.path(), set(session.tree.branches)
    {
        "undo": lambda: session.tree.undo(2),
        "retry": session.retry,
        "edit": lambda: session.edit("other"),
        "pick": lambda: session.pick(1),
    }[command]()
    after = session.tree.path()
    assert after != before
    cut = session.redo()
    assert session.tree.path() == before
    if command == "undo":
        assert set(session.tree.branches) == branches
    else:
        assert cut.kept is not None
        session.tree.switch(cut.kept)
        assert session.tree.path() == after


def test_redo_restores_several_undos_in_reverse_order() -> None:
    session = new_session()
    for message in ("a", "b", "c", "d"):
        session.ask(message)
    session.tree.undo()
    session.tree.undo(2)
    session.redo()
    assert _messages(session) == ["a", "b", "c"]
    session.redo()
    assert _messages(session) == ["a", "b", "c", "d"]
    assert list(session.tree.branches) == ["main"]
    with pytest.raises(UsageError, match="there is none since the last message"):
        session.redo()


def test_after_a_message_redo_is_refused_and_removed_turns_are_a_branch() -> None:
    session = new_session()
    for message in ("a", "b"):
        session.ask(message)
    session.tree.undo()
    session.ask("c")
    with pytest.raises(UsageError):
        session.redo()
    session.tree.switch("branch-2")
    assert _messages(session) == ["a", "b"]


def test_removed_turns_of_another_branch_get_no_new_branch() -> None:
    session = new_session()
    session.ask("a")
    session.tree.branch("side")
    session.tree.switch("main")
    session.tree.undo()
    assert session.tree.last_cut is not None
    assert session.tree.last_cut.kept == "side"
    assert list(session.tree.branches) == ["main", "side"]


@given(
    moves=st.lists(st.sampled_from(["ask", "undo", "redo", "retry", "again", "pick", "branch", "switch"]), max_size=25)
)
@settings(max_examples=30, deadline=None)
def test_every_exchange_stays_on_a_branch(moves: list[str]) -> None:
    session = new_session()
    reached: set[int] = set()
    for number, move in enumerate(moves):
        tree = session.tree
        with contextlib.suppress(UsageError):
            match move:
                case "ask":
                    session.ask(f"m{number}")
                case "undo":
                    tree.undo(1 + number % 2)
                case "redo":
                    session.redo()
                case "retry":
                    session.retry()
                case "again":
                    session.again(2)
                case "pick":
                    session.pick(1)
                case "branch":
                    tree.branch()
                case _:
                    tree.switch(list(tree.branches)[number % len(tree.branches)])
        reached |= {exchange.number for exchange in tree.path()}
        on_branches: set[int] = set()
        for end in tree.branches.values():
            exchange_number = end.exchange
            while exchange_number is not None:
                on_branches.add(exchange_number)
                exchange_number = tree.exchanges[exchange_number].parent
        assert reached <= on_branches
