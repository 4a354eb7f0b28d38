"""The texts in a report: samples from training, and answers before and after fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from lm.display.html import Html, element, folded, joined, lines_of
from lm.display.tables import EVERY, MISSING, html_table
from lm.evaluation.examples import evenly
from lm.runs.record import RunRecord
from lm.runs.results import RecordedValidation
from lm.system.json_values import lookup, number, text

MOMENTS = (0.1, 0.5, 1.0)  # of the run so far
MOST_ANSWERS = 5
MOST_SAMPLES = 200  # folded; a browser could not open a page of ten thousand
STYLE = """
blockquote { margin: .4em 0 1.4em; padding: .1em 0 .1em 1.1em; border-left: 3px solid var(--line) }
blockquote b { font-weight: 600 }
"""


def timeline(run: RunRecord) -> Html:
    """Return the samples at about a tenth, a half and the end of training; fold all others."""
    samples = [validation for validation in run.validations if validation.sample is not None]
    if not samples:
        return element(
            "p",
            "No text is recorded: with logging.sample_tokens a run writes one at each validation.",
            class_="quiet",
        )
    prompt = text(run.config, "logging", "sample_prompt") or ""
    temperature = number(run.config, "logging", "sample_temperature")
    known = ["the prompt in bold"] * bool(prompt) + (
        [f"temperature {temperature:g}"] if temperature is not None else []
    )
    parts = (
        [element("p", f"Written at the validations; {', '.join(known)}.", class_="quiet small")]
        if known
        else []
    )
    chosen = moments(samples, run.step)
    parts += [_sample(run, sample, prompt) for sample in chosen]
    if len(samples) > len(chosen):
        rest = [sample for sample in samples if sample not in chosen]
        shown = evenly(rest, MOST_SAMPLES)
        title = f"The other {len(rest):,}" + (
            f", {len(shown)} of them, evenly chosen" if len(shown) < len(rest) else ""
        )
        parts.append(folded(title, *(_sample(run, sample, prompt) for sample in shown)))
    return joined(parts)


def moments(samples: Sequence[RecordedValidation], last: int) -> list[RecordedValidation]:
    """Return the samples nearest to the moments, in order and without repetition."""
    steps = [sample.step for sample in samples]
    near = {min(steps, key=partial(_distance, share * last)) for share in MOMENTS}
    return [sample for sample in samples if sample.step in near]


def _distance(moment: float, step: int) -> tuple[float, int]:
    return abs(step - moment), step


def answers(run: RunRecord) -> Html | None:
    """Return both models' answers to held-out prompts; None without answers.json."""
    if run.answers is None:
        return None
    from lm.reports.finetune import confusion_table, table_of

    before, after = (
        {key: number(run.answers, side, key) for key in _keys(run.answers, side)}
        for side in ("before", "after")
    )
    lines = table_of(before, after)
    parts = (
        [html_table(lines, "Held-out conversations, before and after")] if len(lines) > 1 else []
    )
    counts = _counts(lookup(run.answers, "after", "confusion"))
    parts += [html_table(confusion_table(counts))] if counts else []
    notes = lookup(run.answers, "notes")
    if isinstance(notes, list):
        parts.append(
            element("ul", *(element("li", str(note)) for note in notes), class_="quiet small")
        )
    conversations = lookup(run.answers, "conversations")
    asked = (
        [
            conversation
            for conversation in conversations
            if text(conversation, "after", "answer") is not None
        ]
        if isinstance(conversations, list)
        else []
    )
    shown = evenly(asked, MOST_ANSWERS)
    parts += [_conversation(f"Answer {i}", conversation) for i, conversation in enumerate(shown, 1)]
    if len(asked) > len(shown):
        parts.append(
            element(
                "p",
                f"{len(shown)} of {len(asked):,} answers, evenly chosen; answers.json has all.",
                class_="quiet small",
            )
        )
    return (
        joined(parts)
        if parts
        else element("p", "answers.json holds nothing that can be shown.", class_="quiet")
    )


def _sample(run: RunRecord, validation: RecordedValidation, prompt: str) -> Html:
    sample = validation.sample or ""
    shown = lines_of(sample)
    if prompt and sample.startswith(prompt):
        shown = joined([element("b", lines_of(prompt)), lines_of(sample[len(prompt) :])])
    share = f", {validation.step / run.step:.0%} of the way" if run.step else ""
    loss = (
        f"validation loss {validation.loss:.4f}"
        if math.isfinite(validation.loss)
        else "validation loss not finite"
    )
    heading = element(
        "h3", f"Step {validation.step:,}", element("span", f"{share}, {loss}", class_="quiet")
    )
    return element("div", heading, element("blockquote", element("p", shown, class_="text")))


def _conversation(title: str, conversation: Mapping[str, object]) -> Html:
    prompt = lookup(conversation, "prompt")
    turns = (
        [turn for turn in prompt if isinstance(turn, Mapping)] if isinstance(prompt, list) else []
    )
    said = [
        ("prompt" if len(turns) == 1 else str(turn.get("role")), str(turn.get("content")))
        for turn in turns
    ]
    said += [("its input", str(turn["input"])) for turn in turns if turn.get("input")]
    said += [("reference", text(conversation, "reference") or MISSING)]
    for side in ("before", "after"):
        unended = " … (no end)" if lookup(conversation, side, "ended") is False else ""
        said.append((side, (text(conversation, side, "answer") or MISSING) + unended))
    lines = [
        [title, ""],
        *([who, element("span", lines_of(what), class_="text")] for who, what in said),
    ]
    return element("div", html_table(lines, words=EVERY), class_="answer")


def _keys(values: Mapping[str, object], side: str) -> Iterator[str]:
    inner = lookup(values, side)
    yield from inner if isinstance(inner, Mapping) else ()


def _counts(value: object) -> dict[str, dict[str, int]]:
    if not isinstance(value, Mapping):
        return {}
    rows = {str(key): row for key, row in value.items() if isinstance(row, Mapping)}
    return {
        key: {str(choice): n for choice, n in row.items() if type(n) is int}
        for key, row in rows.items()
    }
