"""Evaluate a checkpoint on standard tests with EleutherAI's lm-evaluation-harness.

Needs `pip install lm-eval==0.4.13`.

python -m tools.lm_eval --ckpt checkpoints/best.ckpt --tasks blimp lambada_openai
python -m tools.lm_eval --ckpt checkpoints/best.ckpt --tasks mine --include-path tasks --json

The table goes to stdout, everything else to stderr. A task's data come from the Hugging Face hub,
or from files that its YAML file names. The harness runs the Python code of a task: give
--include-path only folders whose files you trust.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import sys
from typing import Any

from lm.checkpoints.folder import Checkpoint, open_checkpoint
from lm.commands import add_flag, command_parser, to_path
from lm.system import disk, errors
from lm.system.streams import print_json

# the parts of the harness's results that the report contains
REPORTED = (
    "results",
    "groups",
    "group_subtasks",
    "n-shot",
    "n-samples",
    "versions",
    "higher_is_better",
    "lm_eval_version",
)


def main() -> None:
    """Check the arguments, then import torch and the harness, and evaluate."""
    arguments = parse()
    check(arguments)
    if importlib.util.find_spec("lm_eval") is None:
        raise errors.ConfigError(
            f"lm-evaluation-harness is not installed: {sys.executable} -m pip install"
            " lm-eval==0.4.13"
        )
    checkpoint = open_checkpoint(arguments.ckpt)
    be_quiet()
    form = None
    if arguments.chat:
        from lm.generation.chat import chat_format

        form = chat_format(checkpoint, arguments.template)
    with contextlib.redirect_stdout(sys.stderr):  # for what the harness prints
        from lm import load
        from lm.evaluation.harness import Subject, find_tasks, load_tasks
        from lm.system.device import choose_device

        device = choose_device(arguments.device, "--device")
        manager, names = find_tasks(arguments.tasks, arguments.include_path)
        decoder, tokenizer, _ = load(checkpoint, device)
        subject = Subject(decoder, tokenizer, arguments.batch_size, form)
        results = evaluate(subject, manager, load_tasks(manager, names), arguments)
    report = report_of(checkpoint, device, results, arguments) | {"cut": dict(subject.cut)}
    text = json.dumps(report, indent=1, ensure_ascii=False)
    if arguments.out is not None:
        disk.replace(arguments.out, text + "\n")
    if arguments.json:
        print_json(text)
    else:
        print(table(report, results))
    for kind, count in subject.cut.items():
        if count:
            context = f"the context of {subject.context_length:,} tokens"
            print(
                f"{count:,} {kind} requests do not fit {context}: they lost their beginning",
                file=sys.stderr,
            )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser("python -m tools.lm_eval", __doc__)
    add_flag(parser, "--ckpt")
    parser.add_argument(
        "--tasks",
        metavar="NAME",
        nargs="+",
        required=True,
        help="tasks, groups, patterns such as arc_*, or YAML files",
    )
    parser.add_argument(
        "--include-path", metavar="DIR", type=to_path, help="a folder with tasks of your own"
    )
    parser.add_argument(
        "--num-fewshot",
        metavar="N",
        type=int,
        help="examples before each question (the task's own number, else 0)",
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=int,
        help="only the first N questions of each task, for a quick try",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        default=32,
        help="texts that are read together (32); it changes no result",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="format questions with the template of the checkpoint's fine-tuning",
    )
    parser.add_argument("--template", metavar="NAME", help="another template for --chat")
    add_flag(parser, "--device")
    add_flag(parser, "--json")
    parser.add_argument(
        "--out", metavar="FILE", type=to_path, help="also write the JSON object into this file"
    )
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for numbers out of range, missing folders, and flags that need others."""
    for name, least in (("num_fewshot", 0), ("limit", 1), ("batch_size", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise errors.ConfigError(
                f"--{name.replace('_', '-')} {value} is out of range; write {least} or more"
            )
    if arguments.template and not arguments.chat:
        raise errors.ConfigError("--template is for --chat; leave it out, or give both")
    if arguments.include_path is not None and not arguments.include_path.is_dir():
        raise errors.ConfigError(
            f"--include-path {arguments.include_path}: no such folder; name the one that holds your"
            " tasks' YAML files"
        )
    if arguments.out is not None and not arguments.out.parent.is_dir():
        raise errors.ConfigError(
            f"--out {arguments.out}: there is no folder {arguments.out.parent}; make it first"
        )


def be_quiet() -> None:
    """Silence the harness and its libraries, except for errors. Progress bars appear only on a
    terminal.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # The harness forks for its bootstrap, and tokenizers would print a warning about that.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Without a network the hub's client would log each retry.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")


def evaluate(
    subject: Any, manager: Any, tasks: list[Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Run the harness's own evaluation with its default seeds."""
    from lm_eval import simple_evaluate

    return dict(
        simple_evaluate(
            subject,
            tasks=tasks,
            task_manager=manager,
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            apply_chat_template=arguments.chat,
        )
    )


def report_of(
    checkpoint: Checkpoint, device: str, results: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the checkpoint, the settings and the harness's results as one JSON object. Numbers
    that are not finite become null.
    """
    from lm.evaluation.harness import chance

    settings = {
        "step": checkpoint.step,
        "manifest_sha256": checkpoint.sha256,
        "device": device,
        "limit": arguments.limit,
    }
    guessing = {
        name: chance(results["samples"][name])
        for name, config in results["configs"].items()
        if config["output_type"] == "multiple_choice"
    }
    report = {"checkpoint": arguments.ckpt, **settings, "chat": arguments.chat, "chance": guessing}
    reported = {key: results[key] for key in REPORTED if key in results}
    return report | json.loads(json.dumps(reported, default=float), parse_constant=lambda _: None)


def table(report: dict[str, Any], results: dict[str, Any]) -> str:
    """Return the harness's own tables in Markdown, and the accuracy of guessing."""
    from lm_eval.utils import make_table

    parts = [
        f"{report['checkpoint']} (step {report['step']:,}) on {report['device']},"
        f" lm-evaluation-harness {report['lm_eval_version']}:",
        make_table(results).strip(),
    ]
    if results.get("groups"):
        parts.append(make_table(results, "groups").strip())
    parts += [
        f"{name}: a blind guess is right with a probability of {share:.4f}"
        for name, share in report["chance"].items()
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    errors.run(main)
