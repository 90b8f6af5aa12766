"""Names of `judges.answers` in earlier development versions."""

from rwkvbatch.judges.answers import JudgeAnswer as Opinion
from rwkvbatch.judges.answers import JudgeAnswers as Opinions
from rwkvbatch.judges.answers import MemoryRecord, digest_of

__all__ = ("MemoryRecord", "Opinion", "Opinions", "digest_of")
