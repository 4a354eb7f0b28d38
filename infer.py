"""Generate text with a checkpoint, or chat with it.

    python infer.py --ckpt checkpoints/final.ckpt --prompt "Attention is"
    python infer.py --ckpt runs/finetune_smoke/best.ckpt --chat

The text goes to stdout, everything else to stderr. torch is the only heavy import, and comes after
all checks that do not need it.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import io
import json
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lm.checkpoints.folder import open_checkpoint
from lm.commands import add_flag
from lm.generation.prompt import open_prompt, read_prompt
from lm.generation.sampling import Sampling
from lm.system import errors

if TYPE_CHECKING:
    from lm.generation.continuation import Sample

EPILOG = """
Without --prompt and --prompt-file the prompt comes from stdin. The last line break of a file or of
stdin does not count. With an empty --prompt the model begins a text of its own. When its context is
full, it forgets the older half and goes on. With --chat each line of stdin is a message or a
command such as /help; with a --prompt the command answers that message and ends. When the context
is full, the oldest questions are forgotten together with their answers.
"""


def parse() -> argparse.Namespace:
    """Read the command line; every field of `Sampling` is a flag."""
    parser = argparse.ArgumentParser(
        description="Let a checkpoint write.", epilog=EPILOG, allow_abbrev=False
    )
    add_flag(parser, "--ckpt")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    prompt.add_argument("--prompt-file", metavar="FILE", help="a UTF-8 file that holds it")
    parser.add_argument(
        "--chat",
        action="store_true",
        help="a conversation with a checkpoint that was fine-tuned on conversations",
    )
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="--chat: what the model is told first (what it was fine-tuned with)",
    )
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="--chat: another template than the one that it was fine-tuned with",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=200,
        metavar="N",
        help="write so many tokens at most (200)",
    )
    for option in dataclasses.fields(Sampling):
        flag, text = (
            "--" + option.name.replace("_", "-"),
            f"{option.metadata['help']} ({option.default})",
        )
        parser.add_argument(
            flag, type=type(option.default), default=option.default, metavar="X", help=text
        )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the same seed gives the same text (drawn, and shown)"
    )
    parser.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="write so many texts (1)"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be given several times",
    )
    parser.add_argument(
        "--tokenizer",
        default="auto",
        metavar="NAME",
        help="the checkpoint's own, or one that must equal it (auto)",
    )
    add_flag(parser, "--device")
    add_flag(parser, "--json", help="print one JSON object when all is written")
    parser.add_argument("--no-stream", action="store_true", help="print when all is written")
    arguments = parser.parse_args()
    for name, least in (("max_new_tokens", 1), ("num_samples", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and not least <= value < 2**63:
            raise errors.ConfigError(
                f"--{name.replace('_', '-')} {value} is out of range; write {least} or more"
            )
    wrong = ("json", "num_samples") if arguments.chat else ("system", "template")
    if used := [name for name in wrong if getattr(arguments, name) != parser.get_default(name)]:
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


def main() -> None:
    """Run the command."""
    arguments = parse()
    options = Sampling(
        **{option.name: getattr(arguments, option.name) for option in dataclasses.fields(Sampling)}
    )
    lines = arguments.chat and arguments.prompt is None and arguments.prompt_file is None
    prompt, checkpoint = (
        ("" if lines else read_prompt(arguments.prompt, arguments.prompt_file)),
        open_checkpoint(arguments.ckpt),
    )
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    if arguments.chat:
        from lm.generation.chat import Chat, chat_format
        from lm.generation.terminal import Terminal

        form = chat_format(checkpoint, arguments.template, arguments.system)

    import torch

    from lm import load
    from lm.generation.continuation import write
    from lm.system.device import choose_device
    from lm.tokenizer.tokenizer import resolve

    device = choose_device(arguments.device, "--device")
    decoder, stored, meta = load(checkpoint, device)
    tokenizer = resolve(arguments.tokenizer, stored)
    generator, context = torch.Generator(device).manual_seed(seed), decoder.config.context_length
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for a terminal that is not UTF-8
    if arguments.chat:
        chat = Chat(form, context, arguments.max_new_tokens)
        reply = functools.partial(
            chat.reply, decoder=decoder, options=options, generator=generator, stops=arguments.stop
        )
        terminal = Terminal(chat, reply, stream=not arguments.no_stream)
        print(f"{checkpoint.path.name} on {device}, --seed {seed}", file=sys.stderr)
        terminal.run() if lines else terminal.say(prompt)
        return
    prompt_ids = open_prompt(tokenizer, prompt)
    print(f"{checkpoint.path.name} on {device}, --seed {seed}", file=sys.stderr)
    if len(prompt_ids) > context:
        print(
            f"the prompt has {len(prompt_ids)} tokens, the model's context {context}: it reads the"
            f" last {context // 2}",
            file=sys.stderr,
        )

    started = time.perf_counter()
    count, length, stops = arguments.num_samples, arguments.max_new_tokens, arguments.stop
    progress = write(decoder, tokenizer, prompt_ids, options, length, generator, count, stops)
    samples = next(progress)
    if arguments.json or arguments.no_stream:
        collections.deque(progress, maxlen=0)  # to the end
    if not arguments.json:
        print_samples(samples, progress, prompt)
    seconds, tokens = time.perf_counter() - started, sum(sample.tokens for sample in samples)
    if arguments.json:
        texts = [
            {"text": sample.text, "tokens": sample.tokens, "finish": sample.finish}
            for sample in samples
        ]
        report = {
            "prompt": prompt,
            "samples": texts,
            "checkpoint": str(checkpoint.path),
            "step": meta["step"],
            "seed": seed,
            "device": device,
        }
        report |= {
            "sampling": dataclasses.asdict(options),
            "tokens_per_second": round(tokens / seconds, 1),
        }
        print(json.dumps(report, ensure_ascii=False))
    print(f"{tokens} tokens in {seconds:.1f} s, {tokens / seconds:.0f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
