"""Define checkpoints that nobody should load: a small change to a good one, and the commands that
must refuse it.

An attacker can compute hashes. The manifest is therefore made valid again after the change, unless
the test is about the damage itself.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from lm.checkpoints.folder import hash_of_table
from lm.system.disk import fingerprint
from tests.checkpoints.test_weights import HOSTILE, with_header

STEP = "step-00000003.ckpt"
# This file appears in the current folder if anything in a checkpoint is executed.
CANARY = "EXECUTED"
STATE, WEIGHTS, AVERAGE, META, TOKENIZER, MANIFEST = (
    *("train_state.pt", "model.safetensors", "ema.safetensors"),
    *("meta.json", "tokenizer.json", "manifest.json"),
)
RESUMES = frozenset({"resume", "auto"})
TRAINS = RESUMES | {"init"}
# list.py reads no tensors and no tokenizer. It shows what is damaged and goes on.
READS = TRAINS | {"infer", "eval"}
ESCAPE = "\x1b[2J\x9b31m"


@dataclass(frozen=True)
class Case:
    """One hostile or broken checkpoint."""

    name: str
    change: Callable[[Path], None]
    refused_by: frozenset[str]
    named: str
    """What the message has to name."""
    sealed: bool = True
    listed_as_damaged: bool = False


def seal(path: Path) -> None:
    """Make the manifest valid again."""
    files = {
        file.name: fingerprint(file)
        for file in sorted(path.iterdir())
        if file.is_file() and file.name != MANIFEST
    }
    write_manifest(path, files)


def write_manifest(path: Path, files: dict[str, Any]) -> None:
    (path / MANIFEST).write_text(json.dumps({"files": files, "sha256": hash_of_table(files)}))


class Runs:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Builds(dict[str, Any]):
    """An object that sets attributes when it is unpickled, through __setstate__."""

    def __setstate__(self, state: Any) -> None:
        Path(CANARY).touch()


def built_up() -> Builds:
    value = Builds()
    value.attribute = 1  # type: ignore[attr-defined]  # what __setstate__ is called with
    return value


def made_directory() -> Runs:
    return Runs(os.mkdir, CANARY)


def ran_code() -> Runs:
    return Runs(exec, f"open({CANARY!r}, 'w')")


def in_zip(value: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def put(name: str, content: bytes | str | Callable[[], bytes]) -> Callable[[Path], None]:
    """Return a change that gives a file other content."""

    def change(path: Path) -> None:
        given = content() if callable(content) else content
        (path / name).write_bytes(given.encode() if isinstance(given, str) else given)

    return change


def state(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the content of train_state.pt. A value that `edit` returns replaces it."""

    def change(path: Path) -> None:
        value = torch.load(path / STATE, weights_only=True)
        edited = edit(value)
        torch.save(value if edited is None else edited, path / STATE)

    return change


def moment(edit: Callable[[torch.Tensor], Any]) -> Callable[[Path], None]:
    """Change the first tensor of the optimiser's state."""
    return state(
        lambda value: value["optimizer"]["state"][0].update(
            exp_avg=edit(value["optimizer"]["state"][0]["exp_avg"])
        )
    )


def meta(*keys: str, **values: Any) -> Callable[[Path], None]:
    """Remove dotted keys from meta.json, or set them (with __ for the dot)."""

    def change(path: Path) -> None:
        content = json.loads((path / META).read_text())
        for key, value in [
            *((key, ...) for key in keys),
            *((key.replace("__", "."), value) for key, value in values.items()),
        ]:
            *sections, last = key.split(".")
            section = content
            for part in sections:
                section = section[part]
            if value is ...:
                del section[last]
            else:
                section[last] = value
        (path / META).write_text(json.dumps(content))

    return change


def both(content: Callable[[Path], bytes]) -> Callable[[Path], None]:
    """Replace the weights and the averaged weights. A resume reads the first file, every other
    command the second.
    """

    def change(path: Path) -> None:
        made = content(path)
        for name in (WEIGHTS, AVERAGE):
            (path / name).write_bytes(made)

    return change


def weights(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Change the files of the weights."""

    def content(path: Path) -> bytes:
        tensors = load_file(path / WEIGHTS)
        edit(tensors)
        return save({name: tensor.contiguous() for name, tensor in tensors.items()})

    return both(content)


def in_place_of(*names: str, thing: str) -> Callable[[Path], None]:
    """Put a folder, a pipe or a link in the place of a file."""

    def change(path: Path) -> None:
        for name in names:
            (path / name).unlink()
            if thing == "folder":
                (path / name).mkdir()
            elif thing == "pipe":
                os.mkfifo(path / name)
            else:
                (path / name).symlink_to(name if thing == "itself" else thing)

    return change


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(tensors)


def fill(value: float) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors[first(tensors)].view(-1)[3:4].fill_(value)


def zip_bomb() -> bytes:
    """Return a zip file of two megabytes whose first tensor is half a gigabyte of zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"step": 3, "optimizer": {}}, 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(2**29))
    return file.getvalue()


def other_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../escaped.txt", "x")
        archive.writestr("run.py", f"open({CANARY!r}, 'w')")
    return file.getvalue()


def old_tar() -> bytes:
    """Return a file in the tar format before 2018, with a pickle in each member."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(made_directory(), 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def torchscript() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    return file.getvalue()


def in_loop() -> list[Any]:
    value: list[Any] = []
    for _ in range(3000):
        value = [value]
    return value


def deep_pickle() -> bytes:
    return b"\x80\x02" + b"(" * 200_000 + b"l" * 200_000 + b"."


def claimed_storage() -> bytes:
    """Return a pickle of the old format that claims 2**46 bytes of storage."""
    good = in_zip({"step": 3, "x": torch.zeros(8)}, _use_new_zipfile_serialization=False)
    return good.replace(b"K\x08", b"\x8a\x06" + (2**44).to_bytes(6, "little"))


def rename_first(new: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors.update({new: tensors.pop(first(tensors))})


def other_architecture(path: Path) -> bytes:
    from lm.config.schema.model import ModelConfig
    from model import Decoder

    return save(
        dict(
            Decoder(
                ModelConfig(
                    vocab_size=260,
                    d_model=32,
                    n_layers=2,
                    n_heads=2,
                    context_length=16,
                    mlp="gelu",
                    norm="layernorm",
                    positions="learned",
                    bias=True,
                )
            ).named_parameters()
        )
    )


def tokenizer(edit: Callable[[dict[str, Any]], Any], **in_meta: Any) -> Callable[[Path], None]:
    """Replace the tokenizer, and put its hash into meta.json."""

    def change(path: Path) -> None:
        from lm.tokenizer.tokenizer import _digest

        definition = json.loads((path / TOKENIZER).read_text())
        edit(definition)
        (path / TOKENIZER).write_text(json.dumps(definition))
        meta(tokenizer__sha256=_digest((path / TOKENIZER).read_text()), **in_meta)(path)

    return change


def with_manifest(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        files = json.loads((path / MANIFEST).read_text())["files"]
        edit(files)
        write_manifest(path, files)

    return change


def swapped(path: Path) -> None:
    (path / WEIGHTS).rename(path / "x")
    (path / AVERAGE).rename(path / WEIGHTS)
    (path / "x").rename(path / AVERAGE)


def added(name: str, content: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text(content) and None


def removed(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def _state_cases() -> list[Case]:
    changes: dict[str, Callable[[Path], None]] = {
        "a pickle that makes a directory": put(STATE, lambda: pickle.dumps(made_directory(), 2)),
        "a pickle that runs code": put(STATE, lambda: pickle.dumps(ran_code(), 0)),
        "a pickle of protocol 5 that runs code": put(STATE, lambda: pickle.dumps(ran_code(), 5)),
        "torch's zip with code in it": put(STATE, lambda: in_zip(made_directory())),
        "torch's zip that sets attributes": put(
            STATE, lambda: in_zip({"step": 3, "optimizer": built_up()})
        ),
        "torch's old format with code in it": put(
            STATE, lambda: in_zip(made_directory(), _use_new_zipfile_serialization=False)
        ),
        "torch's oldest format with code in it": put(STATE, old_tar),
        "code beside the optimiser": state(lambda value: value.update(more=made_directory())),
        "code deep in the optimiser's state": state(
            lambda value: value["optimizer"]["state"][0].update(exp_avg=ran_code())
        ),
        "code in the optimiser's groups": state(
            lambda value: value["optimizer"]["param_groups"][0].update(lr=made_directory())
        ),
        "code as a key": state(
            lambda value: value["optimizer"]["state"].update({made_directory(): 1})
        ),
        "code as the step": state(lambda value: value.update(step=ran_code())),
        "code for the scaler": state(lambda value: value.update(scaler=made_directory())),
        "names of classes to build": state(
            lambda value: value.update(_instantiator="os.mkdir", _class_path=CANARY)
        ),
        "TorchScript": put(STATE, torchscript),
        "a zip of something else": put(STATE, other_zip),
        "a zip bomb": put(STATE, zip_bomb),
        "nothing": put(STATE, b""),
        "noise": put(STATE, bytes(range(256)) * 8),
        "cut in half": (
            lambda path: (
                (path / STATE).write_bytes(
                    (path / STATE).read_bytes()[: (path / STATE).stat().st_size // 2]
                )
                and None
            )
        ),
        "weights in its place": lambda path: shutil.copyfile(path / WEIGHTS, path / STATE) and None,
        "a pickle nested 200,000 deep": put(STATE, deep_pickle),
        "storage that is only claimed": put(STATE, claimed_storage),
        "a list": state(lambda value: [value]),
        "no step": state(lambda value: value.pop("step") and None),
        "no optimiser": state(lambda value: value.pop("optimizer") and None),
        "a step in words": state(lambda value: value.update(step="3")),
        "the step of another": state(lambda value: value.update(step=2)),
        "a step that is true": state(lambda value: value.update(step=True)),
        "an optimiser of another kind": state(lambda value: value.update(optimizer=[1, 2])),
        "an optimiser without state": state(lambda value: value["optimizer"].update(state={})),
        "one weight without state": state(
            lambda value: value["optimizer"]["state"].pop(0) and None
        ),
        "state of a weight too many": state(
            lambda value: value["optimizer"]["state"].update({999: value["optimizer"]["state"][0]})
        ),
        "state by name": state(
            lambda value: value["optimizer"]["state"].update(x=value["optimizer"]["state"].pop(0))
        ),
        "no groups": state(lambda value: value["optimizer"].update(param_groups=[])),
        "groups of another optimiser": state(
            lambda value: value["optimizer"]["param_groups"].append({"params": [0]})
        ),
        "a group of numbers that are words": state(
            lambda value: value["optimizer"]["param_groups"][0].update(params=["a"])
        ),
        "no second moment": state(
            lambda value: value["optimizer"]["state"][0].__delitem__("exp_avg_sq")
        ),
        "a moment of another shape": moment(lambda tensor: tensor.reshape(-1)[:-1].clone()),
        "a moment of no numbers": moment(lambda tensor: torch.zeros(0)),
        "a moment of another type": moment(lambda tensor: tensor.double()),
        "a moment of whole numbers": moment(lambda tensor: tensor.long()),
        "a moment that is NaN": moment(lambda tensor: tensor * float("nan")),
        "a moment that is a list": moment(lambda tensor: tensor.tolist()),
        "a moment without memory": moment(lambda tensor: tensor.to("meta")),
        "a sparse moment": moment(lambda tensor: tensor.to_sparse()),
        "one number as a terabyte": moment(lambda tensor: torch.zeros(1).expand(2**20, 2**18)),
    }
    return [
        Case(f"train_state.pt: {name}", change, RESUMES, STATE) for name, change in changes.items()
    ]


def _weights_cases() -> list[Case]:
    changes: dict[str, Callable[[Path], None]] = {
        **{name: both(lambda path, content=content: content) for name, content in HOSTILE.items()},  # type: ignore[misc]
        "a pickle that runs code": both(lambda path: pickle.dumps(ran_code(), 2)),
        "torch's zip with code in it": both(lambda path: in_zip(made_directory())),
        "a zip bomb": both(lambda path: zip_bomb()),
        "nothing": both(lambda path: b""),
        "metadata that is no text": both(
            lambda path: with_header({"__metadata__": {"format": [1]}})
        ),
        "a tensor of another shape": weights(
            lambda tensors: tensors.update({first(tensors): torch.zeros(3, 3)})
        ),
        "a tensor of another type": weights(
            lambda tensors: tensors.update({first(tensors): tensors[first(tensors)].half()})
        ),
        "a missing tensor": weights(lambda tensors: tensors.pop(first(tensors))),
        "a tensor too many": weights(lambda tensors: tensors.update(more=torch.zeros(2))),
        "a name that climbs": weights(rename_first("../../escaped")),
        "a name that commands the terminal": weights(rename_first(f"a{ESCAPE}\nb")),
        "a weight that is NaN": weights(fill(float("nan"))),
        "a weight that is infinite": weights(fill(float("-inf"))),
        "another architecture": both(other_architecture),
    }
    return [
        Case(f"weights: {name}", change, READS, "safetensors") for name, change in changes.items()
    ] + [
        Case("weights: only the averaged ones are NaN", _only_average_nan, READS, AVERAGE),
        Case(
            "weights: only the averaged ones run code",
            put(AVERAGE, lambda: pickle.dumps(ran_code(), 2)),
            READS,
            AVERAGE,
        ),
    ]


def _only_average_nan(path: Path) -> None:
    tensors = load_file(path / AVERAGE)
    fill(float("nan"))(tensors)
    (path / AVERAGE).write_bytes(save(tensors))


def _meta_cases() -> list[Case]:
    at_once = {  # found by every command that opens the checkpoint, list.py too
        "a pickle that runs code": put(META, lambda: pickle.dumps(ran_code(), 0)),
        "nothing": put(META, ""),
        "a list": put(META, "[]"),
        "nested 100,000 deep": put(META, "[" * 100_000),
        "not UTF-8": put(META, b'{"format": 1, "step": "\xff"}'),
        "100 MB of spaces": put(META, lambda: b" " * 10**8),
        "a number of 5,000 digits": put(META, '{"format": ' + "1" * 5000 + "}"),
        "a future format": meta(format=2),
        "a format in words": meta(format=ESCAPE),
        "a format of fractions": meta(format=1.5),
        "no format": meta("format"),
        "no step": meta("step"),
        "no model": meta("model"),
        "no tokenizer": meta("tokenizer"),
        "no config": meta("config"),
        "a negative step": meta(step=-3),
        "a step in words": meta(step="3"),
        "another step": meta(step=4),
        "a step of 401 digits": meta(step=10**400),
        "a model in words": meta(model=ESCAPE),
        "a tokenizer that is a list": meta(tokenizer=[]),
        "a config that is null": meta(config=None),
    }
    model = {
        "a context in words": meta(model__context_length="long"),
        "a context that is a list": meta(model__context_length=[16]),
        "a model with an unknown key": meta(model__flavour="x"),
        "a model with an unknown key that commands the terminal": meta(
            **{f"model__{ESCAPE}": ESCAPE}
        ),
        "a model without width": meta(model__d_model=0),
        "a width of 31 digits": meta(model__d_model=10**30),
        "a width of a billion": meta(model__d_model=10**9),
        "a billion layers": meta(model__n_layers=10**9),
        "a vocabulary of 2**62": meta(model__vocab_size=2**62),
        "a vocabulary that is null": meta(model__vocab_size=None),
        "heads that do not divide the width": meta(model__n_heads=5),
        "dropout that is NaN": meta(model__dropout=float("nan")),
        "another architecture": meta(model__mlp="gelu", model__norm="layernorm"),
        "an architecture of the future": meta(model__norm="quantumnorm"),
    }
    tokenizer_facts = {
        "a tokenizer without a name": meta("tokenizer.name"),
        "a tokenizer without a hash": meta("tokenizer.sha256"),
        "a tokenizer of another hash": meta(tokenizer__sha256="0" * 64),
        "a hash that is a list": meta(tokenizer__sha256=[1]),
        "an end-of-text in words": meta(tokenizer__eos_id=ESCAPE),
        "an end-of-text that is infinite": meta(tokenizer__eos_id=float("inf")),
    }
    config = {
        "a config of nothing": meta(config={}),
        "a config with an unknown key": meta(config__flavour="x"),
        "a config with a key that commands the terminal": meta(**{f"config__{ESCAPE}": ESCAPE}),
        "a config with values of other types": meta(config__trainer="x"),
        "a config without a tokenizer's name": meta(
            "config.tokenizer.name", config__tokenizer__x=1
        ),
        "a config that is not finite": meta(config__optimizer__lr=float("nan")),
    }
    machine = {
        "versions that are a list": meta(versions=[]),
        "no version of torch": meta(versions={}),
        "a training time in words": meta(seconds=ESCAPE),
        "a training time that is NaN": meta(seconds=float("nan")),
        "a training time of 401 digits": meta(seconds=10**400),
        "a stream's commit that is a path": meta(revisions={"data.source": "../../.."}),
        "a stream's commit without a stream": meta(revisions=["0" * 40]),
    }
    shown = {  # only list.py shows it
        "an epoch of 401 digits": meta(epoch=10**400),
        "infinitely many tokens": meta(tokens=float("inf")),
        "tokens of 401 digits": meta(tokens=10**400),
        "a negative number of weights": meta(n_parameters=-1),
        "weights of 401 digits": meta(n_parameters=10**400),
    }
    return [
        *(
            Case(f"meta.json: {name}", change, READS, META, listed_as_damaged=True)
            for name, change in at_once.items()
        ),
        *(
            Case(f"meta.json: {name}", change, frozenset(), META, listed_as_damaged=True)
            for name, change in shown.items()
        ),
        Case(
            "meta.json: a parent in words",  # a fine-tuning compares it with its base
            meta(parent=ESCAPE),
            RESUMES,
            META,
            listed_as_damaged=True,
        ),
        Case(
            "meta.json: a vocabulary smaller than the tokenizer's",
            meta(model__vocab_size=100),
            READS,
            TOKENIZER,
        ),
        *(
            Case(f"meta.json: {name}", change, frozenset({"infer", "eval"}), STEP)
            for name, change in model.items()
        ),
        *(
            Case(f"meta.json: {name}", change, READS, STEP)
            for name, change in tokenizer_facts.items()
        ),
        *(Case(f"meta.json: {name}", change, RESUMES, META) for name, change in config.items()),
        *(Case(f"meta.json: {name}", change, RESUMES, META) for name, change in machine.items()),
    ]


def _tokenizer_cases() -> list[Case]:
    def grown(definition: dict[str, Any]) -> None:
        definition["model"]["vocab"] |= {f"w{i}": 260 + i for i in range(50)}

    changes = {
        "a pickle that runs code": put(TOKENIZER, lambda: pickle.dumps(ran_code(), 2)),
        "cut in half": (
            lambda path: (
                (path / TOKENIZER).write_text((path / TOKENIZER).read_text()[:500]) and None
            )
        ),
        "nothing": put(TOKENIZER, ""),
        "a list": put(TOKENIZER, "[]"),
        "nested 100,000 deep": put(TOKENIZER, "[" * 100_000),
        "a model of no known kind": tokenizer(
            lambda definition: definition["model"].update(type="Pickle")
        ),
        "no model": tokenizer(lambda definition: definition.pop("model") and None),
        "no words": tokenizer(
            lambda definition: definition.update(
                added_tokens=[], model=definition["model"] | {"vocab": {}}
            )
        ),
        "more words than the model has rows": tokenizer(grown),
        "a word with the number 2**31": tokenizer(
            lambda definition: definition["model"]["vocab"].update(x=2**31)
        ),
        "a negative number for a word": tokenizer(
            lambda definition: definition["model"]["vocab"].update(x=-1)
        ),
        "a pattern that is none": tokenizer(
            lambda definition: definition.update(
                normalizer={"type": "Replace", "pattern": {"Regex": "(" * 50}, "content": ""}
            )
        ),
        "an end of text that it does not have": tokenizer(
            lambda definition: definition.update(version="1.0 "), tokenizer__eos_id=10**6
        ),
        "a negative end of text": tokenizer(
            lambda definition: definition["model"].update(fuse_unk=True), tokenizer__eos_id=-1
        ),
    }
    return [
        Case(f"tokenizer.json: {name}", change, READS, STEP) for name, change in changes.items()
    ]


def _folder_cases() -> list[Case]:
    """Return cases of damage that the manifest detects. Its maker cannot seal it, or did not."""
    infer_too = {
        "the weights' files swapped": (swapped, READS, "safetensors"),
        "folders in place of the weights": (
            in_place_of(WEIGHTS, AVERAGE, thing="folder"),
            READS,
            "safetensors",
        ),
        "pipes in place of the weights": (
            in_place_of(WEIGHTS, AVERAGE, thing="pipe"),
            READS,
            "safetensors",
        ),
        "links to /dev/zero in place of the weights": (
            in_place_of(WEIGHTS, AVERAGE, thing="/dev/zero"),
            READS,
            "safetensors",
        ),
        "links to themselves in place of the weights": (
            in_place_of(WEIGHTS, AVERAGE, thing="itself"),
            READS,
            "safetensors",
        ),
        "no averaged weights": (removed(AVERAGE), READS, AVERAGE),
        "a manifest that was edited": (
            put(MANIFEST, '{"files": {}, "sha256": "0"}'),
            READS,
            MANIFEST,
        ),
        "a manifest that is a pickle": (
            put(MANIFEST, lambda: pickle.dumps(ran_code(), 0)),
            READS,
            MANIFEST,
        ),
        "a manifest nested 100,000 deep": (put(MANIFEST, "[" * 100_000), READS, MANIFEST),
        "no manifest": (removed(MANIFEST), READS, MANIFEST),
        "a pipe in place of the manifest": (in_place_of(MANIFEST, thing="pipe"), READS, MANIFEST),
        "a link to /dev/zero in place of the manifest": (
            in_place_of(MANIFEST, thing="/dev/zero"),
            READS,
            MANIFEST,
        ),
        "a folder in place of the manifest": (
            in_place_of(MANIFEST, thing="folder"),
            READS,
            MANIFEST,
        ),
        "a pipe in place of meta.json": (in_place_of(META, thing="pipe"), READS, META),
        "a link to /dev/zero in place of meta.json": (
            in_place_of(META, thing="/dev/zero"),
            READS,
            META,
        ),
        "a folder in place of meta.json": (in_place_of(META, thing="folder"), READS, META),
        "meta.json changed by a blank": (
            lambda path: put(META, (path / META).read_text() + " ")(path),
            READS,
            META,
        ),
        "an entry of another kind": (
            with_manifest(lambda files: files.update({META: [1], WEIGHTS: None, AVERAGE: 3})),
            READS,
            ".ckpt/",
        ),
        "a pipe in place of tokenizer.json": (
            in_place_of(TOKENIZER, thing="pipe"),
            READS,
            TOKENIZER,
        ),
        "a link to /dev/zero in place of tokenizer.json": (
            in_place_of(TOKENIZER, thing="/dev/zero"),
            READS,
            TOKENIZER,
        ),
        "a folder in place of tokenizer.json": (
            in_place_of(TOKENIZER, thing="folder"),
            READS,
            TOKENIZER,
        ),
        "a link to itself in place of tokenizer.json": (
            in_place_of(TOKENIZER, thing="itself"),
            READS,
            TOKENIZER,
        ),
    }
    whole_only = {
        "a name in the manifest that climbs": (
            with_manifest(lambda files: files.update({"../../x": {"bytes": 1}})),
            "../../x",
        ),
        "an absolute name in the manifest": (
            with_manifest(lambda files: files.update({"/etc/passwd": {"bytes": 1}})),
            "/etc/passwd",
        ),
        "a name in the manifest that commands the terminal": (
            with_manifest(lambda files: files.update({ESCAPE: {}})),
            "is missing",
        ),
        "a file too many": (
            added("sitecustomize.py", f"open({CANARY!r}, 'w')"),
            "sitecustomize.py",
        ),
        "a pipe for the optimiser's state": (in_place_of(STATE, thing="pipe"), STATE),
        "a folder for the optimiser's state": (in_place_of(STATE, thing="folder"), STATE),
        "a link to /dev/zero for the optimiser's state": (
            in_place_of(STATE, thing="/dev/zero"),
            STATE,
        ),
        "the optimiser's state is missing": (removed(STATE), STATE),
    }
    listed = ("of the manifest", "a manifest", "no manifest", "of meta.json", "an entry of")
    return [
        *(
            Case(
                f"folder: {name}",
                change,
                who,
                named,
                sealed=False,
                listed_as_damaged=any(word in name for word in listed),
            )
            for name, (change, who, named) in infer_too.items()
        ),
        *(
            Case(
                f"folder: {name}",
                change,
                TRAINS,
                named,
                sealed=False,
                listed_as_damaged="commands" in name,
            )
            for name, (change, named) in whole_only.items()
        ),
    ]


CASES = [*_state_cases(), *_weights_cases(), *_meta_cases(), *_tokenizer_cases(), *_folder_cases()]
