"""Documents from files and datasets: one generator per format, and one reader that decides about rows that are not documents.

A generator takes a file's path (or a dataset's id) and its section of the configuration, and yields for each row a `Document`, or the
`Fault` that keeps it from being one. It holds few rows at a time. A new format is a generator, a row in `SOURCES` and a section in
`lm/schema/data.py`.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import glob
import itertools
import json
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lm.errors import DataError
from lm.schema.data import HubSource, JsonlSource, ParquetSource, Source, TextSource

NumberedLines = Iterable[tuple[int, bytes]]  # pieces of a file, each with the number of its first line


class Document(NamedTuple):
    """A text, and where it stands: `file:line` of its first line, or of its row."""

    text: str
    place: str


class Fault(NamedTuple):
    """A row that is not a document: where it stands, what is wrong with it (skipped rows are counted by this), and the particulars."""

    place: str
    kind: str
    detail: str


class Reader:
    """All documents of a source, in the same order each time it is iterated.

    Attributes:
        files: the source's files, sorted, each once; for a hub dataset its id.
        skipped: what the latest pass left out, by kind. Documents of white space alone are always left out; rows that cannot be read, where
            `on_bad_row` is "skip".

    Raises (when made, and when iterated):
        DataError: a file cannot be read; or, where `on_bad_row` is "stop", a row.
    """

    def __init__(self, source: Source, key: str = "data.source", on_bad_row: str = "stop"):
        self.source = source
        self.key = key
        self.on_bad_row = on_bad_row
        found = [source.dataset] if isinstance(source, HubSource) else find_files(source.files, f"{key}.files")
        self.files = sorted({Path(file).resolve(): file for file in reversed(found)}.values())
        self._named_twice = len(found) - len(self.files)
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Document]:
        self.skipped = Counter({"file named twice": self._named_twice} if self._named_twice else {})
        for file in self.files:
            empty = True
            with reading(file, self.key):
                for row in SOURCES[self.source.format](file, self.source):
                    blank = isinstance(row, Document) and (not row.text or row.text.isspace())
                    empty = empty and blank
                    if isinstance(row, Fault):
                        self._skip(row)
                    elif blank:
                        self.skipped["empty document"] += 1
                    else:
                        yield row
            if empty:
                self._skip(Fault(file, "empty file", "there is no text in it"))

    def identity(self) -> dict[str, Any]:
        """JSON that changes when the documents do: the section, and each file's path, size and time of change, or the dataset's version."""
        section = self.source.model_dump(exclude={"files"})
        if isinstance(self.source, HubSource):
            return {**section, "version": load_hub(self.source)._fingerprint}
        with reading("a file", self.key):
            stats = [(str(Path(file).resolve()), Path(file).stat()) for file in self.files]
        return {**section, "files": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]}

    def _skip(self, fault: Fault) -> None:
        if self.on_bad_row == "stop":
            raise DataError(f"{fault.place}: {fault.kind}: {fault.detail}; mend it, or leave such rows out with data.on_bad_row: skip")
        self.skipped[fault.kind] += 1


def find_files(patterns: list[str], key: str) -> list[str]:
    """The files that paths and globs name, `~` expanded, as often as they are named. DataError (blaming `key`) where there is none."""
    found = []
    for pattern in patterns:
        path = Path(os.path.expanduser(pattern))  # noqa: PTH111 - Path.expanduser fails where ~name is nobody
        with reading(pattern, key):
            # A name with a bracket in it is first of all a name.
            names = [str(path)] if path.exists() else glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob: relative only
            files = [name for name in names if Path(name).is_file()]
        if path.is_dir():
            raise DataError(f"{key}: {pattern} is a folder; name its files, such as {path / '*.txt'}")
        if not files:
            fault = "is not an ordinary file" if path.exists() else "matches no file" if set("*?[") & set(pattern) else "does not exist"
            raise DataError(f"{key}: {pattern} {fault}; relative paths start in {Path.cwd()}")
        found += files
    return found


@contextlib.contextmanager
def reading(file: str, key: str) -> Iterator[None]:
    """Whatever the operating system refuses in here is a DataError that names the file and the key."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{key}: {file} cannot be read ({error.strerror or _first_line(error)})") from error


def read_txt(file: str, source: TextSource) -> Iterator[Document | Fault]:
    """Lines, paragraphs (up to a blank line) or the whole of a UTF-8 file. Windows line ends become plain ones."""
    with Path(file).open("rb") as stream:
        for number, raw in UNITS[source.unit](_lines(stream)):
            text = _decode(raw, file, number)
            yield text if isinstance(text, Fault) else Document(text.replace("\r\n", "\n"), f"{file}:{number}")


def _paragraphs(lines: NumberedLines) -> NumberedLines:
    for blank, group in itertools.groupby(lines, key=lambda line: not line[1].strip()):
        if not blank:
            number, first = next(group)
            yield number, (first + b"".join(line for _, line in group)).rstrip(b"\r\n")


UNITS: dict[str, Callable[[NumberedLines], NumberedLines]] = {
    "line": lambda lines: ((number, line.rstrip(b"\r\n")) for number, line in lines),
    "paragraph": _paragraphs,
    "file": lambda lines: [(1, b"".join(line for _, line in lines))],
}


def read_jsonl(file: str, source: JsonlSource) -> Iterator[Document | Fault]:
    """The string under `text_key` of each line's JSON object. Blank lines are empty documents."""
    with Path(file).open("rb") as stream:
        for number, raw in _lines(stream):
            text = _decode(raw, file, number)
            yield text if isinstance(text, Fault) else _from_json(text, f"{file}:{number}", source.text_key)


def _from_json(line: str, place: str, key: str) -> Document | Fault:
    if not line.strip():
        return Document("", place)
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return Fault(place, "broken JSON", f"{error.msg} at column {error.colno}")
    except (ValueError, RecursionError):
        return Fault(place, "broken JSON", "nested too deeply, or a number of too many digits")
    if not isinstance(row, dict):
        return Fault(place, "not a JSON object", f'a line must look like {{"{key}": "..."}}, this one is {reprlib.repr(row)}')
    if key not in row:
        return Fault(place, f"no key {key!r}", f"there are {reprlib.repr(list(row))}; text_key names the one that holds the text")
    return _from_value(row[key], place)


def read_parquet(file: str, source: ParquetSource) -> Iterator[Document | Fault]:
    """The column `text_key`, in batches of rows."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            _check_column(file, source.text_key, table.schema_arrow.names)
            batches = table.iter_batches(batch_size=1000, columns=[source.text_key])
            values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
            for number, value in enumerate(values, 1):
                place = f"{file}:{number}"
                try:
                    yield _from_value(value.as_py(), place)
                except UnicodeDecodeError as error:
                    yield Fault(place, "not UTF-8", f"byte {error.object[error.start]:#04x}")
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: not a readable parquet file ({_first_line(error)})") from error


def read_hub(dataset: str, source: HubSource) -> Iterator[Document | Fault]:
    """The column `text_key` of a Hugging Face dataset. Places are its id and the row's number."""
    table = load_hub(source)
    _check_column(dataset, source.text_key, table.column_names)
    batches = table.select_columns([source.text_key]).iter(batch_size=1000)
    values = itertools.chain.from_iterable(batch[source.text_key] for batch in batches)
    for number, value in enumerate(values, 1):
        yield _from_value(value, f"{dataset}:{number}")


@functools.cache
def load_hub(source: HubSource) -> Any:
    """Download a dataset, or find it in the hub's own cache; no code of the dataset's is run. Raises DataError where it cannot be had."""
    import datasets

    try:
        return datasets.load_dataset(source.dataset, source.config, split=source.dataset_split)
    except Exception as error:  # network, hub, cache, formats: the library has no common type for what it raises
        raise DataError(
            f"dataset {source.dataset!r}, config {source.config!r}, dataset_split {source.dataset_split!r}: cannot be loaded "
            f"({_first_line(error)}); check the names, and fetch it once while online: later runs find it in the hub's cache"
        ) from error


Generator = Callable[[str, Any], Iterator[Document | Fault]]
SOURCES: dict[str, Generator] = {"txt": read_txt, "jsonl": read_jsonl, "parquet": read_parquet, "hub": read_hub}


def _lines(stream: Iterable[bytes]) -> NumberedLines:
    """Lines with their ends, counted from 1, without a byte order mark. Only \\n ends a line: str.splitlines knows ten more ends."""
    for number, line in enumerate(stream, 1):
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _decode(raw: bytes, file: str, first_line: int) -> str | Fault:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        number = first_line + raw.count(b"\n", 0, error.start)
        return Fault(f"{file}:{number}", "not UTF-8", f"byte {raw[error.start]:#04x}; a text in another encoding can be converted")


def _from_value(value: object, place: str) -> Document | Fault:
    if not isinstance(value, str):
        return Fault(place, "text is not a string", f"it is {reprlib.repr(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return Fault(place, "half a surrogate pair", f"{value[error.start]!a} is no character, so UTF-8 cannot hold it")
    return Document(value, place)


def _check_column(file: str, key: str, names: list[str]) -> None:
    if key not in names:
        raise DataError(f"{file}: no column {key!r}; there are {reprlib.repr(names)}; text_key names the one that holds the text")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no details"])[0].rstrip(".")
