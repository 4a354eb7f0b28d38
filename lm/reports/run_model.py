"""The part of a report that needs the model.

It shows a validation text coloured by surprisal, and the loss by position in the context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from lm.checks.rendering import LEGEND, are_words, special_names, tokens_of
from lm.checks.xray import Row, read_rows
from lm.display.charts import Chart, Series, chart
from lm.display.html import Html, element, joined, lines_of, visible
from lm.display.tables import html_table
from lm.evaluation.surprisal import Guessed, Surprisal
from lm.tokenizer.tokenizer import Tokenizer

BITS = (1, 2, 4, 6, 8, 11, 14)  # the borders between colours
MOST_TOKENS = 400  # that are shown of a row
SHADES = len(BITS) + 1
LIGHT_OPACITY = (0.0, 0.08, 0.17, 0.27, 0.38, 0.5, 0.64, 0.8)  # of each colour
DARK_OPACITY = (0.0, 0.12, 0.2, 0.28, 0.36, 0.45, 0.54, 0.64)
STYLE = """
.heat { font: 15px/1.95 ui-monospace, SFMono-Regular, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--line);
  padding-left: 1em; margin: .5em 0 }
.heat i, .scale i { font-style: normal; border-radius: 3px; padding: .12em 0;
  -webkit-print-color-adjust: exact; print-color-adjust: exact }
.heat.words i { box-shadow: -1px 0 var(--paper) }
.heat i:hover { outline: 2px solid var(--c1) }
.heat i.s { font-weight: 600 }
.heat i.n { color: var(--quiet) }
.scale { display: flex; flex-wrap: wrap; gap: .2em; font-size: .8125em; margin: .6em 0 }
.scale i { padding: .1em .6em }
@media (hover: none) {
  .heat i:hover::after { content: attr(title); position: fixed; inset: auto 0 0 0;
    padding: .6em 1em; background: var(--soft); border-top: 1px solid var(--line);
    font-weight: 400; color: var(--ink) }
}
"""
STYLE += "".join(
    f".h{number} {{ background: rgba(236, 112, 20, {opacity}) }}\n"
    for number, opacity in enumerate(LIGHT_OPACITY)
)
STYLE += "@media (prefers-color-scheme: dark) {\n"
STYLE += "".join(
    f".h{number} {{ background: rgba(205, 84, 10, {opacity}) }}\n"
    for number, opacity in enumerate(DARK_OPACITY)
)
STYLE += "}\n"


def surprise(
    surprisal: Surprisal, tokenizer: Tokenizer, weights: str, recorded: float | None
) -> Html:
    """Return example rows, coloured by surprisal.

    Args:
        surprisal: the measurement.
        tokenizer: the model's.
        weights: the name of the model's checkpoint.
        recorded: the loss that the run recorded for this checkpoint.
    """
    comparison = "" if recorded is None else f" (the run itself recorded {recorded:.4f})"
    measured = (
        f"{weights} on the validation split, {int(surprisal.tokens.sum()):,} tokens:"
        f" {surprisal.loss:.4f} nats per token{comparison}."
    )
    about = (
        "The stronger the colour, the less the model expected the token after the text before it."
        " One bit is a coin toss; each further bit is twice as unlikely. Point at a token, or tap"
        " it, for its exact value and for the token that was expected in its place."
    )
    signs = f"{', '.join(LEGEND)}; grey: not scored, or without a token before it"
    parts = [
        element("p", measured),
        element("p", about),
        element("div", *_scale(), class_="scale", aria_label="Bits per token"),
        element("p", signs, class_="quiet small"),
    ]
    several = len({guessed.source for guessed in surprisal.examples}) > 1
    for source in dict.fromkeys(guessed.source for guessed in surprisal.examples):
        shown = [guessed for guessed in surprisal.examples if guessed.source == source]
        nats = [value for guessed in shown for value in guessed.nats if math.isfinite(value)]
        name = f"{source}: " if several else ""
        facts = (
            f"{name}{len(nats):,} tokens in {len(shown)} row{'s' * (len(shown) != 1)},"
            f" {sum(nats) / len(nats) / math.log(2):.2f} bits each"
        )
        parts.append(element("h3", facts))
        parts += [_row(guessed, tokenizer) for guessed in shown]
    return joined(parts)


def positions(surprisal: Surprisal) -> Html:
    """Return the loss by the number of tokens that the model could see."""
    bins = surprisal.by_position()
    points = [(math.sqrt(first * last), loss) for first, last, loss, _ in bins]
    content = Chart(
        "Loss by position in the context",
        "tokens up to this position",
        "nats per token",
        [Series("loss", points, "dots", 3)],
        x_log=True,
    )
    lines = [["positions", "nats per token", "tokens"]]
    lines += [
        [f"{first:,}" if first == last else f"{first:,}–{last:,}", f"{loss:.4f}", f"{tokens:,}"]
        for first, last, loss, tokens in bins
    ]
    about = (
        "A model that uses its context guesses better with more of it. A dot stands in the middle"
        " of its positions; dots of few tokens are uncertain."
    )
    numbers = html_table(lines, "By how many tokens the model could see")
    return joined(
        [
            element("p", about, class_="quiet"),
            element("div", chart(content), element("div", numbers), class_="charts"),
        ]
    )


def by_source(surprisal: Surprisal) -> Html | None:
    """Return the measured loss of each source; None if there is only one."""
    if len(surprisal.sources) < 2:
        return None
    lines = [["source", "nats per token", "tokens"]]
    lines += [
        [name, f"{nats / tokens:.4f}", f"{tokens:,}"]
        for name, (nats, tokens) in surprisal.sources.items()
    ]
    lines.append(["together", f"{surprisal.loss:.4f}", f"{int(surprisal.tokens.sum()):,}"])
    return html_table(lines, "Validation loss of the best checkpoint, measured for this report")


def shade(bits: float) -> int:
    """Return the number of the colour for a surprisal."""
    return sum(bits >= border for border in BITS)


def _row(guessed: Guessed, tokenizer: Tokenizer) -> Html:
    batch = {name: value.cpu() for name, value in guessed.rows.items()} | {"step": 0}
    [row] = read_rows(batch, tokenizer, [guessed.source])
    cut = (
        [element("i", f" … {row.used - MOST_TOKENS:,} more", class_="n")]
        if row.used > MOST_TOKENS
        else []
    )
    kind = "heat" + " words" * are_words(tokens_of(row, tokenizer))
    return element("div", *_tokens(row, guessed, tokenizer), *cut, class_=kind)


def _tokens(row: Row, guessed: Guessed, tokenizer: Tokenizer) -> Iterator[Html]:
    """Yield each token with its surprisal, which is stored one position earlier, at its label.

    The last label of a row is no input of the row; it follows the row's last token.
    """
    names = special_names(tokenizer)
    shown = [
        token for token in tokens_of(row, tokenizer) if token.position < min(row.used, MOST_TOKENS)
    ]
    cells = [(token.position - 1, token.text, token.special) for token in shown]
    if 0 < row.used <= MOST_TOKENS and math.isfinite(guessed.nats[row.used - 1]):
        last = int(row.labels[row.used - 1])
        cells.append(
            (row.used - 1, names.get(last) or visible(tokenizer.decode([last])), last in names)
        )
    for place, text, special in cells:
        nats = guessed.nats[place] if place >= 0 else math.nan
        if not math.isfinite(nats):
            yield element("i", lines_of(text), class_="n" + " s" * special)
            continue
        bits = nats / math.log(2)
        expected = int(guessed.likeliest[place])
        likely = names.get(expected) or f"“{visible(tokenizer.decode([expected]))}”"
        about = (
            f"{bits:.2f} bits ({nats:.3f} nats): {_percent(math.exp(-nats))}; expected {likely}:"
            f" {_percent(float(guessed.probability[place]))}"
        )
        yield element("i", lines_of(text), class_=f"h{shade(bits)}" + " s" * special, title=about)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.1g}"


def _scale() -> Iterator[Html]:
    borders = [0, *BITS]
    for i, low in enumerate(borders):
        yield element(
            "i",
            f"{low}–{borders[i + 1]}" if i + 1 < SHADES else f"{low} bits or more",
            class_=f"h{i}",
        )
