"""Weights go to the disk once and come back the same, or not at all: python -m pytest
tests/checkpoints/test_weights.py.
"""

from __future__ import annotations

import errno
import json
import resource
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lm import load
from lm.checkpoints.folder import Checkpoint
from lm.checkpoints.weights import read_weights, write_state, write_weights
from lm.checkpoints.write import write_checkpoint, write_json
from lm.config.schema.model import ModelConfig
from lm.system.errors import CheckpointError
from lm.tokenizer.tokenizer import ByteTokenizer
from model import Decoder
from tests.support.faults import ROOT, sealed

EXPECTED = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


def decoder(tie_embeddings: bool) -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        ModelConfig(
            vocab_size=260,
            d_model=16,
            n_layers=1,
            n_heads=2,
            context_length=8,
            tie_embeddings=tie_embeddings,
        )
    )


def checkpoint(
    folder: Path,
    weights: dict[str, Tensor],
    average: dict[str, Tensor] | None = None,
    model: Any = None,
) -> Path:
    byte = ByteTokenizer()
    tokenizer = {
        "name": "byte",
        "sha256": byte.sha256,
        "vocab_size": 260,
        "eos_id": byte.eos_id,
        "pad_id": byte.pad_id,
    }
    meta = {"format": 1, "step": 3, "model": model or {}, "tokenizer": tokenizer, "config": {}}
    writers = {
        "model.safetensors": lambda path: write_weights(path, weights),
        "train_state.pt": lambda path: path.write_bytes(b"not read here"),
        "tokenizer.json": lambda path: path.write_text(byte.definition),
        "meta.json": lambda path: write_json(path, meta),
    }
    if average is not None:
        writers["ema.safetensors"] = lambda path: write_weights(path, average)
    path = folder / "step-00000003.ckpt"
    write_checkpoint(path, writers)
    return path


def refusal(path: Path, expected: dict[str, Tensor] = EXPECTED) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_weights(Checkpoint(path), expected)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(f"{path}/")


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_comes_back_the_same_and_a_tied_head_once(tmp_path: Path, tied: bool) -> None:
    saved = decoder(tied)
    path = checkpoint(
        tmp_path, dict(saved.named_parameters()), model=saved.config.model_dump(mode="json")
    )
    stored = load_file(path / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    assert sum(tensor.numel() for tensor in stored.values()) == saved.n_parameters
    loaded, tokenizer, meta = load(path)
    assert (
        loaded.n_parameters == saved.n_parameters and tokenizer.name == "byte" and meta["step"] == 3
    )
    assert not loaded.training
    for name, parameter in saved.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
    same_storage = loaded.lm_head.weight.data_ptr() == loaded.embed_tokens.weight.data_ptr()
    assert same_storage is tied and (loaded.lm_head.weight is loaded.embed_tokens.weight) is tied
    ids = torch.arange(6)[None]
    assert torch.equal(loaded(ids), saved.eval()(ids))
    if tied:  # further training must keep it one tensor
        with torch.no_grad():
            loaded.embed_tokens.weight += 1
        assert torch.equal(loaded.lm_head.weight, loaded.embed_tokens.weight)


def test_the_averaged_weights_are_preferred_and_never_replaced_in_silence(tmp_path: Path) -> None:
    average = {name: torch.ones_like(tensor) for name, tensor in EXPECTED.items()}
    path = checkpoint(tmp_path, EXPECTED, average)
    assert torch.equal(read_weights(Checkpoint(path), EXPECTED)["a"], torch.ones(2, 3))
    assert torch.equal(
        read_weights(Checkpoint(path), EXPECTED, averaged=False)["a"], torch.zeros(2, 3)
    )
    (path / "ema.safetensors").unlink()
    assert refusal(path) == "ema.safetensors is missing"


def test_odd_layouts_and_gradients_are_written_as_plain_tensors(tmp_path: Path) -> None:
    odd = torch.arange(6.0).reshape(3, 2).T.requires_grad_()
    path = checkpoint(tmp_path, {"a": odd, "b": torch.arange(8.0)[::2]})
    weights = read_weights(Checkpoint(path), EXPECTED)
    assert torch.equal(weights["a"], odd) and torch.equal(
        weights["b"], torch.tensor([0.0, 2, 4, 6])
    )
    assert not weights["a"].requires_grad


def test_whoever_may_read_the_folder_may_read_the_weights(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, EXPECTED)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
    assert modes["model.safetensors"] == modes["meta.json"]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (
            {"a": torch.zeros(3, 2)},
            "a is torch.float32 (3, 2), where the configured model has torch.float32 (2, 3)",
        ),
        (
            {"a": torch.zeros(2, 3, 1)},
            "a is torch.float32 (2, 3, 1), where the configured model has torch.float32 (2, 3)",
        ),
        (
            {"b": torch.zeros(4, dtype=torch.bfloat16)},
            "b is torch.bfloat16 (4,), where the configured model has torch.float32 (4,)",
        ),
        ({"b": torch.zeros(4, dtype=torch.float16)}, "b is torch.float16 (4,), where"),
        ({"b": torch.zeros(4, dtype=torch.float64)}, "b is torch.float64 (4,), where"),
        ({"b": torch.zeros(4, dtype=torch.int64)}, "b is torch.int64 (4,), where"),
        (
            {"c": torch.zeros(1)},
            (
                "c is not a weight of the model; the weights are of another model than the"
                " configuration describes"
            ),
        ),
    ],
)
def test_other_shapes_types_and_names_are_refused_by_name(
    tmp_path: Path, weights: dict[str, Tensor], said: str
) -> None:
    assert refusal(checkpoint(tmp_path, EXPECTED | weights)).startswith(
        f"model.safetensors: {said}"
    )


def test_a_missing_name(tmp_path: Path) -> None:
    assert refusal(checkpoint(tmp_path, {"b": torch.zeros(4)})).startswith(
        "model.safetensors: a is missing; the weights are of another"
    )


def test_expected_weights_need_no_memory(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, EXPECTED)
    on_meta = {name: tensor.to("meta") for name, tensor in EXPECTED.items()}
    assert read_weights(Checkpoint(path), on_meta)["a"].device.type == "cpu"


@pytest.mark.parametrize("file", ["model.safetensors", "meta.json"])
def test_a_flipped_bit_is_not_loaded(tmp_path: Path, file: str) -> None:
    """The safetensors library itself loads the damaged file without an error."""
    path = checkpoint(tmp_path, EXPECTED)
    content = bytearray((path / file).read_bytes())
    content[-3] ^= 4
    (path / file).write_bytes(content)
    if file == "model.safetensors":
        load_file(path / file)
    assert refusal(path) == f"{file} is damaged: its content is not what was saved"


@pytest.mark.parametrize("length", [0, 4, 8, 20, -1])
def test_a_cut_file_is_refused_by_the_manifest_and_by_the_format(
    tmp_path: Path, length: int
) -> None:
    path = checkpoint(tmp_path, EXPECTED)
    cut = (path / "model.safetensors").read_bytes()[:length]
    (path / "model.safetensors").write_bytes(cut)
    assert refusal(path) == "model.safetensors is damaged: its content is not what was saved"
    assert refusal(sealed(path, model__safetensors=cut)).startswith(
        "model.safetensors cannot be read: "
    )


def with_header(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: Any = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE = {
    "a header of 100 MB that is not there": with_header(b"{}", length=100_000_000),
    "a header of 8 EB": with_header(b"{}", length=2**63),
    "overlapping tensors": with_header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "the same bytes twice": with_header({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
    "a hole": with_header({"a": entry(4, 12)}, bytes(12)),
    "bytes behind the end": with_header({"a": entry(0, 800, [200])}, bytes(12)),
    "data of no tensor": with_header({"a": entry(0, 8)}, bytes(12)),
    "a negative size": with_header({"a": entry(0, 8, [-2])}, bytes(8)),
    "a size that overflows": with_header({"a": entry(0, 8, [2**40, 2**40])}, bytes(8)),
    "a size that only torch finds too large": with_header({"a": entry(0, 0, [0, 2**63])}),
    "an unknown type": with_header({"a": entry(0, 8, dtype="PICKLE")}, bytes(8)),
    "a type of half bytes": with_header({"a": entry(0, 6, [8], dtype="F6_E2M3")}, bytes(6)),
    "a nested header": with_header(b'{"a":' + b"[" * 100_000),
    "not JSON": with_header(b"import os"),
    "not UTF-8": with_header(b"\xff\xfe"),
    "a list": with_header([1]),
    "a pickle": b"\x80\x04cposix\nsystem\n.",
    "a name twice": with_header(
        b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 8)).encode(),) * 2), bytes(8)
    ),
    "a huge tensor of no bytes": save({"a": torch.zeros(0, 2**40), "b": torch.zeros(4)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_with_a_right_manifest_is_refused(tmp_path: Path, name: str) -> None:
    path = sealed(checkpoint(tmp_path, EXPECTED), model__safetensors=HOSTILE[name])
    assert Checkpoint(path).files["model.safetensors"]["bytes"] == len(HOSTILE[name])
    assert refusal(path).startswith("model.safetensors")


@pytest.mark.usefixtures("starts_processes")
def test_a_full_disk_is_a_checkpoint_error(tmp_path: Path) -> None:
    """Each library that writes tensors leads to a CheckpointError, although none raises an OSError
    of its own.
    """
    code = f"""
import resource
from pathlib import Path
import torch
from lm.checkpoints.write import write_checkpoint
from lm.system.errors import CheckpointError
from lm.checkpoints.weights import write_weights
large = {{"a": torch.zeros(100_000)}}
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
for writer in (lambda path: write_weights(path, large), lambda path: torch.save(large, path)):
    try:
        write_checkpoint(Path({str(tmp_path)!r}) / "step-00000001.ckpt", {{"x": writer}})
    except CheckpointError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    messages = done.stdout.splitlines()
    assert len(messages) == 2 and all(
        message.startswith(f"{tmp_path}/step-00000001.ckpt could not be written: ")
        for message in messages
    )
    assert "File too large" in messages[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_weights, write_state])
@pytest.mark.parametrize("room", [0, 100, 5000, 100_000])
def test_a_full_disk_is_told_in_the_systems_words(tmp_path: Path, write: Any, room: int) -> None:
    """The message is the system's. It is neither torch's "[enforce fail at inline_container.cc:672]
    . unexpected pos" nor safetensors' "Error while serializing".
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OSError) as refusal:
            write(tmp_path / "file", {"a": torch.zeros(100, 300), "b": torch.zeros(7)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (refusal.value.errno, refusal.value.strerror) == (errno.EFBIG, "File too large")


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("at", ["__init__", "__enter__", "__exit__"])
def test_a_save_that_is_interrupted_does_not_abort_the_process(tmp_path: Path, at: str) -> None:
    """A signal's handler may raise between any two operations of torch.save, as the one for a
    killed worker does.
    """
    code = f"""
import pathlib, torch
from lm.checkpoints.weights import write_state
writer = torch.serialization._open_zipfile_writer_buffer
real = getattr(writer, {at!r})
def interrupted(self, *arguments):
    if {at!r} == "__init__":
        real(self, *arguments)
    raise InterruptedError("a signal")
setattr(writer, {at!r}, interrupted)
try:
    write_state(pathlib.Path({str(tmp_path / "state.pt")!r}), {{"a": torch.ones(3)}})
except InterruptedError as error:
    print("raised:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "raised: a signal\n", "")
