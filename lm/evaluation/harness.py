"""An adapter for EleutherAI's lm-evaluation-harness: a checkpoint as its model, and its tasks with
plain error messages.

The harness chooses the questions and counts the answers. lm/evaluation/scoring.py and
lm/generation/continuation.py compute the numbers. A standard test and this project's own ranking
therefore give the same text the same likelihood. Importing this module needs `lm_eval`.

The adapter follows the harness's own adapter for `transformers`, so that results are comparable:

- White space at the end of a context moves to the continuation.
- A text that is longer than the context is scored in consecutive parts.
- A prompt loses its beginning if the answer needs the room.

One difference remains: every context opens with one EOS, as in training.
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
from lm.generation.sampling import NOT_FINITE, Sampling
from lm.system.errors import ConfigError, DataError, NonFiniteError, first_line
from lm.tokenizer.tokenizer import Tokenizer
from model import Decoder

MAX_GEN_TOKS = 256  # the default of the harness's own adapters
SEED = 1234  # the harness's own seed, for sampled texts


class Generation(NamedTuple):
    """A task's `generation_kwargs`: sampling options, the most tokens, and stop strings."""

    options: Sampling
    most_tokens: int
    until: tuple[str, ...]


class Subject(LM):
    """A decoder with its tokenizer, as a model of the harness.

    With `chat` each context is a conversation in that template, and the score covers the complete
    answer with its end of turn. The harness passes prompts as text, and text never becomes a
    special token. A conversation therefore passes through the harness as JSON.

    Attributes:
        cut: for each kind of request, how many contexts lost their beginning.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        batch_size: int,
        chat: ChatFormat | None = None,
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
        """Return the key of the harness's cache of requests. It contains the hash of the tokenizer
        and the template, because both change the requests.
        """
        return f"{self.tokenizer.sha256[:12]}{f'-{self.chat.template.name}' if self.chat else ''}"

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the conversation as JSON. Raises ConfigError if the task begins the answer itself,
        because templates end before the answer.
        """
        if not add_generation_prompt:
            raise ConfigError(
                "--chat: a task begins the answers itself (gen_prefix), which the templates do not"
                " know; leave --chat out"
            )
        return json.dumps(chat_history, ensure_ascii=False)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation after its context in nats, and whether
        greedy decoding would generate it.
        """
        pairs = [self._pair(*request.args[:2]) for request in requests]
        self.cut["loglikelihood"] += sum(
            len(context) + len(continuation) > self.context_length
            for context, continuation in pairs
        )
        return self._score(pairs)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the log-probability of each text in nats. Every token counts once."""
        pairs: list[tuple[list[int], list[int]]] = [
            ([], self.tokenizer.encode(request.args[0])) for request in requests
        ]
        return [nats for nats, _ in self._score(pairs)]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the text generated after each context. It ends at a stop string, at the end of the
        text, or after the task's most tokens.

        A sampled text depends on its own number only. Neither the batch size nor the other requests
        change it.
        """
        prompts, groups = [], defaultdict(list)
        for i, request in enumerate(requests):
            wanted = generation(request.args[1])
            room = self.context_length - min(wanted.most_tokens, self.context_length // 2)
            prompt = self._prompt(request.args[0])
            self.cut["generate_until"] += len(prompt) > room
            prompts.append(prompt[-room:])
            groups[wanted].append(i)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="generate_until", disable=None) as bar:
            for wanted, members in groups.items():
                rows = self.batch_size if wanted.options.greedy else 1
                for batch in batches([prompts[i] for i in members], rows):
                    numbers = [members[i] for i in batch]
                    generated = self._generate(
                        [prompts[i] for i in numbers], wanted, SEED + numbers[0]
                    )
                    for i, text in zip(numbers, generated, strict=True):
                        texts[i] = text
                    bar.update(len(batch))
        return texts

    def _prompt(self, context: str) -> list[int]:
        """Return a context's ids, including the opening EOS."""
        if self.chat is None or not context:
            return open_prompt(self.tokenizer, context)
        return self.chat.prompt(
            [Turn(message["role"], message["content"]) for message in json.loads(context)]
        )

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context and its continuation, without the opening EOS."""
        if self.chat is not None and context:
            return self._prompt(context)[1:], self.chat.answer(continuation.strip())
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        if not continuation:
            return self.tokenizer.encode(stripped), []
        return split(self.tokenizer, stripped, continuation)

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether it is the greedy one.

        Raises:
            NonFiniteError: a log-probability is not finite.
        """
        rows = [self._rows(*pair) for pair in pairs]
        flat = list(itertools.chain.from_iterable(rows))
        results: list[tuple[float, bool]] = [(0.0, True)] * len(flat)
        with tqdm(total=len(flat), desc="loglikelihood", disable=None) as bar:
            for batch in batches([row.ids for row in flat], self.batch_size):
                batch_scores = score(self.decoder, [flat[i] for i in batch], self.batch_size)
                for i, scores in zip(batch, batch_scores, strict=True):
                    results[i] = -float(scores.nats.sum()), bool(scores.likeliest.all())
                    if not math.isfinite(results[i][0]):
                        raise NonFiniteError(NOT_FINITE)
                bar.update(len(batch))
        remaining = iter(results)
        by_pair = [list(itertools.islice(remaining, len(parts))) for parts in rows]
        return [
            (sum(nats for nats, _ in parts), all(likeliest for _, likeliest in parts))
            for parts in by_pair
        ]

    def _rows(self, context: Sequence[int], continuation: Sequence[int]) -> list[Row]:
        """Return the row that scores a continuation. A continuation longer than the context becomes
        several rows, each with as much of the preceding text as fits.
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

    def _generate(
        self, prompts: Sequence[Sequence[int]], wanted: Generation, seed: int
    ) -> list[str]:
        """Return the text generated after each prompt."""
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


def generation(kwargs: Mapping[str, Any]) -> Generation:
    """Parse a task's `generation_kwargs`. Raises ConfigError for beams and the like."""
    rest: dict[str, Any] = dict(normalize_gen_kwargs(dict(kwargs), MAX_GEN_TOKS))
    most = rest.pop("max_gen_toks")
    until = rest.pop("until")
    do_sample = rest.pop("do_sample")
    temperature = float(rest.pop("temperature", 1.0)) if do_sample else 0.0
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
    """Return an index of tasks, and the names of the requested ones. Patterns such as arc_* are
    expanded. A name may also be the path of a YAML file.

    Args:
        folder: a folder with the user's own tasks, which take precedence over the harness's.

    Raises:
        ConfigError: a task does not exist.
    """
    include = str(folder) if folder else None
    # The harness's own index takes some seconds: skip it if the user's tasks suffice.
    manager = TaskManager(include_path=include, include_defaults=False)
    if not all(name in manager.all_subtasks or _is_file(name) for name in names):
        manager = TaskManager(include_path=include)
    matches = []
    for name in names:
        matching = [name] if _is_file(name) else sorted(manager.match_tasks([name]))
        if not matching:
            near = difflib.get_close_matches(name, manager.all_tasks, n=5)
            advice = f"; near it are {', '.join(near)}" if near else ""
            raise ConfigError(
                f"--tasks: there is no task {name}{advice}; a file such as tasks/mine.yaml or"
                " --include-path DIR adds some"
            )
        matches += matching
    return manager, list(dict.fromkeys(matches))


def load_tasks(manager: TaskManager, names: Sequence[str]) -> list[Any]:
    """Load tasks and groups with their data, from a file, the hub's cache or the network.

    Raises:
        DataError: the data cannot be loaded, or the task's file is wrong.
        ConfigError: a task is given twice, or a decoder of text cannot do it.
    """
    units: list[Any] = []
    origin: dict[str, str] = {}
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as error:  # Network, hub, cache, YAML and templates share no base class.
            raise DataError(
                f"task {name}: cannot be loaded ({first_line(error)}); a task from the hub must be"
                " downloaded once while online; a task with your own files names them in"
                " dataset_kwargs.data_files of its YAML file"
            ) from error
        for task_name, task in loaded["tasks"].items():
            if task_name in origin:
                raise ConfigError(
                    f"--tasks: {task_name} is in {origin[task_name]} as well as in {name}; leave"
                    " one of them out"
                )
            for flag, reason in (
                ("UNSAFE_CODE", "runs code that the model writes"),
                ("MULTIMODAL", "shows pictures or plays sounds"),
            ):
                if getattr(task, flag, False):
                    raise ConfigError(
                        f"--tasks: {task_name} {reason}, which is not offered; leave it out"
                    )
            origin[task_name] = name
        members = set(itertools.chain.from_iterable(loaded["group_map"].values()))
        units += [
            unit
            for kind in ("groups", "tasks")
            for unit_name, unit in loaded[kind].items()
            if unit_name not in members
        ]
    return units


def chance(samples: Iterable[Mapping[str, Any]]) -> float:
    """Return the accuracy of guessing in a multiple-choice task, from the harness's record of its
    requests.
    """
    counts = []
    for sample in samples:
        # Requests with an empty context score a choice alone, for acc_mutual_info.
        counts.append(
            sum(bool(arguments[0]) for arguments in sample["arguments"]) or len(sample["arguments"])
        )
    return sum(1 / count for count in counts) / len(counts)


def _is_file(name: str) -> bool:
    """Return whether a task's name is the path of a YAML file."""
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()
