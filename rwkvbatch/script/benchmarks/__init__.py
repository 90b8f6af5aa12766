"""Published benchmarks: readers of their files, and the prompts of their sources as lines of a script.

`BENCHMARKS` declares each: its files, its prompts with their sources, and what measures it. The command's help and the
table of `docs/scripts.md` are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping

from rwkvbatch.script.benchmarks import chinese, letters, likelihood, open_answers
from rwkvbatch.script.benchmarks.question import BadRecordError, Benchmark, Question, Style
from rwkvbatch.script.tables import TableForm

__all__ = ["BENCHMARKS", "NOT_IMPORTED", "BadRecordError", "Benchmark", "Question", "Style"]


_CHAT_LETTER = "a message that asks for a last line `Answer: LETTER` (openai/simple-evals `common.py`)"
_BOXED = "the problem and a request for a `\\boxed{}` (QwenLM/Qwen2.5-Math `evaluation/utils.py`, `deepseek-math`)"

BENCHMARKS: Mapping[str, Benchmark] = {
    "lambada": Benchmark(
        "LAMBADA",
        "lines with `text` (OpenAI's `lambada_test.jsonl`, EleutherAI/lambada_openai)",
        likelihood.read_lambada,
        {
            "plain": Style(
                likelihood.write_lambada,
                "the last word after all others (RWKV-LM, lm-evaluation-harness `lambada_openai.yaml`)",
                "`text_perplexity`, `accuracy`",
            )
        },
    ),
    "mmlu": Benchmark(
        "MMLU",
        "hendrycks/test (`SUBJECT_test.csv`), cais/mmlu",
        letters.read_mmlu,
        {
            "rwkv": Style(
                letters.write_mmlu_rwkv,
                "the prompt of RWKV-LM's `rwkv_mmlu_eval.py`, ` A` to ` D` after it",
                "`choice`",
            ),
            "plain": Style(
                letters.write_mmlu_plain, "the prompt of hendrycks/test `evaluate.py`", "`choice`", shots=True
            ),
            "chat": Style(letters.write_options_chat, _CHAT_LETTER, "`letter`"),
        },
        TableForm(header=frozenset({"question", "answer"})),
    ),
    "mmlu-pro": Benchmark(
        "MMLU-Pro",
        "TIGER-Lab/MMLU-Pro",
        letters.read_mmlu_pro,
        {
            "chat": Style(
                letters.write_mmlu_pro,
                "up to ten options, and to think step by step; examples have the reasoning of the `validation` file "
                "(lm-evaluation-harness `mmlu_pro`)",
                "`letter`",
                shots=True,
            ),
            "plain": Style(
                letters.write_mmlu_pro_plain, "the same as plain text, until `Question:`", "`letter`", shots=True
            ),
        },
    ),
    "gpqa": Benchmark(
        "GPQA",
        "`gpqa_diamond.csv`, `gpqa_main.csv`, `gpqa_extended.csv` (Idavidrein/gpqa)",
        letters.read_gpqa,
        {
            "plain": Style(
                letters.write_gpqa_plain,
                "the options, and ` (A)` to ` (D)` after `Answer:` (lm-evaluation-harness `gpqa`, `zeroshot` or "
                "`n_shot`)",
                "`choice`",
                shots=True,
            ),
            "chat": Style(letters.write_options_chat, _CHAT_LETTER, "`letter`"),
        },
    ),
    "ceval": Benchmark(
        "C-Eval",
        "`val/SUBJECT_val.csv`, ceval/ceval-exam",
        chinese.read_ceval,
        {
            "plain": Style(
                chinese.write_ceval,
                "subject and options in Chinese, ` A` to ` D` after `答案：` (lm-evaluation-harness `ceval-valid`)",
                "`choice`",
                shots=True,
            )
        },
    ),
    "cmmlu": Benchmark(
        "CMMLU",
        "`test/SUBJECT.csv`, haonan-li/cmmlu",
        chinese.read_cmmlu,
        {"plain": Style(chinese.write_cmmlu, "as for ceval (lm-evaluation-harness `cmmlu`)", "`choice`", shots=True)},
    ),
    "arc": Benchmark(
        "ARC",
        "AI2's `.jsonl` files, allenai/ai2_arc",
        likelihood.read_arc,
        {
            "plain": Style(
                likelihood.write_answer,
                "`Question: ...\\nAnswer:`, the options after it (lm-evaluation-harness `arc_easy.yaml`)",
                "`choice`",
                shots=True,
            ),
            "chat": Style(letters.write_options_chat, _CHAT_LETTER, "`letter`"),
        },
    ),
    "hellaswag": Benchmark(
        "HellaSwag",
        "rowanz/hellaswag, Rowan/hellaswag",
        likelihood.read_hellaswag,
        {
            "plain": Style(
                likelihood.write_continuation,
                "the endings after the context, cleaned as lm-evaluation-harness does (`hellaswag.yaml`, `utils.py`)",
                "`choice`",
                shots=True,
            )
        },
    ),
    "piqa": Benchmark(
        "PIQA",
        "`valid.jsonl` with `valid-labels.lst` next to it (ybisk/piqa), baber/piqa",
        likelihood.read_piqa,
        {
            "plain": Style(
                likelihood.write_answer,
                "`Question: ...\\nAnswer:`, the two solutions after it (lm-evaluation-harness `piqa.yaml`)",
                "`choice`",
                shots=True,
            )
        },
        TableForm(label="label"),
    ),
    "sciq": Benchmark(
        "SciQ",
        "AI2's `test.json`, allenai/sciq",
        likelihood.read_sciq,
        {
            "plain": Style(
                likelihood.write_sciq,
                "the passage (`support`), `Question: ...\\nAnswer:`, the answers after it (lm-evaluation-harness "
                "`sciq.yaml`)",
                "`choice`",
                shots=True,
            )
        },
    ),
    "openbookqa": Benchmark(
        "OpenBookQA",
        "AI2's `test.jsonl`, allenai/openbookqa",
        likelihood.read_openbookqa,
        {
            "plain": Style(
                likelihood.write_continuation,
                "the options after the beginning of the sentence (lm-evaluation-harness `openbookqa.yaml`)",
                "`choice`",
                shots=True,
            )
        },
    ),
    "truthfulqa": Benchmark(
        "TruthfulQA",
        "sylinrl/TruthfulQA `mc_task.json`, truthfulqa/truthful_qa (`multiple_choice`)",
        likelihood.read_truthfulqa,
        {
            "plain": Style(
                likelihood.write_truthfulqa,
                "six questions with answers and the question, the answers of MC1 after it (lm-evaluation-harness "
                "`truthfulqa_mc1.yaml`)",
                "`choice`",
            )
        },
    ),
    "boolq": Benchmark(
        "BoolQ",
        "Google's `dev.jsonl` (google/boolq), SuperGLUE's `val.jsonl` (aps/super_glue)",
        likelihood.read_boolq,
        {
            "plain": Style(
                likelihood.write_boolq,
                "the passage, `Question: ...?\\nAnswer:`, ` no` and ` yes` after it (lm-evaluation-harness "
                "`super_glue/boolq`)",
                "`choice`",
                shots=True,
            )
        },
    ),
    "copa": Benchmark(
        "COPA",
        "SuperGLUE's `val.jsonl` (aps/super_glue)",
        likelihood.read_copa,
        {
            "plain": Style(
                likelihood.write_continuation,
                "the premise with `because` or `therefore`, the two sentences after it (lm-evaluation-harness "
                "`super_glue/copa`)",
                "`choice`",
                shots=True,
            )
        },
    ),
    "winogrande": Benchmark(
        "WinoGrande",
        "AI2's `dev.jsonl`, allenai/winogrande",
        likelihood.read_winogrande,
        {
            "plain": Style(
                likelihood.write_blank,
                "the text after the blank, once for each filling of the blank (lm-evaluation-harness `winogrande`)",
                "`choice`",
                shots=True,
            )
        },
    ),
    "xwinograd": Benchmark(
        "XWinograd",
        "Muennighoff/xwinograd, a file for each language",
        likelihood.read_xwinograd,
        {
            "plain": Style(
                likelihood.write_blank, "as for winogrande (lm-evaluation-harness `xwinograd`)", "`choice`", shots=True
            )
        },
    ),
    "blimp": Benchmark(
        "BLiMP",
        "alexwarstadt/blimp (`data/UID.jsonl`), nyu-mll/blimp",
        likelihood.read_blimp,
        {
            "plain": Style(
                likelihood.write_continuation,
                "nothing: the two sentences are compared, each after token 0 and a space (lm-evaluation-harness "
                "`blimp`)",
                "`choice`",
            )
        },
    ),
    "gsm8k": Benchmark(
        "GSM8K",
        "openai/grade-school-math, openai/gsm8k",
        open_answers.read_gsm8k,
        {
            "chat": Style(
                open_answers.write_gsm8k,
                "the question; worked examples before it as in lm-evaluation-harness `gsm8k.yaml`",
                "`number`",
                shots=True,
            ),
            "plain": Style(
                open_answers.write_gsm8k_plain,
                "`Question: ...\\nAnswer:`, until `Question:` (lm-evaluation-harness `gsm8k.yaml`)",
                "`number`",
                shots=True,
            ),
        },
    ),
    "math": Benchmark(
        "MATH",
        "MATH-500 (openai/prm800k `math_splits/test.jsonl`, HuggingFaceH4/MATH-500); hendrycks/math (a `.json` file "
        "for each problem), EleutherAI/hendrycks_math",
        open_answers.read_math,
        {
            "chat": Style(open_answers.write_boxed(2048), _BOXED, "`math`"),
            "plain": Style(
                open_answers.write_math_plain,
                "`Problem: ...\\nAnswer:`, until `Problem:` (lm-evaluation-harness `hendrycks_math`)",
                "`math`",
                shots=True,
            ),
        },
    ),
    "aime": Benchmark(
        "AIME",
        "Maxwell-Jia/AIME_2024, HuggingFaceH4/aime_2024, math-ai/aime25, gneubig/aime-1983-2024 (CSV)",
        open_answers.read_aime,
        {
            "chat": Style(open_answers.write_boxed(32_768), "as for math", "`math`"),
            "plain": Style(
                open_answers.write_aime_plain,
                "`Question: ...\\nAnswer:`, until `Question:` (lm-evaluation-harness `aime.yaml`)",
                "`math`",
            ),
        },
    ),
    "triviaqa": Benchmark(
        "TriviaQA",
        "the original `*-dev.json`, mandarjoshi/trivia_qa (`rc.nocontext`, `unfiltered.nocontext`)",
        open_answers.read_triviaqa,
        {
            "chat": Style(
                open_answers.write_triviaqa,
                "`Question: ...?\\nAnswer:`, until a line end, full stop or comma (lm-evaluation-harness `triviaqa`); "
                "compared with all aliases as mandarjoshi90/triviaqa `triviaqa_evaluation.py` does",
                "`one_of`",
                shots=True,
            ),
            "plain": Style(open_answers.write_triviaqa_plain, "the same as plain text", "`one_of`", shots=True),
        },
        TableForm(inside="Data"),
    ),
    "simpleqa": Benchmark(
        "SimpleQA",
        "openai/simple-evals `simple_qa_test_set.csv`",
        open_answers.read_simpleqa,
        {
            "chat": Style(
                open_answers.write_simpleqa,
                "the question; a [judge](judges.md) compares the reply with the answer, by a rubric after that of "
                "`simpleqa_eval.py`, with two grades instead of three",
                "`judge`",
            )
        },
    ),
    "ifeval": Benchmark(
        "IFEval",
        "google-research `input_data.jsonl`, google/IFEval",
        open_answers.read_ifeval,
        {
            "chat": Style(
                open_answers.write_ifeval, "the prompt (google-research `instruction_following_eval`)", "`ifeval`"
            ),
            "plain": Style(
                open_answers.write_ifeval_plain, "the prompt (lm-evaluation-harness `ifeval.yaml`)", "`ifeval`"
            ),
        },
    ),
    "mt-bench": Benchmark(
        "MT-Bench",
        "FastChat `question.jsonl`",
        open_answers.read_mt_bench,
        {
            "chat": Style(
                open_answers.write_mt_bench,
                "the turns, at the temperature of the category (FastChat `common.py`)",
                "references, if any",
            )
        },
    ),
}
"""The benchmarks that can be imported, by name."""

_RUNS_CODE = "its checks run code that the model wrote, and this program runs none"

NOT_IMPORTED: Mapping[str, str] = {"humaneval": _RUNS_CODE, "mbpp": _RUNS_CODE}
"""Benchmarks that are not imported, and the reason."""
