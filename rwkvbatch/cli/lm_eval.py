"""`rwkvbatch lm-eval`."""

from __future__ import annotations

import typer

from rwkvbatch.cli.command import Command, command_app, examples

app = command_app()


@app.command(
    "lm-eval",
    cls=Command,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=examples(
        "rwkvbatch lm-eval --tasks arc_easy,hellaswag --model_args pretrained=rwkv7-g1k-1.5b.pth",
        "rwkvbatch lm-eval --tasks my_task --include_path tasks/ --output_path results --log_samples",
        "rwkvbatch lm-eval --tasks gsm8k --apply_chat_template --fewshot_as_multiturn true",
        "rwkvbatch lm-eval run --help",
        "rwkvbatch compare results/a results/b",
    ),
)
def lm_eval_command(context: typer.Context) -> None:
    """Run lm-evaluation-harness on a model, batched.

    Needs the extra [bold]\\[lm-eval][/].

    All arguments are those of its command line, whose [bold]--model[/] is rwkvbatch unless they say otherwise. The
    arguments of [bold]--model_args[/] are in [bold]docs/ecosystem.md[/]; without them the bundled model is evaluated.
    """
    from rwkvbatch.errors import MissingExtraError, RwkvBatchError, UsageError, in_words
    from rwkvbatch.signals import ENDS_PROCESS

    try:
        from rwkvbatch.integrations import harness
    except ImportError as error:
        if (error.name or "").startswith("rwkvbatch"):
            raise
        raise MissingExtraError(
            "lm-eval needs lm-evaluation-harness, which is not installed", extra="lm-eval"
        ) from None
    try:
        harness.run(context.args)
    except (RwkvBatchError, OSError, *ENDS_PROCESS):
        raise
    except (ValueError, KeyError, ImportError) as error:
        hint = "RWKVBATCH_DEBUG=1 shows where; `rwkvbatch lm-eval run --help` lists its arguments"
        raise UsageError(f"lm-evaluation-harness failed with {in_words(error)}", hint=hint) from error
