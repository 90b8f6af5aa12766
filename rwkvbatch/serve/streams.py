"""Makes the server-sent events of a streamed response, with the chunk objects of OpenAI's two interfaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from rwkvbatch.engine.request import TokenDetails
from rwkvbatch.serve.answers import TextOffsets
from rwkvbatch.serve.batcher import Flight
from rwkvbatch.serve.messages import call_start, text_around_calls
from rwkvbatch.serve.replies import Choice, Job

END = b"data: [DONE]\n\n"
_PLACEHOLDER = "\ue000text\ue000"
"""Placeholder of the text in the template of a choice's chunks."""


def event(content: Mapping[str, Any]) -> bytes:
    """A server-sent event of one JSON object."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


class ReplyStream:
    """The events of a response, made as its requests progress.

    Attributes:
        is_over: whether the last event has been returned.
    """

    def __init__(self, job: Job, flight: Flight) -> None:
        self.is_over = False
        self._job = job
        self._flight = flight
        self._unfinished = [_ChoiceStream(job, choice) for choice in job.choices]

    def take(self) -> bytes:
        """The events of all updates since the last call; may be empty.

        Raises:
            NonFiniteLogitsError: see `Job.body`.
        """
        events = [data for choice in self._unfinished for data in choice.take(self._flight)]
        self._unfinished = [choice for choice in self._unfinished if not choice.is_over]
        if not self._unfinished:
            self.is_over = True
            if self._job.parsed.fields.stream_options.include_usage:
                events.append(event(self._job.head.object([], usage=self._job.usage(self._flight.results))))
            events.append(END)
        return b"".join(events)


class _ChoiceStream:
    """The events of one choice. A chunk has the log-probabilities of the tokens since the chunk before it."""

    def __init__(self, job: Job, choice: Choice) -> None:
        self.is_over = False
        self._job = job
        self._choice = choice
        # The text of a chat reply is stripped as it arrives.
        self._stripper = choice.prompt.stripper()
        self._offsets = TextOffsets(job.names)
        self._details: list[TokenDetails | int] = []
        self._has_begun = False
        self._seen, self._sent, self._held = "", 0, ""
        # Chunks without log-probabilities differ only in their text.
        self._before, _, self._after = event(self._chunk(_PLACEHOLDER)).partition(orjson.dumps(_PLACEHOLDER))

    def take(self, flight: Flight) -> list[bytes]:
        """The events of the updates in `flight`."""
        choice, results = self._choice, flight.results
        if choice.score_at is not None and results[choice.score_at] is None:
            return []  # the echoed prompt precedes the reply, and needs its log-probabilities
        events = [] if self._has_begun else self._begin(flight)
        if choice.reply_at is not None:
            self._details += flight.take_details(choice.reply_at)
            events += self._text(flight.take_text(choice.reply_at))
        if choice.is_over(results):
            self.is_over = True
            calls = self._job.calls(choice, results)
            if calls:
                if after := text_around_calls(self._seen)[1]:
                    events.append(event(self._chunk(after, self._logprobs())))
                events.append(event(self._calls_chunk(calls)))
            elif self._held and (text := self._job.tools.without_call(self._seen)[self._sent :]):
                events.append(event(self._chunk(text, self._logprobs())))
            end = self._job.end(choice, results, has_calls=bool(calls))
            events.append(event(self._chunk("", self._logprobs(), end)))
        return events

    def _begin(self, flight: Flight) -> list[bytes]:
        self._has_begun = True
        self._details += self._job.prompt_details(self._choice, self._choice.score(flight.results))
        if self._stripper is None:
            return self._text(self._job.echo(self._choice))
        first = event(self._chunk("", role="assistant"))
        return [first, *self._text(self._choice.prompt.reply_start)]

    def _text(self, text: str) -> list[bytes]:
        """The event of a piece of text; none while the text may still be stripped."""
        if self._stripper is not None:
            text = self._stripper.push(text)
        if self._job.tools.names:
            # Text that may be a call is held until the reply is complete.
            self._seen += text
            shown = self._seen[: call_start(self._seen)].rstrip()
            text, self._sent = shown[self._sent :], max(self._sent, len(shown))
            self._held = self._seen[self._sent :]
        if not text:
            return []
        if self._job.parsed.num_top is None:
            return [self._before + orjson.dumps(text) + self._after]
        return [event(self._chunk(text, self._logprobs()))]

    def _logprobs(self) -> dict[str, Any] | None:
        details, self._details = self._details, []
        return self._job.logprobs(self._offsets, details)

    def _calls_chunk(self, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        chunk = self._chunk("", self._logprobs())
        chunk["choices"][0]["delta"] = {"tool_calls": [{"index": n, **call} for n, call in enumerate(calls)]}
        return chunk

    def _chunk(
        self,
        text: str,
        logprobs: Mapping[str, Any] | None = None,
        end: Mapping[str, Any] | None = None,
        role: str | None = None,
    ) -> dict[str, Any]:
        delta = {"content": text} if text or role else {}
        if role:
            delta = {"role": role, **delta}
        part = {"delta": delta} if self._job.is_chat else {"text": text}
        choice = {"index": self._choice.index, **part, "logprobs": logprobs, **(end or {"finish_reason": None})}
        with_usage = {"usage": None} if self._job.parsed.fields.stream_options.include_usage else {}
        return self._job.head.object([choice], **with_usage)
