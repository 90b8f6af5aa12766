"""Tasks of lm-evaluation-harness over a local file, of each kind of request."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

TASKS: Mapping[str, str] = {
    "words": """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' ' + text.split(' ')[-1]}}"
metric_list: [{metric: perplexity, aggregation: perplexity}, {metric: acc, aggregation: mean}]
""",
    "sums": """
output_type: multiple_choice
doc_to_text: "User: {{question}}\\n\\nAssistant:"
doc_to_target: "{{right}}"
doc_to_choice: "{{options}}"
metric_list: [{metric: acc, aggregation: mean}, {metric: acc_norm, aggregation: mean}]
""",
    "lengths": """
output_type: multiple_choice
doc_to_text: "{{text}}. Who am I?"
doc_to_target: 0
doc_to_choice: "{{['  ' ~ text.split(' ')[3] ~ '  ', 'Zoë Ünal', text]}}"
metric_list:
  - {metric: acc, aggregation: mean}
  - {metric: acc_norm, aggregation: mean}
  - {metric: acc_bytes, aggregation: mean}
""",
    "texts": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "replies": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[right]}}"
generation_kwargs: {until: ["\\n\\n", "."], max_gen_toks: 24}
metric_list: [{metric: exact_match, aggregation: mean}]
""",
}


def write_tasks(made: Path) -> Path:
    """The files of `TASKS` and their data in the folder `made`; each is named `own_NAME`."""
    choose = random.Random(3)
    lines: list[dict[str, Any]] = []
    for number in range(12):
        one, two = choose.randint(1, 9), choose.randint(1, 9)
        options = [str(one + two), str(one + two + 1), "a longer answer"]
        choose.shuffle(options)
        text = f"My name is {choose.choice(['Ada', 'Bob', 'Eve'])} and I have {one} boats and {two} hats {number}"
        right = options.index(str(one + two))
        lines.append({"question": f"What is {one} plus {two}?", "options": options, "right": right, "text": text})
    data = made / "data.jsonl"
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name, body in TASKS.items():
        files = json.dumps({"data_files": {"test": str(data), "train": str(data)}})
        head = (
            f"task: own_{name}\ndataset_path: json\ndataset_kwargs: {files}\ntest_split: test\nfewshot_split: train\n"
        )
        (made / f"{name}.yaml").write_text(head + body)
    return made


def evaluated(lm: Any, folder: Path, tasks: Sequence[str], **options: Any) -> dict[str, float]:
    """The metrics of each task, by `TASK METRIC`."""
    return {
        f"{task} {metric}": value
        for task, found in _evaluate(lm, folder, tasks, **options)["results"].items()
        for metric, value in found.items()
        if isinstance(value, float) and "stderr" not in metric
    }


def samples_of(lm: Any, folder: Path, task: str) -> list[dict[str, Any]]:
    """The harness' records of a task's documents, with their metrics."""
    return _evaluate(lm, folder, [task])["samples"][f"own_{task}"]


def _evaluate(lm: Any, folder: Path, tasks: Sequence[str], **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = simple_evaluate(
        model=lm, tasks=[f"own_{name}" for name in tasks], task_manager=manager, bootstrap_iters=0, **options
    )
    assert results is not None
    return results
