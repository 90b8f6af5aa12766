"""RWKV's official prompt template, bundled template files, and preludes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from rwkvbatch.config import Prompting, ReplyPrompt
from rwkvbatch.errors import UsageError
from rwkvbatch.files import read_text
from rwkvbatch.prompt.segments import BLANK_LINE, THINK_REQUESTS, PromptTemplate, clean

AnyReplyPrompt = TypeVar("AnyReplyPrompt", bound=ReplyPrompt)

BUNDLED_SHA256 = "390e982f9c02ee1a2bf1b8dec070c2490e44c74f8d325faa1232e657609e6f1a"
"""The hash of the bundled model's file. The model was trained to end a reply without thinking with a blank line."""


BUNDLED_TENSORS_SHA256 = "dead8fb5f1e0a3c9c5ee3d98e2d248defa6dd6cf513923e3860ce6f3bc932867"
"""The hash of the bundled model's tensors in memory, see `model/weights/state_dict.py`."""


def with_turn_end(settings: AnyReplyPrompt, weights_sha256: str) -> AnyReplyPrompt:
    """`settings` with `turn_end` `auto` replaced: by `blank-line` if the model was trained so, else by `next-role`."""
    if settings.turn_end != "auto":
        return settings
    is_bundled = weights_sha256 in (BUNDLED_SHA256, BUNDLED_TENSORS_SHA256)
    is_blank_line = is_bundled and settings.think == "off"
    return settings.replace(turn_end="blank-line" if is_blank_line else "next-role")


PRELUDES: Mapping[str, str] = {
    "api-demo-chat": (
        "User: hi\n\n"
        "Assistant: Hi. I am your assistant and I will provide expert full response in full details. "
        "Please feel free to ask any question and I will always answer it.\n\n"
    )
}
"""The initial exchanges that `--prelude` accepts by name."""

MAX_PRELUDE_BYTES = 1_000_000


NO_PRELUDE = "none"
"""The name of the absence of an initial exchange, also where there is one by default."""


def load_prelude(name_or_path: str | None) -> str | None:
    """The text of a prelude: one of `PRELUDES`, or the content of a file; None for None and `NO_PRELUDE`.

    Raises:
        UsageError: the file cannot be read as UTF-8 text, or is larger than `MAX_PRELUDE_BYTES`.
    """
    if name_or_path is None or name_or_path == NO_PRELUDE:
        return None
    if name_or_path in PRELUDES:
        return PRELUDES[name_or_path]
    try:
        return read_text(name_or_path, MAX_PRELUDE_BYTES)
    except ValueError as error:
        hint = f"name a text file, or one of {', '.join((*PRELUDES, NO_PRELUDE))}"
        raise UsageError(f"--prelude {name_or_path}: {error}", hint=hint) from None


class OfficialTemplate(PromptTemplate):
    """RWKV's own format: `System: s`, `User: x` and `Assistant: y`, each followed by a blank line."""

    def __init__(self, settings: ReplyPrompt | None = None) -> None:
        super().__init__(settings or ReplyPrompt(), BLANK_LINE, ("\nUser:",))

    def _system(self, text: str) -> str:
        return f"System: {text}\n\n"

    def greeting(self, text: str) -> str:
        return f"Assistant:{self.reply(text)}"

    def turn(self, user: str) -> str:
        return f"User: {clean(user)}{THINK_REQUESTS.get(self.think, '')}\n\nAssistant:{self.reply_start}"

    def past_turn(self, user: str) -> str:
        return f"User: {clean(user)}\n\nAssistant:"

    def reply(self, text: str) -> str:
        return f" {self._clean_reply(text)}\n\n"


TEMPLATES: Mapping[str, str] = {name: str(Path(__file__).with_name(f"{name}.jinja")) for name in ("bot", "markdown")}
"""The paths of the bundled template files, by the names that `--template` accepts for them."""


def template_path(name_or_path: str) -> str:
    """The path of a template file: that of one of `TEMPLATES`, or `name_or_path` itself."""
    return TEMPLATES.get(name_or_path, name_or_path)


def load_template(prompting: Prompting, weights_sha256: str = "") -> PromptTemplate:
    """The template that `prompting` names.

    Args:
        weights_sha256: the model's hash, by which `with_turn_end` resolves `turn_end` `auto`.

    Raises:
        TemplateError: the template file cannot be read, or is not a prompt template (file and line).
        UsageError: a reply prefix together with a thinking mode in which the reply begins with thinking.
    """
    prompting = with_turn_end(prompting, weights_sha256)
    if prompting.template is None:
        return OfficialTemplate(prompting)
    from rwkvbatch.prompt.jinja import read_template

    return read_template(template_path(prompting.template), prompting)
