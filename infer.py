"""Generate text with a checkpoint, or chat with it.

    python infer.py --ckpt checkpoints/final.ckpt --prompt "Attention is"
    python infer.py --ckpt runs/finetune_smoke/best.ckpt --chat

The text goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lm.checkpoints.folder import open_checkpoint
from lm.commands import add_flag, command_parser, to_path_text
from lm.generation.prompt import open_prompt, read_prompt
from lm.generation.sampling import Sampling
from lm.system import errors
from lm.system.streams import print_json

if TYPE_CHECKING:
    from argparse import Namespace

    from torch import Generator

    from lm.generation.continuation import Sample
    from lm.generation.load import Model

EPILOG = """
Without --prompt and --prompt-file the prompt comes from stdin. The last line break of a file or of
stdin does not count. With an empty --prompt the model begins a text of its own. When its context is
full, it forgets the older half and goes on. With --chat each line of stdin is a message or a
command such as /help; with a --prompt the command answers that message and ends. When the context
is full, the oldest questions are forgotten together with their answers.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser; every field of `Sampling` is a flag."""
    result = command_parser("infer.py", __doc__, EPILOG)
    add_flag(result, "--ckpt")
    prompt = result.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    prompt.add_argument(
        "--prompt-file", type=to_path_text, metavar="FILE", help="a UTF-8 file that holds it"
    )
    result.add_argument(
        "--max-new-tokens",
        type=int,
        default=200,
        metavar="N",
        help="write so many tokens at most (200)",
    )
    for option in dataclasses.fields(Sampling):
        result.add_argument(
            "--" + option.name.replace("_", "-"),
            type=type(option.default),
            default=option.default,
            metavar="X",
            help=f"{option.metadata['help']} ({option.default})",
        )
    result.add_argument(
        "--seed", type=int, metavar="N", help="the same seed gives the same text (drawn, and shown)"
    )
    result.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="write so many texts (1)"
    )
    result.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be given several times",
    )
    add_flag(result, "--tokenizer")
    add_flag(result, "--device")
    add_flag(result, "--json", help="print one JSON object when all is written")
    result.add_argument("--no-stream", action="store_true", help="print when all is written")
    add_chat_flags(result.add_argument_group("chat"))
    return result


def add_chat_flags(group: argparse._ArgumentGroup) -> None:
    """Add --chat, and the flags that need it."""
    group.add_argument(
        "--chat",
        action="store_true",
        help="a conversation with a checkpoint that was fine-tuned on conversations",
    )
    group.add_argument(
        "--system",
        metavar="TEXT",
        help="what the model is told first (what it was fine-tuned with)",
    )
    group.add_argument(
        "--template",
        metavar="NAME",
        help="another template than the one that it was fine-tuned with",
    )


def parse() -> argparse.Namespace:
    """Read the command line.

    Raises:
        ConfigError: a number is out of range, or two flags exclude each other.
    """
    flags = parser()
    arguments = flags.parse_args()
    for name, least in (("max_new_tokens", 1), ("num_samples", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and not least <= value < 2**63:
            raise errors.ConfigError(
                f"--{name.replace('_', '-')} {value} is out of range; write {least} to 2**63 - 1"
            )
    wrong = ("json", "num_samples") if arguments.chat else ("system", "template")
    if used := [name for name in wrong if getattr(arguments, name) != flags.get_default(name)]:
        reason = "cannot be had with --chat" if arguments.chat else "is for --chat"
        raise errors.ConfigError(f"--{used[0].replace('_', '-')} {reason}; leave one of them out")
    return arguments


def print_samples(samples: Sequence[Sample], progress: Iterator[object], prompt: str) -> None:
    """Print one sample after another while it grows. `progress` extends all samples, also those
    that are printed later.
    """
    from lm.generation.continuation import shown

    for number, sample in enumerate(samples, start=1):
        if len(samples) > 1:
            print(f"--- sample {number} of {len(samples)} ---")
        print(shown(prompt), end="", flush=True)
        printed = 0
        try:
            while True:
                fresh, printed = sample.text[printed:], len(sample.text)
                print(shown(fresh), end="", flush=True)
                if sample.finish is not None:
                    break
                next(progress)
        finally:
            print(flush=True)  # after Ctrl-C too: the shell's prompt begins a line of its own


def write_samples(
    model: Model, prompt: str, options: Sampling, generator: Generator, arguments: Namespace
) -> dict[str, object]:
    """Continue a prompt and print the texts. Return the report of --json."""
    from lm.generation.continuation import write

    prompt_ids = open_prompt(model.tokenizer, prompt)
    context = model.decoder.config.context_length
    if len(prompt_ids) > context:
        print(
            f"the prompt has {len(prompt_ids)} tokens, the model's context {context}: it reads the"
            f" last {context // 2}",
            file=sys.stderr,
        )
    started = time.perf_counter()
    progress = write(
        model.decoder,
        model.tokenizer,
        prompt_ids,
        options,
        arguments.max_new_tokens,
        generator,
        arguments.num_samples,
        arguments.stop,
    )
    samples = next(progress)
    if arguments.json or arguments.no_stream:
        collections.deque(progress, maxlen=0)  # to the end
    if not arguments.json:
        print_samples(samples, progress, prompt)
    seconds, tokens = time.perf_counter() - started, sum(sample.tokens for sample in samples)
    speed = tokens / seconds
    print(f"{tokens} tokens in {seconds:.1f} s, {speed:.0f} tokens/s", file=sys.stderr)
    texts = [
        {"text": sample.text, "tokens": sample.tokens, "finish": sample.finish}
        for sample in samples
    ]
    return {"prompt": prompt, "samples": texts, "tokens_per_second": round(speed, 1)}


def main() -> None:
    """Check what can be checked without torch, then open the checkpoint and write.

    torch is the only heavy import. It comes after all checks that do not need it.
    """
    arguments = parse()
    options = Sampling(
        **{option.name: getattr(arguments, option.name) for option in dataclasses.fields(Sampling)}
    )
    # without a prompt, --chat reads its messages line by line
    interactive = arguments.chat and arguments.prompt is None and arguments.prompt_file is None
    prompt = "" if interactive else read_prompt(arguments.prompt, arguments.prompt_file)
    checkpoint = open_checkpoint(arguments.ckpt)
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    if arguments.chat:
        from lm.generation.chat import Chat, chat_format
        from lm.generation.terminal import Terminal

        form = chat_format(checkpoint, arguments.template, arguments.system)

    import torch

    from lm import load
    from lm.system.device import choose_device
    from lm.tokenizer.tokenizer import resolve

    device = choose_device(arguments.device, "--device")
    model = load(checkpoint, device)
    model = model._replace(tokenizer=resolve(arguments.tokenizer, model.tokenizer))
    generator = torch.Generator(device).manual_seed(seed)
    print(f"{checkpoint.path.name} on {device}, --seed {seed}", file=sys.stderr)
    if arguments.chat:
        chat = Chat(form, model.decoder.config.context_length, arguments.max_new_tokens)
        reply = functools.partial(
            chat.reply,
            decoder=model.decoder,
            options=options,
            generator=generator,
            stops=arguments.stop,
        )
        terminal = Terminal(chat, reply, stream=not arguments.no_stream)
        if interactive:
            terminal.run()
        else:
            terminal.say(prompt)
        return
    report = write_samples(model, prompt, options, generator, arguments)
    if arguments.json:
        report |= {
            "checkpoint": str(checkpoint.path),
            "step": model.meta["step"],
            "seed": seed,
            "device": device,
            "sampling": dataclasses.asdict(options),
        }
        print_json(json.dumps(report, ensure_ascii=False))


if __name__ == "__main__":
    errors.run(main)
