"""Write docs/CONFIG_REFERENCE.md and docs/config.schema.json from lm/config/schema/.

python -m tools.config_docs
python -m tools.config_docs --check    # write nothing; exit with 6 if one of them is stale
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lm.commands import command_parser
from lm.config.keys import Key, either, json_schema, keys
from lm.system import disk, errors

ROOT = Path(__file__).resolve().parents[1]

INTRODUCTION = """\
<!-- Generated from lm/config/schema/ by `python -m tools.config_docs`. Edit there and run it. -->

# Configuration reference

One YAML file describes one run. Two things must be given: `data.source`, and a length
(`trainer.max_steps`, `trainer.max_tokens` or `trainer.max_epochs`):

```yaml
# yaml-language-server: $schema=docs/config.schema.json
data:
  source:
    format: txt
    files: data/tiny_corpus.txt
trainer:
  max_steps: 500
```

The first line is for editors: with it they complete keys, show their meaning and mark mistakes. The
path is relative to the YAML file (`../docs/config.schema.json` from `configs/`).

## How values are written

- The format is a small part of YAML 1.2: mappings, lists, text, numbers, `true`, `false`, `null`.
- `3e-5` is a number. `010`, `0x10` and `1_000` are not numbers. `on` and `no` are text.
- A whole number may be written `1000`, `1e3` or `1000.0`.
- These are refused: unknown keys, a key given twice, anchors, aliases, merge keys, tags, tabs for
  indentation, more than one document, a byte order mark, files over 1 MiB, nesting deeper than 32.
- Paths, also those in `files`, are relative to the current directory, not to the YAML file. `~`,
  `~user`, `$NAME` and `${NAME}` are replaced, as a shell does; an unset variable is refused.

## On the command line

Any key can be given after the file, as `--section.key value` or `--section.key=value`. It replaces
the file's value:

```
python train.py --config config_smoke.yaml --optimizer.lr 3e-5 --data.source.files=a.txt \\
    --optimizer.betas "[0.9, 0.99]"
```

- Values are written as in YAML: `null` for none, `[a, b]` for a list, `{format: txt, files: a.txt}`
  for a section. A key that accepts only text takes its value literally, with quotes and brackets.
- A list is always given in full, also a list of sections:
  `--data.source.parts "[{weight: 1, source: {format: txt, files: a.txt}}]"`.
- A value may begin with `-`. A value that begins with `--` needs the form with `=`.
- The same key twice is refused.
- `--print-config` prints the resulting values and their origins. Its output can be loaded again.

## Mistakes

All mistakes are reported together, one line each, before torch is loaded. The exit code is 2:

```
config.yaml:12: optimizer.lr: not a number, got "fast", write a number > 0 and <= 10
config.yaml:15: trainer.lr: unknown key, got 3.0e-5, did you mean optimizer.lr?
config.yaml:16: trainer.bf16: unknown key, got true, write trainer.precision: bf16
command line: --trainer.max_steps: too small, got -3, write a whole number >= 1 or null
```

Names of nanoGPT, Hugging Face, litgpt, Axolotl and similar programs lead to the key here, with
its value (`lm/config/other_names.py`). Every suggested value has been tried. A value that nobody
has written is marked as the default. If the file has no section for a key, or cannot be read, the
message names the file without a line.
"""


def reference() -> str:
    """Return the text of docs/CONFIG_REFERENCE.md."""
    parts = [INTRODUCTION]
    for name in keys()[""].children:
        section = keys()[name]
        parts.append(f"\n## `{name}`\n\n{section.description}\n\n{_table(section)}")
    return "".join(parts)


def generated() -> dict[Path, str]:
    """Return the content of each generated file."""
    schema = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    return {
        ROOT / "docs/CONFIG_REFERENCE.md": reference(),
        ROOT / "docs/config.schema.json": schema,
    }


def main() -> None:
    """Write the files.

    Raises:
        CheckFailed: --check was given, and a file is stale.
    """
    parser = command_parser("python -m tools.config_docs", __doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 6 and name stale files"
    )
    check = parser.parse_args().check
    stale = [
        path
        for path, text in generated().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if check and stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        raise errors.CheckFailed(f"{names}: stale, run python -m tools.config_docs")
    for path in stale:
        disk.replace(path, generated()[path])
        print(f"{path.relative_to(ROOT)}: written")


def _table(section: Key) -> str:
    """Return the table of a section's keys; the keys of an inner section follow its row."""
    rows = ["| key | type and range | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*rows, *_rows(section)]) + "\n"


def _rows(section: Key) -> Iterator[str]:
    for key in (keys()[name] for name in section.inner):
        again = "format" in key.children and key.name != "data.source"
        kind = key.type if key.several or not key.children else "a section"
        if again:
            kind = "a section with the keys of `source`, but no mixture" + ", or null" * (
                key.default == "null"
            )
        default = (
            "required" if key.default == "required" else f"`{key.default}`" * bool(key.default)
        )
        formats = (
            f" (format {either(list(key.formats))})"
            if key.formats and key.short != "format"
            else ""
        )
        formats = " (every format but mixture)" if formats and key.of_every_format else formats
        yield (
            f"| `{key.name.partition('.')[2]}` | {kind} | {default} | {key.description}{formats} |"
        )
        if not again:
            yield from _rows(key)


if __name__ == "__main__":
    errors.run(main)
