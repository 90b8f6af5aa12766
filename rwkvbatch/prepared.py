"""`PromptBuilder`: encodes prompts and conversations for engine requests, for the library and the server."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from rwkvbatch.arguments import ITERABLE, TEXT, Kind, check_argument, either
from rwkvbatch.config import Prompting, SamplingParams, ThinkMode, TurnEnd
from rwkvbatch.engine.request import END_OF_TEXT, NoiseKey, Request
from rwkvbatch.errors import ArgumentError, InputError, UsageError, shown_value
from rwkvbatch.model.base import ModelSpec, check_tokens
from rwkvbatch.prompt.segments import PromptTemplate
from rwkvbatch.prompt.templates import load_template
from rwkvbatch.prompt.tokenizer import Tokenizer

Prompt = str | Sequence[int]
"""Text, or token ids."""

Message = Mapping[str, str]
"""`{"role": "system", "user" or "assistant", "content": text}`."""


PROMPTS = Kind("text, token ids, or a list of them", either(TEXT, ITERABLE).accepts)
CONVERSATIONS = Kind(
    "a list of messages, or a list of such lists",
    ITERABLE.accepts,
    '[{"role": "user", "content": TEXT}]; generate continues a text as it is',
)
PROMPT_OR_MESSAGES = Kind(
    "text, token ids, or a list of messages",
    lambda value: TEXT.accepts(value) or (ITERABLE.accepts(value) and hasattr(value, "__getitem__")),
)
_PAIR = Kind(
    "a prompt and its continuation",
    lambda value: isinstance(value, tuple | list) and len(cast("Sequence[object]", value)) == 2,
)
_MESSAGES = Kind("a list of messages", lambda value: ITERABLE.accepts(value) and hasattr(value, "__len__"))


@dataclass
class _Turn:
    """A user message with the system message before it and the reply after it, as far as there are such messages."""

    system: str | None = None
    user: str | None = None
    assistant: str | None = None


def _turns_of(messages: Sequence[Any], name: str) -> tuple[list[_Turn], str | None]:
    """The turns of a conversation, of which the last one has no reply, and the beginning of that reply, if it is given.

    Raises:
        UsageError: a message is no message, or there is no user message to reply to.
    """
    turns = [_Turn()]
    for number, message in enumerate(messages):
        match message:
            case {"role": "system" | "user" | "assistant" as role, "content": str(content)} if len(message) == 2:
                if turns[-1].assistant is not None and role != "assistant":
                    turns.append(_Turn())
                earlier: str | None = getattr(turns[-1], role)
                setattr(turns[-1], role, content if earlier is None else f"{earlier}\n{content}")
            case _:
                problem = "must be a role (system, user, assistant) and a content, two texts"
                raise UsageError(f"{name}, message {number}: {problem}; got {message!r:.80}")
    prefix, turns[-1].assistant = turns[-1].assistant, None
    if turns[-1].user is None:
        found = ", ".join(message["role"] for message in messages)[:80] or "none"
        raise UsageError(
            f"{name}: must have a user message to reply to, or whose reply the last message begins; got {found}",
            hint="prelude= gives text before the first message",
        )
    return turns, prefix if prefix and prefix.strip() else None


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt or a conversation as tokens.

    Attributes:
        name: the prompt's name in error messages.
        text: the text; None for a prompt of token ids.
        template: the template of a conversation; None for a prompt.
        bos: whether token 0 was added at the beginning of `tokens`.
        is_continued: whether the reply continues the last message, which is then not a part of the reply's text.
    """

    name: str
    text: str | None
    tokens: tuple[int, ...]
    template: PromptTemplate | None = None
    bos: bool = False
    is_continued: bool = False

    @property
    def reply_start(self) -> str:
        """The beginning of the reply's text that is in the prompt."""
        return "" if self.template is None or self.is_continued else self.template.reply_start

    def request(self, params: SamplingParams, root: int, num_top: int = 0) -> Request:
        """The engine request of the first reply. Randomness is keyed by the seed and the tokens.

        Args:
            num_top: number of the likeliest tokens at each position in the details of the reply; 0 for no details.
        """
        content = hashlib.blake2b(" ".join(map(str, self.tokens)).encode(), digest_size=16).hexdigest()
        request = Request.reply(self.tokens, params, NoiseKey(params.seed, content), self.template, root=root)
        return replace(request, num_top=num_top) if num_top else request

    def shown(self, text: str) -> str:
        """A reply's text for display: in a conversation stripped, after the part of the reply in the prompt.

        A text that continues a message keeps the white space at its beginning.
        """
        if self.is_continued:
            return text.rstrip()
        return text if self.template is None else self.template.shown_reply(text)

    def stripper(self) -> TextStripper | None:
        """Makes the text that `shown` returns of pieces, after `reply_start`; None if it is the text as it is."""
        return None if self.template is None else TextStripper(has_begun=self.is_continued)


def as_list(value: Iterable[Any]) -> tuple[list[Any], bool]:
    """Prompts or conversations as a list, and whether `value` is a single one."""
    if isinstance(value, str):
        return [value], True
    items = list(value)
    first = items[0] if items else None
    # A token id may be a scalar of numpy or torch. Their arrays have `__index__` too, but `ndim` > 0.
    is_token = hasattr(first, "__index__") and getattr(first, "ndim", 0) == 0
    is_single = is_token or isinstance(first, Mapping)
    return ([items], True) if is_single else (items, False)


def checked_pair(pair: object) -> tuple[Prompt, Prompt]:
    check_argument("pairs: each", pair, _PAIR)
    prompt, continuation = cast("Sequence[Prompt]", pair)
    return prompt, continuation


def _token_id(value: Any) -> int:
    """A token id; raises `TypeError` for everything but a whole number. A truth value is none."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


class PromptBuilder:
    """Encodes prompts and conversations for one model."""

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self.template = lru_cache(maxsize=256)(self._load_template)

    def _load_template(
        self, think: ThinkMode, turn_end: TurnEnd, reply_prefix: str, template: str | None
    ) -> PromptTemplate:
        values = {"think": think, "turn_end": turn_end, "reply_prefix": reply_prefix, "template": template}
        return load_template(Prompting.parse(values), self._spec.weights_sha256)

    def prompt(self, prompt: Prompt, name: str, bos: bool = False) -> PreparedPrompt:
        """Encode a text, or check token ids; `bos` puts token 0 before them.

        Raises:
            UsageError: no tokens, or a token outside the vocabulary.
            InputError: the text has an unpaired surrogate.
        """
        begin = (END_OF_TEXT,) if bos else ()
        if isinstance(prompt, str):
            prepared = PreparedPrompt(name, prompt, (*begin, *self._encode([prompt], name)), bos=bos)
        else:
            if isinstance(prompt, bytes | bytearray):
                raise UsageError(
                    f"{name}: must be text or token ids, got {prompt!r:.80}", hint="decode() makes it text"
                )
            try:
                prepared = PreparedPrompt(name, None, (*begin, *map(_token_id, prompt)), bos=bos)
                check_tokens(prepared.tokens, self._spec.vocab_size)
            except (TypeError, ValueError) as error:
                found = str(error) if isinstance(error, ArgumentError) else f"got {shown_value(prompt)}"
                raise UsageError(f"{name}: must be text or token ids: {found}") from None
        if not prepared.tokens:
            raise UsageError(f"{name}: must have at least one token, got none", hint="bos=True reads token 0 first")
        return prepared

    def conversation(
        self, messages: Sequence[Message], template: PromptTemplate, prelude: str | None, name: str, bos: bool
    ) -> PreparedPrompt:
        """Encode a conversation with `template`, up to the reply to its last user message.

        Messages of one role in a row are one message, on lines of their own. A system message that is not the first
        message is read before the user message that it belongs to or precedes. An assistant message at the end is the
        beginning of the reply.

        Raises:
            UsageError: no user message, or messages that the template cannot write.
            InputError: as `prompt`.
        """
        check_argument(name, messages, _MESSAGES)
        turns, prefix = _turns_of(messages, name)
        first, *others = turns
        greeting = None if first.user is not None else first.assistant
        segments = [template.opening(first.system, prelude, greeting)]
        if prefix is not None:
            template = template.continuing(prefix)
        for turn in turns if greeting is None else others:
            if turn.system is not None and turn is not first:
                segments.append(template.system(turn.system))
            if turn.user is None:
                segments.append(template.greeting(turn.assistant or ""))
            elif turn.assistant is None:
                segments.append(template.turn(turn.user))
            else:
                segments += [template.past_turn(turn.user), template.reply(turn.assistant)]
        begin = (END_OF_TEXT,) if bos else ()
        tokens = (*begin, *self._encode(segments, name))
        return PreparedPrompt(name, "".join(segments), tokens, template, bos, is_continued=prefix is not None)

    def _encode(self, segments: Iterable[str], name: str) -> tuple[int, ...]:
        # Each segment is encoded separately, as in runs, so that a history need not be encoded again.
        try:
            return tuple(token for segment in segments for token in self._tokenizer.encode(segment))
        except InputError as error:
            error.add_origin(name)
            raise


class TextStripper:
    """Strips white space at both ends of a text that arrives in pieces; `has_begun`: at its end only."""

    def __init__(self, *, has_begun: bool = False) -> None:
        self._has_begun = has_begun
        self._held = ""

    def push(self, piece: str) -> str:
        """Add a piece; returns the new part of the stripped text."""
        text = self._held + (piece if self._has_begun else piece.lstrip())
        shown = text.rstrip()
        self._has_begun = self._has_begun or bool(shown)
        self._held = text[len(shown) :]
        return shown
