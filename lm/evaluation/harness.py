"""A checkpoint as the subject of EleutherAI's lm-evaluation-harness, and the harness's tasks, found
and loaded with plain answers.

The harness decides what is asked and how answers are counted; the numbers are those of
lm/evaluation/scoring.py and lm/generation/continuation.py, so that a standard test and this
project's own ranking find the same text equally likely. Importing this module needs `lm_eval`.

Where the harness leaves a choice, it is made as the harness's own adapter for `transformers` makes
it, so that results can be compared: white space at a context's end is moved to what follows it, a
text that is longer than the context is scored in parts that follow each other, and a prompt loses
its beginning to leave room for the answer. But every context is opened by one EOS, as in training.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from lm.documents.conversations import Turn
from lm.documents.templates import ChatFormat
from lm.evaluation.scoring import Row, batches, continued, score, split
from lm.generation.continuation import write_each
from lm.generation.prompt import open_prompt
from lm.generation.sampling import Sampling
from lm.system.errors import ConfigError, DataError, NonFiniteError
from lm.tokenizer.tokenizer import Tokenizer

# where a task does not say how much may be written, the harness's own adapters write so much
MAX_GEN_TOKS = 256
SEED = 1234  # the harness's own, for texts that are drawn


class Generation(NamedTuple):
    """How a task wants its answers written: its `generation_kwargs`."""

    options: Sampling
    most_tokens: int
    until: tuple[str, ...]


class Subject(LM):
    """A decoder with its tokenizer, asked by the harness.

    With `chat` each context is a conversation, put in that template, and what is scored is the
    whole answer with its end of turn. The harness passes prompts as text, and text never turns into
    a special token; so a conversation travels through it as JSON.

    Attributes:
        cut: requests whose context lost its beginning, by their kind.
    """

    def __init__(
        self, decoder: Any, tokenizer: Tokenizer, batch_size: int, chat: ChatFormat | None = None
    ):
        super().__init__()
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.chat = chat
        self.cut: Counter[str] = Counter()
        self.context_length = decoder.config.context_length
        self._device = next(decoder.parameters()).device

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of requests knows the prompts by: other ids or another template
        are other requests.
        """
        return f"{self.tokenizer.sha256[:12]}{f'-{self.chat.template.name}' if self.chat else ''}"

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as JSON. Raises ConfigError where the task has begun the answer:
        templates end before it.
        """
        if not add_generation_prompt:
            raise ConfigError(
                "--chat: a task begins the answers itself (gen_prefix), which the templates do not"
                " know; leave --chat out"
            )
        return json.dumps(chat_history, ensure_ascii=False)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the continuation's log-probability in nats, and whether
        greedy decoding would write it.
        """
        pairs = [self._pair(*request.args[:2]) for request in requests]
        self.cut["loglikelihood"] += sum(
            len(context) + len(continuation) > self.context_length
            for context, continuation in pairs
        )
        return self._score(pairs)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Of each text: its log-probability in nats, every token once."""
        return [
            nats
            for nats, _ in self._score(
                [([], self.tokenizer.encode(request.args[0])) for request in requests]
            )
        ]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What is written behind each context, up to a stop string, the end of the text, or so many
        tokens as the task allows.

        A text that is drawn depends on its own number and nothing else, so that neither the batch
        size nor the others change it.
        """
        prompts, groups = [], defaultdict(list)
        for i, request in enumerate(requests):
            wanted = generation(request.args[1])
            room = self.context_length - min(wanted.most_tokens, self.context_length // 2)
            whole = self._prompt(request.args[0])
            self.cut["generate_until"] += len(whole) > room
            prompts.append(whole[-room:])
            groups[wanted].append(i)
        written = [""] * len(requests)
        with tqdm(total=len(requests), desc="generate_until", disable=None) as bar:
            for wanted, members in groups.items():
                for batch in batches(
                    [prompts[i] for i in members], self.batch_size if wanted.options.greedy else 1
                ):
                    numbers = [members[i] for i in batch]
                    for i, text in zip(
                        numbers,
                        self._write([prompts[i] for i in numbers], wanted, SEED + numbers[0]),
                        strict=True,
                    ):
                        written[i] = text
                    bar.update(len(batch))
        return written

    def _prompt(self, context: str) -> list[int]:
        """A context's ids, the EOS that opens it included."""
        if self.chat is None or not context:
            return open_prompt(self.tokenizer, context)
        return self.chat.prompt(
            [Turn(message["role"], message["content"]) for message in json.loads(context)]
        )

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of both, without the EOS that opens them."""
        if self.chat is not None and context:
            return self._prompt(context)[1:], self.chat.answer(continuation.strip())
        kept = context.rstrip()
        moved = context[len(kept) :] + continuation
        return split(self.tokenizer, kept, moved) if moved else (self.tokenizer.encode(kept), [])

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        rows = [self._rows(*pair) for pair in pairs]
        flat = list(itertools.chain.from_iterable(rows))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(flat)
        with tqdm(total=len(flat), desc="loglikelihood", disable=None) as bar:
            for batch in batches([row.ids for row in flat], self.batch_size):
                for i, scores in zip(
                    batch,
                    score(self.decoder, [flat[i] for i in batch], self.batch_size),
                    strict=True,
                ):
                    found[i] = -float(scores.nats.sum()), bool(scores.likeliest.all())
                    if not math.isfinite(found[i][0]):
                        raise NonFiniteError(
                            "the model's scores are not finite: its weights are damaged or"
                            " diverged; try an earlier checkpoint"
                        )
                bar.update(len(batch))
        parts = iter(found)
        own = [list(itertools.islice(parts, len(each))) for each in rows]
        return [
            (sum(nats for nats, _ in each), all(likeliest for _, likeliest in each)) for each in own
        ]

    def _rows(self, context: Sequence[int], continuation: Sequence[int]) -> list[Row]:
        """One, unless the continuation is longer than the context: then parts, each behind all that
        fits of what comes before.
        """
        length = self.context_length
        return [
            continued(
                self.tokenizer.eos_id,
                [*context, *continuation[:done]],
                continuation[done : done + length],
                length,
            )
            for done in range(0, len(continuation), length)
        ]

    def _write(self, prompts: Sequence[Sequence[int]], wanted: Generation, seed: int) -> list[str]:
        generator = torch.Generator(self._device).manual_seed(seed)
        stop_ids = self.chat.stop_ids if self.chat else None
        options, most, until = wanted
        progress = write_each(
            self.decoder, self.tokenizer, prompts, options, most, generator, until, stop_ids
        )
        samples = deque(progress, maxlen=1).pop()
        return [
            self.chat.answer_text(sample.text) if self.chat else sample.text for sample in samples
        ]


def generation(asked: Mapping[str, Any]) -> Generation:
    """What a task's `generation_kwargs` mean. Raises ConfigError for what is not offered, such as
    beams.
    """
    rest: dict[str, Any] = dict(normalize_gen_kwargs(dict(asked), MAX_GEN_TOKS))
    most, until, drawn = rest.pop("max_gen_toks"), rest.pop("until"), rest.pop("do_sample")
    temperature = float(rest.pop("temperature", 1.0)) if drawn else 0.0
    offered = sorted(field.name for field in dataclasses.fields(Sampling))
    if unknown := sorted(rest.keys() - offered):
        raise ConfigError(
            f"generation_kwargs: a task asks for {unknown[0]}: {rest[unknown[0]]}, which is not"
            f" offered; there is do_sample, max_gen_toks, until and {', '.join(offered)}"
        )
    return Generation(
        Sampling(**{**rest, "temperature": temperature}),
        most,
        tuple(stop for stop in until if stop),
    )


def find_tasks(names: Sequence[str], folder: Path | None) -> tuple[TaskManager, list[str]]:
    """An index that knows all the tasks that are asked for, and their names, with patterns such as
    arc_* filled in.

    `folder` has tasks of one's own, which come before the harness's; a name may also be a YAML
    file. The harness's index takes some seconds and is left alone where one's own tasks are all.

    Raises:
        ConfigError: there is no such task.
    """
    include = str(folder) if folder else None
    manager = TaskManager(include_path=include, include_defaults=False)
    if not all(name in manager.all_subtasks or _is_file(name) for name in names):
        manager = TaskManager(include_path=include)
    found = []
    for name in names:
        matching = [name] if _is_file(name) else sorted(manager.match_tasks([name]))
        if not matching:
            near = difflib.get_close_matches(name, manager.all_tasks, n=5)
            advice = f"; near it are {', '.join(near)}" if near else ""
            raise ConfigError(
                f"--tasks: there is no task {name}{advice}; a file such as tasks/mine.yaml or"
                " --include-path DIR adds some"
            )
        found += matching
    return manager, list(dict.fromkeys(found))


def load_tasks(manager: TaskManager, names: Sequence[str]) -> list[Any]:
    """The tasks and groups with their data, from a file, the hub's cache or the network.

    Raises:
        DataError: the data cannot be had, or the task's file is wrong.
        ConfigError: a task is asked for twice, or needs what no decoder of text has.
    """
    units: list[Any] = []
    origin: dict[str, str] = {}
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as error:  # network, hub, cache, YAML, templates: there is no common type
            raise DataError(
                f"task {name}: cannot be loaded ({_line(error)}); what comes from the hub has to be"
                " fetched once while online, and for one's own files dataset_kwargs.data_files in"
                " its YAML file names them"
            ) from error
        for task_name, task in loaded["tasks"].items():
            if task_name in origin:
                raise ConfigError(
                    f"--tasks: {task_name} is in {origin[task_name]} as well as in {name}; leave"
                    " one of them out"
                )
            for flag, what in (
                ("UNSAFE_CODE", "runs code that the model writes"),
                ("MULTIMODAL", "shows pictures or plays sounds"),
            ):
                if getattr(task, flag, False):
                    raise ConfigError(
                        f"--tasks: {task_name} {what}, which is not offered; leave it out"
                    )
            origin[task_name] = name
        inside = set(itertools.chain.from_iterable(loaded["group_map"].values()))
        units += [
            unit
            for kind in ("groups", "tasks")
            for unit_name, unit in loaded[kind].items()
            if unit_name not in inside
        ]
    return units


def chance(samples: Iterable[Mapping[str, Any]]) -> float:
    """How often a blind guess is right in a task of multiple choice, from the harness's record of
    what was asked.
    """
    counts = []
    for sample in samples:
        # Behind an empty context a choice stands alone, for comparison (acc_mutual_info).
        counts.append(
            sum(bool(arguments[0]) for arguments in sample["arguments"]) or len(sample["arguments"])
        )
    return sum(1 / count for count in counts) / len(counts)


def _is_file(name: str) -> bool:
    """Whether a task is named by its YAML file."""
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
