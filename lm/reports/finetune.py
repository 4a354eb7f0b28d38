"""The report on a fine-tuning: base and tuned model on the same held-out conversations.

It is printed as a table and written as answers.json and as report.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lm.config.schema.finetune import FinetuneConfig
from lm.display.html import visible
from lm.display.tables import EVERY, MISSING, Table, markdown_table, safe, terminal_table
from lm.documents.conversations import Conversation, Turn
from lm.evaluation.answers import Answer, Loss, Measured
from lm.evaluation.examples import evenly
from lm.reports.finetune_figures import (
    Figures,
    confusion,
    exact_match,
    figures,
    reward_accuracy,
    token_f1,
)
from lm.system.disk import replace
from lm.system.json_values import finite

SIDE_BY_SIDE = 5  # conversations on the page
COUNTING = (
    "matches and F1 compare words as SQuAD does: lower case, no punctuation, no articles (a, an,"
    " the); F1 is a mean over answers"
)


@dataclass(frozen=True)
class Measure:
    """A line of the table.

    Attributes:
        key: the measure's name in the JSON.
        kind: "share" is shown in percent and changes by points, "loss" changes by a percentage of
            itself, "number" by a number.
    """

    key: str
    label: str
    kind: str


MEASURES = (
    Measure("ended", "answers that end by themselves, %", "share"),
    Measure("exact_match", "answers that match the reference, %", "share"),
    Measure("token_f1", "F1 of the words, %", "share"),
    Measure("answer_tokens", "length of an answer, tokens", "number"),
    Measure("answer_loss", "loss of the references, nats per token", "loss"),
    Measure("accuracy", "choice of the answer: accuracy, %", "share"),
    Measure("balanced_accuracy", "choice of the answer: mean of the recalls, %", "share"),
    Measure("preferred_likelier", "pairs: preferred answer likelier, %", "share"),
    Measure("reward_accuracy", "pairs: preferred answer gained more, %", "share"),
    Measure("base_loss", "loss on the base's own text, nats per token", "loss"),
)


class Compared(NamedTuple):
    """One held-out conversation, and what both models were measured to do with it."""

    conversation: Conversation
    before: dict[str, Any]
    after: dict[str, Any]


def write_report(
    folder: Path,
    say: Callable[[str], None],
    conversations: Sequence[Conversation],
    before: Measured,
    after: Measured,
    finetune: FinetuneConfig,
    base_loss: tuple[float, float] | None = None,
) -> None:
    """Print what changed, and write `answers.json` and `report.md` into the run's folder.

    Args:
        folder: the run's folder.
        say: prints a text.
        conversations: the held-out conversations, in the order of the measurements.
        before, after: `measure_answers` in lm/evaluation/answers.py of the base and of the tuned
            decoder.
        finetune: the section that `measure_answers` had.
        base_loss: nats per token on the text that the base was validated on, before and after;
            None if that text is missing.

    Raises:
        CheckpointError: a file cannot be written.
    """
    first, second = figures(conversations, before), figures(conversations, after)
    second["reward_accuracy"] = reward_accuracy(before, after)
    if base_loss is not None:
        first["base_loss"], second["base_loss"] = base_loss
    table = table_of(first, second)
    notes = list(notes_of(conversations, after, finetune, base_loss))
    chosen = confusion(conversations, after)
    facts = {
        "held_out": len(conversations),
        "context": after.context,
        "no_room": after.no_room,
        "most_tokens": finetune.report_tokens,
        "counting": COUNTING,
        "before": first | {"confusion": confusion(conversations, before)},
        "after": second | {"confusion": chosen},
        "notes": notes,
        "conversations": [_as_json(item) for item in compared(conversations, before, after)],
    }
    replace(
        folder / "report.md", page(table, chosen, notes, compared(conversations, before, after))
    )
    # Written last: without this file the report counts as missing.
    replace(
        folder / "answers.json",
        json.dumps(finite(facts), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )
    tables = [table] if len(table) > 1 else []
    tables += [confusion_table(chosen)] if chosen else []
    where = f"answers to read: {folder}/report.md; all: {folder}/answers.json"
    say("\n\n".join([*map(terminal_table, tables), "\n".join([*notes, where])]))


def table_of(before: Figures, after: Figures) -> Table:
    """Return the headings and a line for each measure that has a value."""
    lines = [["held-out conversations", "before", "after", "change"]]
    for measure in MEASURES:
        a, b = before.get(measure.key), after.get(measure.key)
        if a is not None or b is not None:
            lines.append(
                [measure.label, _shown(measure, a), _shown(measure, b), _change(measure, a, b)]
            )
    return lines


def confusion_table(counts: dict[str, dict[str, int]]) -> Table:
    """Return a line for each reference and a column for each choice."""
    choices = sorted({choice for row in counts.values() for choice in row} | set(counts))
    heading = ["after, by the reference", *(f"chosen {visible(choice)}" for choice in choices)]
    return [
        heading,
        *(
            [visible(reference), *(f"{row.get(choice, 0):,}" for choice in choices)]
            for reference, row in counts.items()
        ),
    ]


def notes_of(
    conversations: Sequence[Conversation],
    measured: Measured,
    finetune: FinetuneConfig,
    base_loss: tuple[float, float] | None,
) -> Iterator[str]:
    """Yield the notes that explain the numbers: counts, skipped items, the way of counting."""
    held_out = len(conversations)
    context = measured.context
    choices = ", ".join(map(visible, finetune.choices))
    if not conversations:
        yield (
            "no conversation is held out, so there is nothing to answer; data.test_fraction or"
            " data.val_fraction holds some out"
        )
    if answered := sum(answer is not None for answer in measured.answers):
        yield (
            f"{answered:,} of {held_out:,} held-out prompts were answered greedily, in at most"
            f" {finetune.report_tokens:,} tokens each"
        )
        yield COUNTING
    if measured.no_room:
        yield (
            f"skipped: {_are(measured.no_room, 'prompt')} too long for the context of {context:,}"
        )
    if longer := measured.losses.count(None):
        yield (
            f"not in the loss: {_are(longer, 'conversation')} longer than the context of"
            f" {context:,}"
        )
    if choices and (others := measured.choices.count(None)):
        yield (
            f"{_are(others, 'conversation')} not in the accuracy of choices: the reference is none"
            f" of {choices}, or the context has no room"
        )
    known = "unknown, because the validation text of the base is missing"
    if base_loss is not None:
        known = (
            "the loss on the validation text of the base went from"
            f" {base_loss[0]:.4f} to {base_loss[1]:.4f} nats per token"
        )
    yield f"forgetting: {known}"


def compared(
    conversations: Sequence[Conversation], before: Measured, after: Measured
) -> list[Compared]:
    """Return all conversations with both models' measurements."""
    return [
        Compared(conversation, _one(conversation, before, i), _one(conversation, after, i))
        for i, conversation in enumerate(conversations)
    ]


def page(
    table: Table,
    chosen: dict[str, dict[str, int]],
    notes: Sequence[str],
    conversations: Sequence[Compared],
) -> str:
    """Return the report as Markdown; characters of models' and data's texts are never markup."""
    tables = [table] if len(table) > 1 else []
    tables += [confusion_table(chosen)] if chosen else []
    parts = [
        "# Report\n",
        "## Fine-tuning\n",
        *map(markdown_table, tables),
        "".join(f"- {safe(note)}\n" for note in notes),
    ]
    answered = [item for item in conversations if "answer" in item.after]
    for number, item in enumerate(evenly(answered, SIDE_BY_SIDE), 1):
        parts.append(f"### Answer {number}\n")
        lines = [
            ["", ""],
            ["prompt", spoken(item.conversation.prompt)],
            ["reference", item.conversation.answer],
            ["before", _answer_text(item.before)],
            ["after", _answer_text(item.after)],
        ]
        parts.append(markdown_table(lines, EVERY))
    return "\n".join(parts)


def spoken(turns: Sequence[Turn]) -> str:
    """Return turns as text, with roles if there is more than one turn."""
    texts = ["\n".join(filter(None, (turn.content, turn.input))) for turn in turns]
    return (
        texts[0]
        if len(turns) == 1
        else "\n".join(f"{turn.role}: {text}" for turn, text in zip(turns, texts, strict=True))
    )


def _one(conversation: Conversation, measured: Measured, i: int) -> dict[str, Any]:
    """Return one model's measurements on a conversation, without those that were not made."""
    measurements: dict[str, Any] = {}
    answer: Answer | None = measured.answers[i]
    if answer is not None:
        measurements |= {
            "answer": answer.text,
            "tokens": answer.tokens,
            "ended": answer.ended,
            "exact_match": exact_match(answer.text, conversation.answer),
            "f1": token_f1(answer.text, conversation.answer),
        }
    losses: dict[str, Loss | None] = {
        "loss": measured.losses[i],
        "rejected_loss": measured.rejected[i],
    }
    measurements |= {
        name: {"nats": loss.nats, "tokens": loss.tokens}
        for name, loss in losses.items()
        if loss is not None
    }
    return measurements | (
        {"choice": measured.choices[i]} if measured.choices[i] is not None else {}
    )


def _as_json(item: Compared) -> dict[str, Any]:
    turns = [
        {key: value for key, value in turn._asdict().items() if value}
        for turn in item.conversation.prompt
    ]
    rejected = (
        {} if item.conversation.rejected is None else {"rejected": item.conversation.rejected}
    )
    return {
        "prompt": turns,
        "reference": item.conversation.answer,
        **rejected,
        "before": item.before,
        "after": item.after,
    }


def _answer_text(answered: dict[str, Any]) -> str:
    return answered["answer"] + ("" if answered["ended"] else " … (no end)")


def _shown(measure: Measure, value: float | None) -> str:
    if value is None:
        return MISSING
    return {"share": f"{100 * value:.1f}", "number": f"{value:.1f}", "loss": f"{value:.4f}"}[
        measure.kind
    ]


def _change(measure: Measure, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    if measure.kind == "loss":
        return f"{100 * (after / before - 1):+.1f} %" if before else MISSING
    return f"{(100 if measure.kind == 'share' else 1) * (after - before):+.1f}"


def _are(count: int, name: str) -> str:
    return f"{count:,} {name} is" if count == 1 else f"{count:,} {name}s are"
