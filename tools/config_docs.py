"""Write docs/CONFIG_REFERENCE.md and docs/config.schema.json from lm/config/schema/; with --check,
say which of them is stale.

python -m tools.config_docs [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lm.config.keys import Key, either, json_schema, keys
from lm.system import errors

ROOT = Path(__file__).resolve().parents[1]

INTRODUCTION = """\
<!-- Generated from lm/config/schema/ by `python -m tools.config_docs`. Edit there, then run it again. -->

# Configuration reference

One YAML file describes one run. Only `data.source` and a length (`trainer.max_steps` or `trainer.max_tokens`) must be given:

```yaml
# yaml-language-server: $schema=docs/config.schema.json
data:
  source:
    format: txt
    files: data/tiny_corpus.txt
trainer:
  max_steps: 500
```

The first line is for editors: with it they complete keys, show their meaning and mark mistakes. The path is relative to the YAML file
(`../docs/config.schema.json` from `configs/`).

## How values are written

- YAML 1.2, a small part of it: mappings, lists, text, numbers, `true`, `false`, `null`. `3e-5` is a number; `on`, `off`, `yes`, `no` are
  text; `010`, `0x10` and `1_000` are not numbers. A whole number may be written `1000`, `1e3` or `1000.0`.
- Refused: unknown keys, a key given twice, anchors, aliases, merge keys, tags, tabs for indentation, more than one document, a byte order
  mark, files over 1 MiB, nesting deeper than 32.
- Paths, `files` among them, are relative to the directory in which the command is run, not to the YAML file.

## On the command line

Any key can be given after the file, as `--section.key value` or `--section.key=value`, and takes the place of the file's value:

```
python train.py --config config_smoke.yaml --optimizer.lr 3e-5 --optimizer.betas "[0.9, 0.99]" --data.source.files=a.txt
```

- Values are written as in YAML: `null` for none, `[a, b]` for a list, `{format: txt, files: a.txt}` for a section. Only for keys that take
  nothing but text is the value taken letter by letter, quotes and brackets included.
- A list is given as a whole, of sections too: `--data.source.parts "[{weight: 1, source: {format: txt, files: a.txt}}]"`.
- A value may begin with `-`; one that begins with `--` needs the form with `=`. The same key twice is refused.
- `--print-config` shows the values that result, and where each came from. What it prints can be saved and loaded.

## Mistakes

All are reported together, one line each, before anything heavy is loaded, and the exit code is 2:

```
config.yaml:12: optimizer.lr: not a number, got "fast", write a number > 0 and <= 10
config.yaml:15: trainer.lr: unknown key, got 3.0e-5, did you mean optimizer.lr?
command line: --trainer.max_steps: too small, got -3, write a whole number >= 1 or null
```

A file that cannot be read at all is named without a line.
"""


def reference() -> str:
    """The whole text of docs/CONFIG_REFERENCE.md."""
    parts = [INTRODUCTION]
    for name in keys()[""].children:
        section = keys()[name]
        parts.append(f"\n## `{name}`\n\n{section.description}\n\n{_table(section)}")
    return "".join(parts)


def generated() -> dict[Path, str]:
    """What each generated file should hold."""
    schema = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    return {
        ROOT / "docs/CONFIG_REFERENCE.md": reference(),
        ROOT / "docs/config.schema.json": schema,
    }


def main() -> None:
    """Write the files or, with --check, exit with 1 where one of them is not what it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.config_docs", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 and name what is stale"
    )
    check = parser.parse_args().check
    stale = [
        path
        for path, text in generated().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        print(
            f"{path.relative_to(ROOT)}:"
            f" {'stale, run python -m tools.config_docs' if check else 'written'}"
        )
        if not check:
            _write(path, generated()[path])
    sys.exit(1 if check and stale else 0)


def _table(section: Key) -> str:
    """The keys of a section, and below each section's row the keys inside it."""
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


def _write(path: Path, text: str) -> None:
    """Replace the file in one step, so that nobody reads half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).chmod(0o644)
    Path(name).replace(path)


if __name__ == "__main__":
    errors.run(main)
