"""Ray's processes make the same bytes as this one alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm.config.schema.source import JsonlSource
from lm.documents.reader import Reader
from lm.system.errors import DataError
from lm.tokenizer.tokenizer import ByteTokenizer
from lm.tokens.engines import in_this_process
from lm.tokens.prepare import Split, prepare


@pytest.fixture(scope="module", params=[1, 2])
def engine(request: pytest.FixtureRequest, starts_processes: None) -> Iterator[Any]:
    import ray  # needed: a cluster's engine that was never started is no engine

    from lm.tokens.ray_engine import on_ray

    ray.init(num_cpus=request.param, include_dashboard=False, log_to_driver=False)
    yield on_ray
    ray.shutdown()


def write(folder: Path, rows: int = 4000) -> Reader:
    for i in range(2):
        lines = (json.dumps({"text": f"document {i} {j} " + "x" * (j % 97)}) for j in range(rows))
        (folder / f"{i}.jsonl").write_text("\n".join(lines))
    return Reader(JsonlSource(format="jsonl", files=[str(folder / "*.jsonl")]))


def test_the_same_bytes_as_alone(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm.documents.files.SPAN_BYTES", 20_000)  # several pieces in each file
    reader = write(tmp_path)
    contents = []
    for name, by in (("alone", in_this_process), ("ray", engine)):
        (tmp_path / name).mkdir()
        manifest = prepare(tmp_path / name, reader, ByteTokenizer(), Split("hash", 0.1), by)
        contents.append(
            (manifest, {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.bin")})
        )
    assert contents[0] == contents[1]
    assert contents[0][0].splits["train"].documents > 5000


def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, engine: Any) -> None:
    reader = write(tmp_path, rows=20)
    with (tmp_path / "1.jsonl").open("a") as file:
        file.write("\nnot JSON")
    (tmp_path / "out").mkdir()
    with pytest.raises(
        DataError, match=r"1\.jsonl:21: broken JSON: Expecting value at column 1; correct it"
    ):
        prepare(tmp_path / "out", reader, ByteTokenizer(), Split("hash", 0.1), engine)
