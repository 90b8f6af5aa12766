"""Hostile files for readers of results, benchmarks and chats, and of bodies and streams of HTTP."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.hostile.mutations import of_bytes, of_cells, of_json, of_json_lines
from tests.hostile.reader import Reader


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def lm_eval_results() -> list[bytes]:
    record = {
        "doc": {"question": "q"},
        "target": "A",
        "arguments": {"gen_args_0": {"arg_0": "context"}},
        "resps": [["A"]],
        "filtered_resps": ["A"],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
    }
    return [lines(*(record | {"doc_id": n, "doc_hash": f"{n:064x}", "acc": n % 2, "acc_norm": 1.0} for n in range(4)))]


def inspect_logs() -> list[bytes]:
    samples = [
        {"id": n, "epoch": 1, "input": "q", "target": "t", "scores": {"match": {"value": "CIPN"[n]}}, "error": None}
        for n in range(4)
    ]
    log = {"version": 2, "status": "success", "eval": {"model": "m", "task": "t"}, "samples": samples}
    return [json.dumps(log).encode()]


def promptfoo_results() -> list[bytes]:
    common = {"promptIdx": 0, "score": 1, "success": True, "failureReason": 0, "response": {"output": "r"}}
    results = [
        {**common, "testIdx": n, "provider": {"id": provider}, "vars": {"q": f"q{n}"}, "namedScores": {}}
        for n in range(3)
        for provider in "ab"
    ]
    return [json.dumps({"evalId": "e", "results": {"version": 3, "results": results}}).encode()]


def tables() -> list[bytes]:
    header = b"id,variant,repeat,turn,tags,score\n"
    return [header + b"".join(f"q{n},{v},0,0,x;y,{n % 2}\n".encode() for n in range(4) for v in "ab")]


def parquet_tables() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files: list[bytes] = []
    for compression in ("none", "snappy"):
        file = io.BytesIO()
        pq.write_table(pa.table({"id": ["a", "b", "c"], "score": [0.0, 1.0, 0.5]}), file, compression=compression)
        files.append(file.getvalue())
    return files


def read_results(path: Path) -> None:
    from rwkvbatch.comparison import load

    load(path)


def benchmark_files() -> list[bytes]:
    from tests.script.benchmark_records import RECORDS

    return [lines(record) for record in RECORDS.values()]


def benchmark_tables() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.script.benchmark_records import LAMBADA, MMLU

    files: list[bytes] = []
    for record in (LAMBADA, MMLU):
        file = io.BytesIO()
        pq.write_table(pa.table({name: [value] for name, value in record.items()}), file)
        files.append(file.getvalue())
    return files


def read_benchmark(path: Path) -> None:
    """Import the file as each benchmark; if all refuse it, raise the first refusal."""
    from rwkvbatch.errors import ScriptError
    from rwkvbatch.script.benchmark_import import import_benchmark
    from rwkvbatch.script.benchmarks import BENCHMARKS
    from rwkvbatch.script.reader import read_scripts

    refused: ScriptError | None = None
    for name in BENCHMARKS:
        out = path.with_name("out.jsonl")
        out.unlink(missing_ok=True)
        try:
            import_benchmark(name, [str(path)], out)
        except ScriptError as error:
            refused = refused or error
        else:
            read_scripts([str(out)])
            return
    assert refused is not None
    raise refused


def chats() -> list[bytes]:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    body = {"model": "m", "messages": messages, "temperature": 0.5, "max_tokens": 4, "seed": 1}
    checked = {"messages": [{"role": "user", "content": "a", "expect": [{"contains": "b"}]}], "params": {"top_k": 3}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    return [
        lines({"id": "1", "messages": messages, "source": "x"}, {"messages": parts, "prompt_id": 3}),
        lines({"id": "1", "conversations": turns}, {"conversation_id": "2", "conversation": messages, "turn": 1}),
        lines({"question_id": 81, "category": "math", "turns": ["a", "b"], "reference": ["c", ""]}),
        lines({"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": body}, checked),
        lines({"id": "t", "text": "a"}, {"prompt": "a", "continuation": " b"}, {"prompt": "a", "choices": ["b", "c"]}),
        lines({"messages": messages, "tools": [tool]}),
    ]


def chat_arrays() -> list[bytes]:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return [json.dumps([{"id": "1", "messages": messages}, {"id": "2", "messages": messages, "tags": ["x"]}]).encode()]


def read_chats(path: Path) -> None:
    """Read it, and look for what is probably a mistake in it."""
    from rwkvbatch.config import ScriptLimits
    from rwkvbatch.script.lint import lint
    from rwkvbatch.script.reader import read_scripts

    for warning in lint(read_scripts([str(path)], limits=ScriptLimits(max_turns=50)).conversations):
        assert str(warning).isprintable()


def event(**values: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **values}]}).encode() + b"\n\n"


def streams() -> list[bytes]:
    logprobs = {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, None],
        "top_logprobs": [{"a": -0.1}],
        "text_offset": [0, 1],
    }
    chat = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "id": 5, "top_logprobs": []}]}
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}}\n\n'
    done = b"data: [DONE]\n\n"
    return [
        event(text="a", finish_reason=None) + event(text="b", finish_reason="stop", logprobs=logprobs) + usage + done,
        event(delta={"content": "a"}) + event(delta={}, finish_reason="length", logprobs=chat) + done,
        b": comment\r\nevent: x\r\ndata: {\r\ndata: }\r\n\r\n"
        + event(text="a", finish_reason="eos").replace(b"\n", b"\r\n"),
    ]


def of_stream(data: bytes, generator: random.Random) -> bytes:
    """A change of one event's JSON, where it is JSON."""
    parts = data.split(b"\n")
    at = generator.choice([at for at, part in enumerate(parts) if part.startswith(b"data: {")] or [0])
    try:
        parts[at] = b"data: " + of_json(parts[at][6:], generator)
    except ValueError:
        return of_bytes(data, generator)
    return b"\n".join(parts)


def read_stream(path: Path) -> None:
    """An answer of a server, in pieces of seven bytes."""
    from rwkvbatch.endpoint.client import _events, _TransientError
    from rwkvbatch.endpoint.protocol import read_answer
    from rwkvbatch.errors import EndpointError

    data = path.read_bytes()

    def pieces() -> Iterator[bytes]:
        yield from (data[at : at + 7] for at in range(0, len(data), 7))

    try:
        read_answer(_events(pieces())).end(["x"])
    except _TransientError as error:  # the client repeats the request, and then raises this error
        raise EndpointError(str(error)) from None


def requests() -> list[bytes]:
    chat = {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 4,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "presence_penalty": 0.1,
        "seed": 3,
        "user": "u",
    }
    plain = {"model": "m", "prompt": ["a", "b"], "max_tokens": 0, "echo": True, "logprobs": 1, "top_k": 5, "min_p": 0.1}
    return [json.dumps(chat).encode(), json.dumps(plain).encode(), json.dumps({**plain, "prompt": [[5, 6]]}).encode()]


@cache
def served() -> Any:
    """What requests are prepared with: a server's facts, the builder of prompts, and the names of tokens."""
    from rwkvbatch.config import CellSettings
    from rwkvbatch.prepared import PromptBuilder
    from rwkvbatch.prompt.tokenizer import world_tokenizer
    from rwkvbatch.serve.answers import TokenNames
    from rwkvbatch.serve.protocol import Limits, ServerSettings
    from rwkvbatch.serve.replies import Served
    from tests.hostile.weights import VOCAB_SIZE, tiny_spec

    tokenizer, limits = world_tokenizer(VOCAB_SIZE), Limits(1000, 1000)
    facts = Served(tiny_spec(), tokenizer, "m", 0, ServerSettings(CellSettings()), None, {"none": 0}, 0, 1, limits, "f")
    return facts, PromptBuilder(tiny_spec(), tokenizer), TokenNames(tokenizer)


def read_request(path: Path) -> None:
    from rwkvbatch.serve import replies
    from rwkvbatch.serve.fields import ChatFields, CompletionFields, RequestError

    body = path.read_bytes()
    refused: list[RequestError] = []
    for kind in (ChatFields, CompletionFields):
        try:
            replies.prepare(body, kind, *served())
        except RequestError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]


_DEEP: Mapping[str, bytes] = {"empty": b"", "deep": b"[" * 100_000, "not text": b"\xff\xfe\x00", "nul": bytes(100)}
_COLUMNS = ("id", "score", "variant", "repeat", "turn", "tags", '"', "1e9", "NaN", "-1")


_RESULTS: Mapping[str, bytes] = {
    **_DEEP,
    "scores": b'{"eval": {}, "samples": [{"id": 1, "scores": true}]}',
    "not a number": b"id,score,repeat,turn\na,1,NaN,inf\n",
    "huge": b"id,score,repeat,turn\na,1,1e308,0\n",
    "prompt": b'{"results": {"results": [{"promptIdx": [], "score": 1, "vars": {}}]}}',
    "huge epoch": b'{"eval": {}, "samples": [{"id": 1, "epoch": 9223372036854775808}]}',
}


def _results(file: str, seeds: Callable[[], list[bytes]], changes: list[Any], *words: str) -> Reader:
    return Reader(file, read_results, seeds, changes, _RESULTS, words=words)


READERS: Mapping[str, Reader] = {
    "lm-eval": _results(
        "samples_x_2024-01-02T03-04-05.678.jsonl", lm_eval_results, [of_json_lines, of_bytes],
        '"doc_id"', '"metrics"', '"filter"', '"doc_hash"', '"acc"',
    ),
    "inspect": _results("log.json", inspect_logs, [of_json, of_bytes], '"samples"', '"scores"', '"epoch"', '"value"'),
    "promptfoo": _results(
        "results.json", promptfoo_results, [of_json, of_bytes], '"results"', '"testIdx"', '"provider"', '"score"'
    ),
    "csv": _results("table.csv", tables, [of_cells, of_bytes], *_COLUMNS),
    "parquet": _results("table.parquet", parquet_tables, [of_bytes], "PAR1", *_COLUMNS),
    "benchmark": Reader(
        "in.jsonl", read_benchmark, benchmark_files, [of_json_lines, of_bytes], _DEEP,
        words=('"question"', '"choices"', '"answer"', '"endings"', '"label"', '"turns"', '"text"', '"answerKey"'),
    ),
    "benchmark-parquet": Reader(
        "in.parquet", read_benchmark, benchmark_tables, [of_bytes], _DEEP, words=("PAR1", "text", "question", "choices")
    ),
    "chats": Reader(
        "chats.jsonl", read_chats, chats, [of_json_lines, of_bytes], _DEEP,
        words=('"messages"', '"conversations"', '"role"', '"content"', '"from"', '"value"', '"body"', '"tools"'),
    ),
    "chat-array": Reader("chats.json", read_chats, chat_arrays, [of_json, of_bytes], _DEEP, words=("[", "},", "]")),
    "stream": Reader(
        "answer.txt", read_stream, streams, [of_stream, of_bytes], _DEEP, has_file=False,
        words=("data: ", "[DONE]", '"choices"', '"text"', '"delta"', '"logprobs"', '"finish_reason"', "\r\n\r\n"),
    ),
    "request": Reader(
        "body.json", read_request, requests, [of_json, of_bytes], {**_DEEP, "name": b'{"a\\nb": 1, "model": "m"}'},
        has_file=False,
        words=('"messages"', '"prompt"', '"stop"', '"max_tokens"', '"logprobs"', '"stream_options"', '"n"', '"echo"'),
    ),
}  # fmt: skip
