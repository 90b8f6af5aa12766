"""`verdicts.jsonl`: stored answers, damaged and hostile lines, flushes, the limit on unused answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.errors import RunDirectoryError, StorageError
from rwkvbatch.files import Files
from rwkvbatch.judges.answers import JudgeAnswer
from rwkvbatch.results.answers import MAX_LINE_BYTES, VERDICTS_NAME, AnswerStore, read_lines_of
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.row_codec import with_checksum
from tests.judges.fakes import FakeJudge

KEYS = [f"{number:032x}" for number in range(1000)]


def store_answers(path: Path, count: int = 3, judge: FakeJudge | None = None) -> str:
    with AnswerStore(Folder(path)) as store:
        digest = store.use(judge or FakeJudge())
        for key in KEYS[:count]:
            store.add(key, JudgeAnswer(0.25))
    assert digest is not None
    return digest


def stored_probabilities(path: Path, count: int = 3, judge: FakeJudge | None = None) -> list[float | None]:
    with AnswerStore(Folder(path)) as store:
        store.use(judge or FakeJudge())
        return [store.probability(key) for key in KEYS[:count]]


def line(**values: Any) -> bytes:
    return with_checksum(json.dumps(values).encode())


def test_answers_are_read_for_the_judge_that_gave_them(tmp_path: Path) -> None:
    store_answers(tmp_path)
    with AnswerStore(Folder(tmp_path)) as store:
        store.use(FakeJudge())
        store.add(KEYS[5], JudgeAnswer(votes={7: True, None: False}))
    before = (tmp_path / VERDICTS_NAME).read_bytes()
    assert stored_probabilities(tmp_path) == [0.25] * 3
    with AnswerStore(Folder(tmp_path)) as store:
        assert store.use(None) is not None  # the judge that answered last
        assert (store.vote(KEYS[5], 7), store.vote(KEYS[5], None), store.vote(KEYS[5], 8)) == (True, False, None)
    assert (tmp_path / VERDICTS_NAME).read_bytes() == before
    assert stored_probabilities(tmp_path, judge=FakeJudge(version=2)) == [None] * 3
    assert stored_probabilities(tmp_path) == [0.25] * 3


def test_without_a_file_there_is_no_judge(tmp_path: Path) -> None:
    with AnswerStore(Folder(tmp_path)) as store:
        assert store.use(None) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_line_is_ignored_and_the_next_line_is_written_whole(tmp_path: Path, cut: int) -> None:
    store_answers(tmp_path)
    path = tmp_path / VERDICTS_NAME
    path.write_bytes(path.read_bytes()[:-cut])
    assert stored_probabilities(tmp_path) == [0.25, 0.25, None]
    with AnswerStore(Folder(tmp_path)) as store:
        store.use(FakeJudge())
        store.add(KEYS[2], JudgeAnswer(0.75))
    assert stored_probabilities(tmp_path) == [0.25, 0.25, 0.75]


def test_read_lines_of_returns_only_whole_lines_of_the_store(tmp_path: Path) -> None:
    store_answers(tmp_path, 2)
    path = tmp_path / VERDICTS_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    foreign = [b"no line\n", with_checksum(b'{"a":1}'), line(judge="x", filler="x" * MAX_LINE_BYTES)]
    path.write_bytes(b"".join([lines[0], *foreign, *lines[1:]]) + lines[1][:-3])
    assert list(read_lines_of(tmp_path)) == lines
    assert list(read_lines_of(tmp_path / "nowhere")) == []


def hostile(digest: str) -> list[bytes]:
    by = {"by": digest, "key": KEYS[0]}
    return [
        line(**by, probability=2.0),
        line(**by, probability=True),
        line(**by, probability="1"),
        line(**by, probability=None),
        line(**by, probability=1.0, vote=True, seed=1),
        line(**by, vote=1, seed=1),
        line(**by, vote=True, seed=-1),
        line(**by, vote=True, seed=2**40),
        line(**by, vote=True, seed=True),
        line(**by, vote=True),
        line(by=digest, key="x" * 32, probability=1.0),
        line(by=digest, key=7, probability=1.0),
        line(by=[digest], key=KEYS[0], probability=1.0),
        b'{"by":"%s","key":"%s","probability":1.0}\n' % (digest.encode(), KEYS[0].encode()),
        line(**by, probability=1.0).replace(b"1.0", b"0.9"),
        b'{"a":' + b"[" * 100_000 + b"\n",
        b"\xff\xfe\x00\n",
        line(judge=digest, name="liar", identity={"kind": "other"}),
        line(judge="x", name=1, identity=[]),
        line(**by, probability=1.0, filler="x" * MAX_LINE_BYTES),
        with_checksum(b'{"by":"%s","key":"%s","probability":NaN}' % (digest.encode(), KEYS[0].encode())),
        with_checksum(b'{"by":"%s","key":"%s","probability":1e999}' % (digest.encode(), KEYS[0].encode())),
    ]


@pytest.mark.parametrize("number", range(22))
def test_a_hostile_line_is_ignored(tmp_path: Path, number: int) -> None:
    digest = store_answers(tmp_path, 2)
    lines = hostile(digest)
    assert len(lines) == 22
    path = tmp_path / VERDICTS_NAME
    head, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([head, *rest[1:], lines[number]]))
    with AnswerStore(Folder(tmp_path)) as store:
        assert store.judge is not None
        assert store.judge.name == "fake"
        assert store.use(None) == digest
        assert store.probability(KEYS[0]) is None
        assert all(store.vote(KEYS[0], seed) is None for seed in (None, 1, True))
        assert store.probability(KEYS[1]) == 0.25


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_a_link_or_a_special_file_is_refused(tmp_path: Path, kind: str) -> None:
    target, path = tmp_path / "other", tmp_path / "run" / VERDICTS_NAME
    path.parent.mkdir()
    target.write_bytes(b"")
    path.symlink_to(target) if kind == "link" else path.mkdir()
    with pytest.raises((RunDirectoryError, StorageError)), AnswerStore(Folder(path.parent)) as store:
        store.use(FakeJudge())
    assert target.read_bytes() == b""


def test_a_file_open_in_another_process_is_refused_without_a_lock_of_the_directory(tmp_path: Path) -> None:
    with AnswerStore(Folder(tmp_path), alone=True), pytest.raises(RunDirectoryError, match="another process"):
        AnswerStore(Folder(tmp_path), alone=True)
    AnswerStore(Folder(tmp_path), alone=True).close()


def test_a_failed_write_is_raised(tmp_path: Path) -> None:
    class FullDisk(Files):
        def write(self, descriptor: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    with AnswerStore(Folder(tmp_path, FullDisk())) as store, pytest.raises(StorageError, match="No space left"):
        store.use(FakeJudge())


@pytest.mark.parametrize("failing", ["read", "write"])
def test_a_file_whose_last_line_cannot_be_ended_is_closed(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def fail(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    class RecordingFiles(Files):
        def open_append(self, path: Path, at: int | None = None) -> int:
            opened.append(super().open_append(path, at))
            return opened[-1]

        def close(self, descriptor: int) -> None:
            opened.remove(descriptor)
            super().close(descriptor)

    if failing == "read":
        monkeypatch.setattr("rwkvbatch.results.folder.file_ends_a_line", fail)
    monkeypatch.setattr(RecordingFiles, "write", fail)
    (tmp_path / "kept.jsonl").write_bytes(b"torn")
    with pytest.raises(OSError, match="No space left"):
        Folder(tmp_path, RecordingFiles()).append_lines("kept.jsonl", [b"{}\n"])
    assert opened == []


def test_answers_are_flushed_every_64_lines_and_at_the_end(tmp_path: Path) -> None:
    synced: list[int] = []

    class CountingFiles(Files):
        num_written = 0

        def write(self, descriptor: int, data: bytes) -> int:
            self.num_written += 1
            return super().write(descriptor, data)

        def sync(self, descriptor: int) -> None:
            synced.append(self.num_written)
            super().sync(descriptor)

    files = CountingFiles()
    with AnswerStore(Folder(tmp_path, files), clock=lambda: 0.0) as store:
        store.use(FakeJudge())
        for key in KEYS[:200]:
            store.add(key, JudgeAnswer(0.5))
    assert synced == [64, 128, 192, 201]


def test_the_oldest_unused_answers_beyond_a_limit_are_dropped(tmp_path: Path) -> None:
    store_answers(tmp_path, 30, FakeJudge(version=2))
    digest = store_answers(tmp_path, 40)
    with AnswerStore(Folder(tmp_path)) as store:
        store.use(FakeJudge())
        store.drop_unused(set(KEYS[:10]), most=30)
    assert stored_probabilities(tmp_path, 40) == [0.25] * 40  # 60 unused lines are allowed
    with AnswerStore(Folder(tmp_path)) as store:
        store.use(FakeJudge())
        store.drop_unused(set(KEYS[:10]), most=20)
    assert stored_probabilities(tmp_path, 40) == [0.25] * 10 + [None] * 10 + [0.25] * 20
    lines = (tmp_path / VERDICTS_NAME).read_bytes().splitlines()
    assert len(lines) == 1 + 30
    assert json.loads(lines[0])["judge"] == digest
