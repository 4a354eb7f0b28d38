"""The path of the data, compared with slow, obvious versions: every token once, and the same rows
for any workers and processes.
"""

import json
import math
import tracemalloc
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from data import PackedDataModule, Rows, TrainingSteps, ValidationBatches
from lm.config.reader import load
from lm.config.schema.config import Config
from lm.documents.reader import hash_of_text
from lm.system.errors import ConfigError, DataError
from lm.system.machine import ROOT
from lm.tokenizer.tokenizer import ByteTokenizer, FastTokenizer, Tokenizer
from lm.tokens.corpus import _left_out
from lm.tokens.manifest import Manifest
from lm.tokens.plan import Plan
from lm.tokens.rows import DocumentRows, PackedRows
from lm.tokens.store import SplitWriter, TokenStore
from model import Decoder

BYTES = ByteTokenizer()
EOS, PAD = BYTES.eos_id, BYTES.pad_id


def write_jsonl(path, texts):
    """Write texts to a file and return its source section. A file that already holds them stays as
    it is, and its cache valid.
    """
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    if not path.exists() or path.read_text() != content:
        path.write_text(content)
    return {"format": "jsonl", "files": str(path)}


def make_config(tmp_path, source, length=8, trainer=None, **data):
    trainer = {"max_steps": 20, "batch_size": 8, "seed": 1, **(trainer or {})}
    data = {"source": source, "cache_dir": str(tmp_path / "cache"), **data}
    return Config(
        model={"context_length": length}, data=data, optimizer={"warmup_steps": 0}, trainer=trainer
    )


def module(
    tmp_path, texts, tokenizer=BYTES, place=(0, 1), say=lambda line: None, moving=True, **settings
):
    source = texts if isinstance(texts, dict) else write_jsonl(tmp_path / "texts.jsonl", texts)
    config = make_config(tmp_path, source, **settings)
    result = PackedDataModule(config, tokenizer, say, moving_rows=moving)
    result.trainer = SimpleNamespace(global_rank=place[0], world_size=place[1])
    return result


def make_store(folder, documents, dtype=np.uint16, shard_tokens=2**26):
    writer = SplitWriter(folder, "train", EOS, dtype, shard_tokens)
    ids = np.array([i for document in documents for i in (EOS, *document)], dtype)
    writer.add(
        ids,
        np.array([len(document) for document in documents]),
        np.zeros(len(documents), np.uint64),
        1,
    )
    return TokenStore(
        folder, "train", Manifest(dtype=np.dtype(dtype).name, splits={"train": writer.close()})
    )


def packed(store, length, document_mask=False, stride=None):
    """Return the rows of a single source."""
    return Rows([PackedRows(store, length, stride or length)], PAD, document_mask)


def numbered(rows, numbers):
    """Return the rows of these numbers, counted through all sources."""
    return rows[rows.addresses(np.array(numbers))]


def the_store(module, split):
    """Return the token store of a module with a single source."""
    (part,) = module.rows[split].parts
    return part.store


def texts_of(store):
    """Return the documents of a split, decoded from its stream of tokens."""
    bounds = [*store.document_starts.tolist(), store.tokens - 1]
    return [
        BYTES.decode(store.read(a, b - a)[1:]) if b - a > 1 else "" for a, b in pairwise(bounds)
    ]


def decoded(module, split):
    return [text for part in module.rows[split].parts for text in texts_of(part.store)]


TEXTS = [f"document {i} " + "x" * (i % 7) for i in range(200)]


# --- rows


def obvious_rows(documents, length):
    """Return rows of (input, label, number of the document), one position after the other. The
    number of padding is the last document's plus one.
    """
    stream = []
    for number, ids in enumerate(documents):
        stream += [(EOS, number)] + [(i, number) for i in ids]
    stream.append((EOS, len(documents)))
    pairs = [(token, following, number) for (token, number), (following, _) in pairwise(stream)]
    rows = []
    for start in range(0, len(pairs), length):
        row = pairs[start : start + length]
        row += [(PAD, -100, len(documents))] * (length - len(row))
        rows.append(row)
    return rows


documents = st.lists(st.lists(st.integers(0, 255), max_size=15), min_size=1, max_size=8)


@pytest.mark.usefixtures("takes_seconds")
@given(documents=documents, length=st.integers(2, 12), shard_tokens=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_rows_are_the_stream_and_its_successors(tmp_path_factory, documents, length, shard_tokens):
    store = make_store(tmp_path_factory.mktemp("rows"), documents, shard_tokens=shard_tokens)
    expected = obvious_rows(documents, length)
    rows = packed(store, length, document_mask=True)
    assert len(rows) == len(expected)
    found = numbered(rows, range(len(rows)))
    for i, row in enumerate(expected):
        inputs, labels, numbers = zip(*row, strict=True)
        assert found["input_ids"][i].tolist() == list(inputs)
        assert found["labels"][i].tolist() == list(labels)
        assert (found["document_ids"][i] - found["document_ids"][i][0]).tolist() == [
            number - numbers[0] for number in numbers
        ]
    without = numbered(packed(store, length), range(len(rows)))
    assert sorted(without) == ["input_ids", "labels"]
    assert all(torch.equal(without[name], found[name]) for name in without)


@pytest.mark.usefixtures("takes_seconds")
@given(documents=documents, length=st.integers(2, 12), batch_size=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_token_is_a_target_once_an_epoch(tmp_path_factory, documents, length, batch_size):
    """The tails also count. Positions in the stream replace the ids, so that all tokens differ."""
    folder = tmp_path_factory.mktemp("epoch")
    store = make_store(folder, documents, np.uint32)
    np.arange(store.tokens, dtype=np.uint32).tofile(folder / "train-00000.bin")
    rows = packed(store, length)
    steps = TrainingSteps(
        rows, Plan((len(rows),), seed=3), batch_size, micro_batch=1, rank=0, world_size=1
    )
    # The fewest steps that make whole epochs.
    n_steps = math.lcm(len(rows), batch_size) // batch_size
    labels = torch.cat([steps[k]["labels"].flatten() for k in range(n_steps)])
    seen = Counter(labels[labels != -100].tolist())
    assert seen == dict.fromkeys(range(1, store.tokens), n_steps * batch_size // len(rows))


def test_rows_have_any_shape_and_none_past_the_end_has_labels(tmp_path):
    rows = packed(make_store(tmp_path, [[1, 2, 3, 4]]), 2, document_mask=True)
    found = numbered(rows, [[0, 1, 2], [3, 4, 9]])
    assert {name: tuple(values.shape) for name, values in found.items()} == dict.fromkeys(
        found, (2, 3, 2)
    )
    assert found["labels"].dtype == found["input_ids"].dtype == torch.int64
    assert found["input_ids"].tolist() == [[[EOS, 1], [2, 3], [4, PAD]], [[PAD, PAD]] * 3]
    assert found["labels"].tolist() == [[[1, 2], [3, 4], [EOS, -100]], [[-100, -100]] * 3]


def test_an_id_that_looks_like_eos_does_not_part_a_document(tmp_path):
    rows = packed(make_store(tmp_path, [[1, EOS, 2], [3]]), 6, document_mask=True)
    assert numbered(rows, [0])["document_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]


@pytest.mark.usefixtures("takes_seconds")
@given(documents=documents, length=st.integers(2, 12), stride=st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_with_a_stride_rows_overlap_and_the_last_one_reaches_the_end(
    tmp_path_factory, documents, length, stride
):
    stride = min(stride, length)
    store = make_store(tmp_path_factory.mktemp("stride"), documents)
    (pairs,) = obvious_rows(documents, store.tokens - 1)  # the whole stream as one row
    starts = [
        start
        for start in range(0, len(pairs), stride)
        if start == 0 or start - stride + length < len(pairs)
    ]
    rows = packed(store, length, document_mask=True, stride=stride)
    assert len(rows) == len(starts)
    found = numbered(rows, range(len(rows)))
    for i, start in enumerate(starts):
        row = pairs[start : start + length]
        row += [(PAD, -100, len(documents))] * (length - len(row))
        inputs, labels, numbers = zip(*row, strict=True)
        assert found["input_ids"][i].tolist() == list(inputs)
        assert found["labels"][i].tolist() == list(labels)
        assert (found["document_ids"][i] - found["document_ids"][i][0]).tolist() == [
            number - numbers[0] for number in numbers
        ]
    assert (found["labels"][:-1] != -100).all(), "only the last row is padded"


def test_validation_never_overlaps(tmp_path):
    data = module(tmp_path, TEXTS, stride=3, document_mask=True, val_fraction=0.3)
    plain = module(tmp_path, TEXTS, document_mask=True, val_fraction=0.3)
    assert len(data.rows["train"]) > 2.5 * len(plain.rows["train"])
    assert all(map(equal, data.val_dataloader(), plain.val_dataloader()))
    assert data.sha256 == plain.sha256


def obvious_document_rows(documents, length):
    """Return rows of one document each, with its EOS before it. The EOS that follows is the last
    label.
    """
    rows = []
    for ids in documents:
        inputs, labels = [EOS, *ids], [*ids, EOS]
        for start in range(0, len(inputs), length):
            n = len(inputs[start : start + length])
            padding = length - n
            rows.append(
                (
                    inputs[start : start + length] + [PAD] * padding,
                    labels[start : start + length] + [-100] * padding,
                    [0] * n + [1] * padding,
                )
            )
    return rows


@pytest.mark.usefixtures("takes_seconds")
@given(
    documents=documents,
    length=st.integers(2, 12),
    shard_tokens=st.integers(1, 40),
    document_mask=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_rows_of_documents(tmp_path_factory, documents, length, shard_tokens, document_mask):
    store = make_store(tmp_path_factory.mktemp("rows"), documents, shard_tokens=shard_tokens)
    expected = obvious_document_rows(documents, length)
    rows = Rows([DocumentRows(store, length)], PAD, document_mask)
    assert len(rows) == len(expected)
    found = numbered(rows, range(len(rows)))
    names = ["input_ids", "labels", "document_ids"][: 2 + document_mask]
    assert list(found) == names
    for i, row in enumerate(expected):
        assert [found[name][i].tolist() for name in names] == list(row[: len(names)])


@pytest.mark.usefixtures("takes_seconds")
def test_rows_of_documents_through_the_module(tmp_path):
    """The documents are longer or shorter than a row. Each token is a label once an epoch, also in
    validation, and the log line shows the padding.
    """
    said = []
    texts = [*TEXTS[:100], *(f"{i} " + "long " * i for i in range(40))]
    data = module(tmp_path, texts, rows="document", val_fraction=0.2, say=said.append)
    expected = [
        row[:2]
        for row in obvious_document_rows(
            [list(text.encode()) for text in decoded(data, "train")], 8
        )
    ]
    steps = data.train_dataloader().dataset
    steps.batch_size = steps.micro_batch = 1
    found = [rows_in(steps[k])[0] for k in range(len(expected))]
    assert sorted(found) == sorted(expected) and found != expected
    for split in ("train", "val"):
        store, rows = the_store(data, split), len(data.rows[split])
        positions = sum(len(text.encode()) + 1 for text in decoded(data, split))
        padding = f"{rows:,} rows of 8, {1 - positions / rows / 8:.0%} of it padding"
        assert f"{split} {store.documents} documents, {store.tokens:,} tokens, {padding}" in said[0]
    labels = torch.cat([batch["labels"].flatten() for batch in data.val_dataloader()])
    assert Counter(labels[labels != -100].tolist()) == Counter(
        the_store(data, "val").read(1, 10**6).tolist()
    )


def test_few_short_documents_are_enough_for_rows_of_documents(tmp_path):
    """Rows of the stream need at least one full row."""
    few, held_out = ["ab", "c"], write_jsonl(tmp_path / "val.jsonl", ["d"])
    data = module(tmp_path, few, rows="document", validation=held_out)
    assert {tuple(inputs) for inputs, _ in rows_in(next(iter(data.train_dataloader())))} == {
        (EOS, *b"ab", *[PAD] * 5),
        (EOS, *b"c", *[PAD] * 6),
    }
    with pytest.raises(DataError, match=r"there are 6 tokens to train on, and one row takes 9"):
        assert module(tmp_path, few, validation=held_out).rows


def test_masked_documents_are_computed_as_if_alone(tmp_path):
    """Logits and gradients of packed rows are those of each document in a row of its own."""
    torch.manual_seed(0)
    documents = [[1, 2, 3], [], [4, 5, 6, 7], [8], [9, 9, 9]]
    config = make_config(
        tmp_path, write_jsonl(tmp_path / "a.jsonl", []), length=17
    ).with_vocabulary(BYTES.vocab_size)
    decoder = Decoder(config.model)

    def gradients(rows):
        decoder.zero_grad()
        loss = sum(
            decoder(row["input_ids"], row["labels"], row.get("document_ids")).sum() for row in rows
        )
        loss.backward()
        return loss.item(), [parameter.grad.clone() for parameter in decoder.parameters()]

    (tmp_path / "all").mkdir()
    together = packed(make_store(tmp_path / "all", documents), 17, document_mask=True)
    alone = []
    for i, ids in enumerate(documents):
        (tmp_path / str(i)).mkdir()
        alone.append(numbered(packed(make_store(tmp_path / str(i), [ids]), len(ids) + 1), [0]))
    assert len(together) == 1
    (loss, packed_gradients), (sum_of_losses, gradients_alone) = (
        gradients([numbered(together, [0])]),
        gradients(alone),
    )
    assert loss == pytest.approx(sum_of_losses, rel=1e-5)
    for a, b in zip(packed_gradients, gradients_alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# --- splits


def test_hash_split_has_no_overlap_and_does_not_depend_on_the_order(tmp_path):
    texts = TEXTS + TEXTS[:50]  # some occur twice
    one = module(tmp_path, texts, val_fraction=0.2)
    train, val = decoded(one, "train"), decoded(one, "val")
    assert Counter(train + val) == Counter(texts)
    assert not set(train) & set(val)
    assert 20 <= len(set(val)) <= 60
    (tmp_path / "other").mkdir()
    other = module(tmp_path / "other", texts[::-1], val_fraction=0.2)
    assert Counter(decoded(other, "val")) == Counter(val)


def test_the_hash_never_changes():
    """A run resumed with a later version must not train on its validation text."""
    assert [hash_of_text("a"), hash_of_text("Grüße")] == [3405396810240292928, 10566448050427439878]


def test_more_validation_text_keeps_what_was_held_out(tmp_path):
    few, many = (
        set(decoded(module(tmp_path, TEXTS, val_fraction=fraction), "val"))
        for fraction in (0.1, 0.3)
    )
    assert few < many


@pytest.mark.usefixtures("takes_seconds")
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), fraction=st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_tail_split_cuts_at_the_character(tmp_path_factory, lengths, fraction):
    texts = [("abcdefghi"[:n] + "ü") * 5 for n in lengths]
    text = "".join(texts)
    cut = int(len(text) * (1 - fraction))
    assume(cut > 0)  # else nothing is left to train on, and that is refused
    data = module(
        tmp_path_factory.mktemp("tail"), texts, length=2, split="tail", val_fraction=fraction
    )
    assert "".join(decoded(data, "train")) == text[:cut]
    assert "".join(decoded(data, "val")) == text[cut:]
    whole = sum(document in texts for document in decoded(data, "train") + decoded(data, "val"))
    assert whole >= len(texts) - 1, "at most one document was cut"


def test_tail_split_of_one_file_is_nanogpts(tmp_path):
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 20
    (tmp_path / "input.txt").write_text(text)
    source = {"format": "txt", "files": str(tmp_path / "input.txt"), "unit": "file"}
    data = module(tmp_path, source, split="tail", val_fraction=0.1)
    n = len(text)
    assert the_store(data, "train").read(0, 10**6).tolist() == [
        EOS,
        *text[: int(n * 0.9)].encode(),
        EOS,
    ]
    assert the_store(data, "val").read(0, 10**6).tolist() == [
        EOS,
        *text[int(n * 0.9) :].encode(),
        EOS,
    ]


def test_a_validation_source_and_what_it_shares_with_training(tmp_path):
    said = []
    data = module(
        tmp_path,
        TEXTS[:50],
        validation=write_jsonl(tmp_path / "val.jsonl", [*TEXTS[48:60], TEXTS[0]]),
        say=said.append,
    )
    assert decoded(data, "train") == TEXTS[:50]
    assert decoded(data, "val") == [*TEXTS[48:60], TEXTS[0]]
    assert [line.count("train ") for line in said] == [1, 0]
    assert said[1].startswith("data: val 13 documents, ")
    assert said[1].endswith("; 3 of the validation documents are also in the training text")


def test_special_tokens_in_the_text_are_text(tmp_path):
    data = module(tmp_path, ["<|eos|> and <|pad|>" + text for text in TEXTS])
    stream = the_store(data, "train").read(0, 10**6)
    assert (stream == EOS).sum() == the_store(data, "train").documents + 1
    assert not (stream == PAD).any()


# --- tokens on disk


class LargeTokenizer(ByteTokenizer):
    """Bytes, moved to the upper end of a larger vocabulary."""

    def __init__(self, vocab_size):
        super().__init__()
        self.shift = vocab_size - 260
        self.vocab_size, self.eos_id = vocab_size, vocab_size - 1
        self.definition = json.dumps({"vocab_size": vocab_size})

    def encode_flat(self, texts):
        ids, lengths = super().encode_flat(texts)
        return ids + self.dtype(self.shift), lengths

    def encode_stream(self, texts, utf8):
        return Tokenizer.encode_stream(self, texts, utf8)


@pytest.mark.parametrize(
    ("vocab_size", "bytes_per_id"), [(65_535, 2), (65_536, 2), (65_537, 4), (200_000, 4)]
)
def test_the_type_follows_the_largest_id(tmp_path, vocab_size, bytes_per_id):
    data = module(tmp_path, TEXTS, LargeTokenizer(vocab_size))
    store = the_store(data, "train")
    size = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*/train-0*.bin"))
    assert size == store.tokens * bytes_per_id
    first = decoded(module(tmp_path, TEXTS), "train")[0].encode()
    assert store.read(0, len(first) + 1).tolist() == [vocab_size - 1] + [
        byte + vocab_size - 260 for byte in first
    ]


def test_the_cache_is_used_again(tmp_path):
    said = []
    first, second = (module(tmp_path, TEXTS, say=said.append) for _ in range(2))
    assert first.sha256 == second.sha256
    assert [("written to" in line, "read from" in line) for line in said] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda path, arguments: arguments.update(tokenizer=LargeTokenizer(300)),
        lambda path, arguments: path.write_text(path.read_text() + '{"text": "more"}\n'),
        lambda path, arguments: path.write_text(
            path.read_text().replace("document 3 ", "DOCUMENT 3 ")
        ),
        lambda path, arguments: arguments.update(split="tail"),
        lambda path, arguments: arguments.update(val_fraction=0.3),
        lambda path, arguments: arguments.update(on_bad_row="skip"),
        lambda path, arguments: arguments.update(
            validation=write_jsonl(path.parent / "val.jsonl", TEXTS)
        ),
    ],
    ids=[
        "tokenizer",
        "longer file",
        "other content of the same size",
        "split",
        "fraction",
        "bad rows",
        "validation",
    ],
)
def test_a_cache_of_other_data_is_not_used(tmp_path, change):
    source, said, arguments = write_jsonl(tmp_path / "a.jsonl", TEXTS), [], {}
    assert module(tmp_path, source).rows
    change(tmp_path / "a.jsonl", arguments)
    assert module(tmp_path, source, **arguments, say=said.append).rows
    assert "written to" in said[0]


def test_the_cache_serves_any_row_length_and_mask(tmp_path):
    said = []
    lengths = [
        module(tmp_path, TEXTS, length=n, document_mask=n > 8, say=said.append).rows["train"].length
        for n in (8, 16)
    ]
    assert lengths == [8, 16]
    assert "read from" in said[1]


def test_equal_data_have_equal_hashes_wherever_they_lie(tmp_path):
    hashes = []
    for name, texts in (("a", TEXTS), ("b", TEXTS), ("c", TEXTS[1:])):
        (tmp_path / name).mkdir()
        hashes.append(module(tmp_path / name, texts).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_documents_are_tokenised_in_batches(tmp_path, monkeypatch):
    whole = module(tmp_path, TEXTS).sha256
    monkeypatch.setattr("lm.documents.files.SPAN_BYTES", 50)
    assert module(tmp_path, TEXTS, cache_dir=str(tmp_path / "other")).sha256 == whole


@pytest.mark.usefixtures("takes_seconds")
def test_the_corpus_is_never_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("lm.documents.files.SPAN_BYTES", 10_000)
    source = write_jsonl(tmp_path / "a.jsonl", (f"document {i} " + "x" * 1000 for i in range(5000)))
    data = module(tmp_path, source)
    tracemalloc.start()
    assert the_store(data, "train").text_bytes > 4_000_000
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_the_line_that_is_said(tmp_path):
    said = []
    texts = ["Grüße", " ", *TEXTS]
    data = module(tmp_path, texts, say=said.append)
    train, val = (the_store(data, split) for split in ("train", "val"))
    folder = next((tmp_path / "cache").glob("*/"))
    assert said == [
        f"data: train {train.documents} documents, {train.tokens:,} tokens,"
        f" {len(data.rows['train'])} rows of 8; val {val.documents} documents, {val.tokens:,}"
        f" tokens, {len(data.rows['val'])} rows of 8; 1.00 bytes per token; written to {folder};"
        " left out: 1 x empty document"
    ]
    assert train.documents + val.documents == 201
    assert train.text_bytes + val.text_bytes == sum(len(text.encode()) for text in texts) - 1


# --- batches


def steps_of(data):
    return {batch["step"]: batch for batch in data.train_dataloader()}


def equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])) for name in a
    )


def rows_in(batch):
    """Return a step's rows, whatever its shape, as sorted pairs of inputs and labels."""
    inputs, labels = (
        batch["input_ids"].flatten(0, -2).tolist(),
        batch["labels"].flatten(0, -2).tolist(),
    )
    return sorted(zip(inputs, labels, strict=True))


def test_steps_have_micro_batches(tmp_path):
    data = module(tmp_path, TEXTS, trainer={"micro_batch_size": 2}, document_mask=True)
    batches = list(data.train_dataloader())
    assert [batch["step"] for batch in batches] == list(range(20))
    assert {
        name: tuple(value.shape) for name, value in batches[0].items() if name != "step"
    } == dict.fromkeys(["input_ids", "labels", "document_ids"], (4, 2, 8))


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(tmp_path, workers):
    plain, parallel = (module(tmp_path, TEXTS, workers=n, document_mask=True) for n in (0, workers))
    assert parallel.train_dataloader().num_workers == workers
    for name in ("train_dataloader", "val_dataloader"):
        expected, found = list(getattr(plain, name)()), list(getattr(parallel, name)())
        assert len(expected) == len(found) > 1
        assert all(map(equal, expected, found))


@pytest.mark.parametrize("start", [1, 7, 13, 19])
def test_a_resumed_run_sees_what_a_straight_one_sees(tmp_path, start):
    """Epochs have 9.4 steps here, so the starts are in the first, second and third epoch."""
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS[:40])
    straight = steps_of(module(tmp_path, source))
    resumed = module(tmp_path, source)
    assert 1 < 1 / resumed.epochs_per_step < 19
    resumed.start_step = start
    rest = steps_of(resumed)
    assert sorted(rest) == list(range(start, 20))
    assert all(equal(rest[k], straight[k]) for k in rest)


@pytest.mark.usefixtures("takes_seconds")
def test_epochs_are_shuffled_anew_and_seeds_differ(tmp_path):
    def order(seed, epoch):
        data = module(tmp_path, TEXTS, moving=False, trainer={"batch_size": 1, "seed": seed})
        n, steps = len(data.rows["train"]), data.train_dataloader().dataset
        return [rows_in(steps[k])[0] for k in range(epoch * n, (epoch + 1) * n)]

    orders = [order(1, 0), order(1, 1), order(1, 2), order(2, 0)]
    assert all(sorted(rows) == sorted(orders[0]) for rows in orders)
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    ("micro_batch", "world_size"), [(8, 1), (4, 1), (2, 1), (4, 2), (2, 2), (1, 4)]
)
def test_micro_batches_and_processes_share_out_the_same_rows(tmp_path, micro_batch, world_size):
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    whole = steps_of(module(tmp_path, source))
    trainer = {"micro_batch_size": micro_batch, "devices": world_size}
    shares = [
        steps_of(module(tmp_path, source, place=(rank, world_size), trainer=trainer))
        for rank in range(world_size)
    ]
    accumulation = 8 // (micro_batch * world_size)
    for k, batch in whole.items():
        assert all(
            share[k]["input_ids"].shape == (accumulation, micro_batch, 8) for share in shares
        )
        assert sorted(row for share in shares for row in rows_in(share[k])) == rows_in(batch)
        # Dealt out in the order (micro-batch, process, row), so that numbering a row by its place
        # does not depend on the layout.
        dealt = torch.stack([share[k]["input_ids"] for share in shares], dim=1).reshape(8, 8)
        assert torch.equal(dealt, batch["input_ids"].reshape(8, 8))


def test_loading_leaves_the_global_random_state_alone(tmp_path):
    data = module(tmp_path, TEXTS)
    assert data.rows
    state = torch.get_rng_state()
    next(iter(data.train_dataloader()))
    list(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


# --- several sources

LETTERS = "abc"
PARTS = [
    [letter * (1 + i % 7) + f"{i}{letter}" for i in range(n)]
    for letter, n in zip(LETTERS, (150, 90, 40), strict=True)
]


def mixture(tmp_path, weights=(2, 2, 1), parts=PARTS, when_one_ends="repeat", **other):
    """Write several sources and return their mixture. Each has a letter of its own that identifies
    its rows.
    """
    tmp_path.mkdir(exist_ok=True)
    sources = [
        {**write_jsonl(tmp_path / f"{i}.jsonl", texts), **other} for i, texts in enumerate(parts)
    ]
    parts = [
        {"weight": weight, "source": source}
        for weight, source in zip(weights, sources, strict=False)
    ]
    return {"format": "mixture", "parts": parts, "when_one_ends": when_one_ends}


def letters_of(inputs):
    """Return the letter of each row."""
    return [
        next(letter for letter in LETTERS if ord(letter) in row)
        for row in inputs.flatten(0, -2).tolist()
    ]


def labels_of(batches):
    return Counter(
        label for batch in batches for label in batch["labels"].flatten().tolist() if label != -100
    )


def test_each_step_has_its_share_of_each_source(tmp_path):
    data = module(
        tmp_path, mixture(tmp_path), length=10, trainer={"batch_size": 10, "micro_batch_size": 5}
    )
    steps = steps_of(data)
    assert len(steps) == 20
    for batch in steps.values():
        assert Counter(letters_of(batch["input_ids"])) == {"a": 4, "b": 4, "c": 2}
    assert len({tuple(letters_of(batch["input_ids"])) for batch in steps.values()}) > 15, (
        "in another order each time"
    )


def test_each_epoch_cuts_rows_elsewhere_and_a_resumed_one_at_the_same_places(tmp_path):
    """Every token is a label once in each epoch. Validation and the first epoch stay as they were,
    and so do all epochs of a run of before.
    """

    def epochs(**options):
        data = module(tmp_path, TEXTS, trainer={"batch_size": 1, "max_steps": 1000}, **options)
        n, steps = len(data.rows["train"]), data.train_dataloader().dataset
        found = [[rows_in(steps[k])[0] for k in range(e * n, (e + 1) * n)] for e in (2, 1, 0)]
        return found[::-1], numbered(data.rows["val"], range(len(data.rows["val"])))

    rows, val = epochs()
    before, val_before = epochs(moving=False)
    labels = [sorted(label for _, row in epoch for label in row) for epoch in rows]
    assert labels[0] == labels[1] == labels[2]
    assert rows[0] == before[0] and torch.equal(val["labels"], val_before["labels"])
    contents = [{str(inputs) for inputs, _ in epoch} for epoch in rows]
    assert contents[0] != contents[1] != contents[2] != contents[0]
    again = module(tmp_path, TEXTS, trainer={"batch_size": 1, "max_steps": 1000})
    again.start_step = 2 * len(again.rows["train"])
    first = rows_in(next(iter(again.train_dataloader())))[0]
    assert first == rows[2][0]


@pytest.mark.usefixtures("takes_seconds")
def test_a_source_of_a_mixture_gives_all_its_rows_before_one_comes_again(tmp_path):
    data = module(
        tmp_path,
        mixture(tmp_path, (1, 1, 1)),
        moving=False,
        trainer={"batch_size": 3, "micro_batch_size": 3, "max_steps": 400},
    )
    steps = steps_of(data)
    for i, part in enumerate(data.rows["train"].parts):
        n = len(part)
        given_by_part = [
            row for k in range(2 * n) for row in rows_in(steps[k]) if ord(LETTERS[i]) in row[0]
        ]
        everything = numbered(Rows([part], PAD, False), range(n))
        expected = sorted(
            zip(everything["input_ids"].tolist(), everything["labels"].tolist(), strict=True)
        )
        assert sorted(given_by_part[:n]) == sorted(given_by_part[n:]) == expected


@pytest.mark.usefixtures("takes_seconds")
def test_going_on_takes_every_row_of_every_source_once_an_epoch(tmp_path):
    data = module(
        tmp_path,
        mixture(tmp_path, (7, 5, 1), when_one_ends="go_on"),
        moving=False,
        trainer={"batch_size": 1, "max_steps": 1000},
    )
    n, steps = len(data.rows["train"]), data.train_dataloader().dataset
    everything = numbered(data.rows["train"], range(n))
    expected = sorted(
        zip(everything["input_ids"].tolist(), everything["labels"].tolist(), strict=True)
    )
    epochs = [
        [rows_in(steps[k])[0] for k in range(epoch * n, (epoch + 1) * n)] for epoch in range(2)
    ]
    assert [sorted(rows) for rows in epochs] == [expected] * 2 and epochs[0] != epochs[1]
    assert data.epochs_per_step == 1 / n


def test_a_run_goes_on_without_the_source_that_ran_dry(tmp_path, monkeypatch):
    """The rows of configs/mixture_smoke.yaml are 2 : 1 while both sources have some, then from one
    alone.
    """
    monkeypatch.chdir(ROOT)
    overrides = ["--data.cache_dir", str(tmp_path)]
    config = load("configs/mixture_smoke.yaml", overrides).config
    data = PackedDataModule(config, BYTES, lambda line: None)
    plan, batch_size = data.plan, config.trainer.batch_size
    rows = np.concatenate([plan.of_step(step, batch_size) for step in range(config.max_steps)])
    first, second = (rows[rows[:, 0] == part, 2] for part in (0, 1))
    end = int(np.flatnonzero(rows[:, 0] == 0)[-1]) + 1  # where the first source has run dry
    assert plan.sizes[0] - len(first) < 2, "less than a block is left for the end of the epoch"
    assert abs(len(first) - 2 * (end - len(first))) <= 2, "2 : 1 until then"
    assert len(rows) - end > 10 * batch_size and (rows[end:, 0] == 1).all()
    assert len({*first}) == len(first) and len({*second}) == len(second), "no row comes again"


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("when_one_ends", ["repeat", "go_on"])
@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (2, 1), (0, 2), (2, 2)])
def test_a_resumed_mixture_goes_on_with_the_same_rows(tmp_path, when_one_ends, workers, world_size):
    """This also holds in the middle of an epoch or block, and after a run of one process."""
    source = mixture(tmp_path, (3, 2, 2), when_one_ends=when_one_ends)
    straight = steps_of(
        module(tmp_path, source, document_mask=True, trainer={"micro_batch_size": 4})
    )
    shares = []
    for rank in range(world_size):
        trainer = {"micro_batch_size": 4, "devices": world_size}
        resumed = module(
            tmp_path,
            source,
            document_mask=True,
            place=(rank, world_size),
            workers=workers,
            trainer=trainer,
        )
        resumed.start_step = 11
        shares.append(steps_of(resumed))
    assert all(sorted(share) == list(range(11, 20)) for share in shares)
    for k in shares[0]:
        for name in ("input_ids", "labels", "document_ids"):
            dealt = torch.stack([share[k][name] for share in shares], dim=1)
            assert torch.equal(dealt.reshape(8, 8), straight[k][name].reshape(8, 8))


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", ["packed", "document"])
def test_validation_covers_all_sources_each_token_once(tmp_path, world_size, rows):
    settings = {
        "val_fraction": 0.4,
        "rows": rows,
        "trainer": {"batch_size": 36, "micro_batch_size": 3, "devices": world_size},
    }
    shares = []
    for rank in range(world_size):
        data = module(tmp_path, mixture(tmp_path), place=(rank, world_size), **settings)
        shares.append(list(data.val_dataloader()))
    assert len(data.rows["val"].parts) == 3
    assert len({len(share) for share in shares}) == 1
    expected = Counter(
        token for part in data.rows["val"].parts for token in part.store.read(1, 10**6).tolist()
    )
    assert all(expected[ord(letter)] > 9 for letter in LETTERS)
    assert labels_of(batch for share in shares for batch in share) == expected


def test_a_validation_source_beside_a_mixture(tmp_path):
    said = []
    held_out = write_jsonl(tmp_path / "val.jsonl", [*TEXTS[:9], PARTS[1][0]])
    data = module(tmp_path, mixture(tmp_path), validation=held_out, say=said.append)
    assert decoded(data, "train") == [text for texts in PARTS for text in texts]
    assert decoded(data, "val") == [*TEXTS[:9], PARTS[1][0]]
    assert len(said) == 5 and said[3].startswith("data: val 10 documents")
    assert said[3].endswith("; 1 of the validation documents are also in the training text")


def test_a_document_of_two_sources_is_on_the_same_side(tmp_path):
    parts = [TEXTS[:120], TEXTS[60:]]
    data = module(tmp_path, mixture(tmp_path, (1, 1), parts), val_fraction=0.3)
    train, val = set(decoded(data, "train")), set(decoded(data, "val"))
    assert train | val == set(TEXTS) and not train & val


def test_the_tail_of_each_source_is_held_out(tmp_path):
    data = module(tmp_path, mixture(tmp_path), split="tail", val_fraction=0.25)
    for i, texts in enumerate(PARTS):
        text = "".join(texts)
        cut = int(len(text) * 0.75)
        assert "".join(texts_of(data.rows["train"].parts[i].store)) == text[:cut]
        assert "".join(texts_of(data.rows["val"].parts[i].store)) == text[cut:]


def test_other_weights_and_other_mixtures_tokenise_nothing_again(tmp_path):
    def written(source):
        said = []
        hashes.append(module(tmp_path, source, say=said.append).sha256)
        return ["written to" in line for line in said[: len(source["parts"])]]

    hashes = []
    assert written(mixture(tmp_path)) == [True, True, True]
    assert written(mixture(tmp_path, (1, 20, 300), when_one_ends="go_on")) == [False, False, False]
    assert hashes[0] == hashes[1]
    source = mixture(tmp_path)
    other = {"weight": 3, "source": write_jsonl(tmp_path / "other.jsonl", TEXTS)}
    assert written({**source, "parts": [source["parts"][2], other]}) == [False, True]
    assert written({**source, "parts": source["parts"][:1]}) == [False]
    said = []
    assert module(tmp_path, source["parts"][1]["source"], say=said.append).rows
    assert "read from" in said[0], "alone it is the same text"


def test_the_hash_is_of_every_source(tmp_path):
    hashes = [
        module(tmp_path / "a", mixture(tmp_path / "a")).sha256,
        module(tmp_path / "b", mixture(tmp_path / "b")).sha256,
    ]
    assert hashes[0] == hashes[1], "wherever they lie"
    for i in range(3):
        parts = [[*texts[:-1], texts[-1] + "!" * (i == k)] for k, texts in enumerate(PARTS)]
        hashes.append(module(tmp_path / f"{i}", mixture(tmp_path / f"{i}", parts=parts)).sha256)
    hashes.append(module(tmp_path / "order", mixture(tmp_path / "order", parts=PARTS[::-1])).sha256)
    assert len(set(hashes[1:])) == 5


@pytest.mark.parametrize("batch_size", [4, 8, 10])
def test_a_run_that_needs_more_than_there_is_is_refused_with_the_number_of_steps(
    tmp_path, batch_size
):
    source = mixture(tmp_path, (2, 2, 1), when_one_ends="stop")
    trainer = {"batch_size": batch_size, "micro_batch_size": batch_size}
    sizes = [len(part) for part in module(tmp_path, source).rows["train"].parts]
    steps = 5 * min(sizes[0] // 2, sizes[1] // 2, sizes[2]) // batch_size
    dry = min(range(3), key=[sizes[0] / 2, sizes[1] / 2, sizes[2]].__getitem__)
    just = module(tmp_path, source, trainer=trainer | {"max_steps": steps})
    assert len(steps_of(just)) == steps and just.plan.n_rows - steps * batch_size < batch_size
    with pytest.raises(ConfigError) as error:
        # This is read before anything is written into the run's folder.
        assert module(tmp_path, source, trainer=trainer | {"max_steps": steps + 1}).epochs_per_step
    assert (
        str(error.value)
        == f"data.source.when_one_ends: stop, and parts[{dry}] runs dry after {steps} of the run's"
        f" {steps + 1} steps; write trainer.max_steps {steps} at most, or when_one_ends: repeat"
        " or go_on"
    )
    assert module(
        tmp_path, {**source, "when_one_ends": "go_on"}, trainer=trainer | {"max_steps": steps + 1}
    ).epochs_per_step


def test_a_mixture_without_a_single_step(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"runs dry after 0 of the run's 20 steps; write when_one_ends: repeat or go_on$",
    ):
        assert module(tmp_path, mixture(tmp_path, (1, 1, 1000), when_one_ends="stop")).plan


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([" "], "data.source.parts[1].source: there is no text in it (left out: "),
        (
            ["ab"],
            (
                "data.source.parts[1].source: there are 4 tokens to train on, and one row takes 9:"
                " 8 (data.sequence_length, or"
            ),
        ),
    ],
)
def test_a_source_of_a_mixture_without_enough_text_is_named(tmp_path, texts, expected):
    source = mixture(tmp_path, parts=[PARTS[0], texts, PARTS[2]])
    with pytest.raises(DataError) as error:
        assert module(tmp_path, source, on_bad_row="skip").rows
    assert str(error.value).startswith(expected)


def test_the_lines_that_are_said_of_a_mixture(tmp_path):
    said = []
    source = mixture(tmp_path, (6, 3, 1))
    source["parts"][2]["source"]["filter"] = {"min_length": 4}
    data = module(tmp_path, source, val_fraction=0.2, say=said.append)
    assert data.rows and len(said) == 4
    for i, (line, share) in enumerate(zip(said, ("60%", "30%", "10%"), strict=False)):
        parts = {split: data.rows[split].parts[i] for split in ("train", "val")}
        counts = [
            f"{split} {part.store.documents} documents, {part.store.tokens:,} tokens, {len(part)}"
            " rows of 8"
            for split, part in parts.items()
        ]
        assert line.startswith(
            f"data: {tmp_path}/{i}.jsonl ({share}): {'; '.join(counts)}; 1.00 bytes per token;"
            " written to "
        )
        assert ("left out: 2 x document under 4 characters" in line) is (i == 2)
    sums = []
    for split, rows in data.rows.items():
        documents, tokens = (
            sum(getattr(part.store, name) for part in rows.parts)
            for name in ("documents", "tokens")
        )
        sums.append(f"{split} {documents} documents, {tokens:,} tokens, {len(rows)} rows of 8")
    assert said[3] == f"data: together: {'; '.join(sums)}"


def test_how_often_a_run_reads_each_source_is_said_where_there_are_several(tmp_path):
    said = []
    data = module(tmp_path, mixture(tmp_path), say=said.append)
    rows = Counter(part for step in range(20) for part, _, _ in data.plan.of_step(step, 8).tolist())
    passes = [f"{rows[i] / len(part):.2f}" for i, part in enumerate(data.rows["train"].parts)]
    assert said[-1] == f"data: passes over each: {', '.join(passes)}"
    assert len({*passes}) == 3
    for source in (
        mixture(tmp_path, when_one_ends="go_on"),
        mixture(tmp_path, when_one_ends="stop"),
    ):
        assert module(tmp_path, source, say=said.append, trainer={"max_steps": 2}).plan
    assert module(tmp_path, TEXTS, say=said.append).plan
    assert sum("passes over each" in line for line in said) == 3


EPOCHS = ("0.5", "1", "2.5", "0.1", "0.7", "3")


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("rows_each", [1, 3, 7])
def test_epochs_are_rounded_up_to_steps_once(tmp_path, rows_each, ranks):
    """The slow twin calculates with fractions, and deals out the rows of every process."""
    batch = rows_each * ranks
    for epochs in EPOCHS:
        trainer = {
            "max_steps": None,
            "max_epochs": float(epochs),
            "batch_size": batch,
            "devices": ranks,
        }
        data = [module(tmp_path, TEXTS, place=(i, ranks), trainer=trainer) for i in range(ranks)]
        n = len(data[0].rows["train"])
        steps = math.ceil(Fraction(epochs) * n / batch)
        assert [part.sized_config.max_steps for part in data] == [steps] * ranks
        loaders = [part.train_dataloader() for part in data]
        assert [list(loader.sampler) for loader in loaders] == [list(range(steps))] * ranks
        if epochs == "1":
            dealt = [row for k in range(steps) for i in loaders for row in rows_in(i.dataset[k])]
            everything = Counter(map(str, rows_in(numbered(data[0].rows["train"], range(n)))))
            more = Counter(map(str, dealt))
            more.subtract(everything)
            assert min(more.values()) == 0 and more.total() == steps * batch - n < batch


@given(
    rows=st.integers(1, 10**7),  # at most 10**11 steps: beyond, the allowance is a part of a step
    batch=st.integers(1, 4096),
    tenths=st.integers(1, 10**5),
)
@example(rows=10, batch=1, tenths=1)  # 0.1 is more than a tenth in binary
@example(rows=10, batch=1, tenths=29)
@settings(deadline=None)
def test_rounding_adds_no_step(rows, batch, tenths):
    config = Config(
        data={"source": {"format": "txt", "files": "a"}},
        trainer={"max_epochs": tenths / 10, "batch_size": batch},
    )
    exact = math.ceil(Fraction(tenths, 10) * rows / batch)
    assert config.with_epochs(batch / rows).max_steps == exact
    # A run of an earlier version, in which max_epochs only refused more steps than these.
    longest = next(n for n in (exact, exact - 1, 0) if n * (batch / rows) <= tenths / 10)
    if longest:
        trainer = config.trainer.model_copy(update={"max_steps": longest})
        older = config.model_copy(update={"trainer": trainer})
        assert older.with_epochs(batch / rows).max_steps == longest, "it keeps its length"


def test_an_epoch_of_a_mixture_is_the_rows_of_all_its_sources(tmp_path):
    """3 : 1 with sizes of about 1 : 10: the passes over each are printed and add up to an epoch."""
    parts = [(3, TEXTS[:12]), (1, TEXTS[:120])]
    source = {
        "format": "mixture",
        "parts": [
            {"weight": weight, "source": write_jsonl(tmp_path / f"{i}.jsonl", texts)}
            for i, (weight, texts) in enumerate(parts)
        ],
    }
    said = []
    trainer = {"max_steps": None, "max_epochs": 2, "batch_size": 4}
    data = module(tmp_path, source, trainer=trainer, say=said.append)
    sizes = [len(part) for part in data.rows["train"].parts]
    steps = math.ceil(2 * sum(sizes) / 4)
    assert data.sized_config.max_steps == steps == len(steps_of(data))
    passes = [steps * 4 * share / size for share, size in zip((0.75, 0.25), sizes, strict=True)]
    assert passes[0] > 10 * passes[1]
    assert said[-1] == f"data: passes over each: {passes[0]:.2f}, {passes[1]:.2f}"
    source["when_one_ends"] = "go_on"
    in_turn = module(tmp_path, source, trainer=trainer, say=said.append)
    assert in_turn.sized_config.max_steps == steps and said[-1].endswith(": 2.00, 2.00")
    source["when_one_ends"] = "stop"
    with pytest.raises(ConfigError, match=rf"runs dry after \d+ of the run's {steps} steps; write"):
        assert module(tmp_path, source, trainer=trainer).sized_config


def test_a_warm_up_longer_than_the_passes_is_refused_when_the_text_is_read(tmp_path):
    data = module(tmp_path, TEXTS, trainer={"max_steps": None, "max_epochs": 1})
    steps = data.sized_config.max_steps
    for warmup, refused in (steps - 1, False), (steps, True):
        optimizer = data.config.optimizer.model_copy(update={"warmup_steps": warmup})
        config = data.config.model_copy(update={"optimizer": optimizer})
        again = PackedDataModule(config, BYTES, lambda line: None)
        if not refused:
            assert again.sized_config.max_steps == steps
            continue
        with pytest.raises(ConfigError) as error:
            assert again.sized_config
        assert str(error.value) == (
            f"optimizer.warmup_steps: {steps} leaves nothing of the run's {steps} steps; write"
            f" optimizer.warmup_steps: {steps // 10}, or another number below {steps}"
        )


def test_a_length_in_steps_is_known_without_the_text(tmp_path):
    data = module(tmp_path, {"format": "txt", "files": str(tmp_path / "missing")})
    assert data.sized_config is data.config


# --- validation


@pytest.mark.usefixtures("takes_seconds")
@given(
    n_tokens=st.integers(2, 60),
    n_rows=st.none() | st.integers(1, 30),
    micro_batch=st.integers(1, 5),
    world_size=st.integers(1, 4),
)
@settings(max_examples=80, deadline=None)
def test_validation_scores_each_chosen_token_once(
    tmp_path_factory, n_tokens, n_rows, micro_batch, world_size
):
    folder = tmp_path_factory.mktemp("val")
    store = make_store(folder, [[0] * (n_tokens - 2)], np.uint32)
    np.arange(n_tokens, dtype=np.uint32).tofile(folder / "train-00000.bin")
    rows = packed(store, 3)
    shares = [
        ValidationBatches(rows, n_rows, micro_batch, rank, world_size) for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1, "equally many batches on every process"
    labels = torch.cat(
        [share[i]["labels"] for share in shares for i in range(len(share))]
    ).flatten()
    assert all(
        share[i]["labels"].shape == (micro_batch, 3) for share in shares for i in range(len(share))
    )
    scored = labels[labels != -100].tolist()
    chosen = min(n_rows or len(rows), len(rows))
    expected = [
        i
        for k in range(chosen)
        for i in numbered(rows, [k * len(rows) // chosen])["labels"].flatten().tolist()
        if i != -100
    ]
    assert sorted(scored) == sorted(expected)
    assert len(set(scored)) == len(scored)
    if chosen == len(rows):
        assert sorted(scored) == list(range(1, n_tokens))


def test_validation_rows_are_spread_and_always_the_same(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    data = module(
        tmp_path, source, val_fraction=0.5, trainer={"validation_rows": 8, "micro_batch_size": 2}
    )
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    assert len(first) == 4
    assert all(map(equal, first, second))
    n = len(data.rows["val"])
    expected = numbered(data.rows["val"], [k * n // 8 for k in range(8)])
    assert torch.equal(torch.cat([batch["input_ids"] for batch in first]), expected["input_ids"])
    other_seed = module(
        tmp_path,
        source,
        val_fraction=0.5,
        trainer={"validation_rows": 8, "micro_batch_size": 2, "seed": 9},
    )
    assert all(map(equal, first, list(other_seed.val_dataloader())))


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_validation_loss_does_not_depend_on_the_batch_size(tmp_path, batch_size):
    data = module(tmp_path, TEXTS, trainer={"batch_size": batch_size})
    torch.manual_seed(0)
    decoder = Decoder(data.config.with_vocabulary(BYTES.vocab_size).model).eval()
    store = the_store(data, "val")
    ids = torch.from_numpy(store.read(0, 10**6).astype(np.int64))
    expected = sum(
        torch.nn.functional.cross_entropy(
            decoder(ids[None, s : s + 8][:, : len(ids) - 1 - s])[0],
            ids[s + 1 : s + 9],
            reduction="sum",
        )
        for s in range(0, len(ids) - 1, 8)
    )
    with torch.no_grad():
        losses = [
            decoder(batch["input_ids"], batch["labels"]).sum() for batch in data.val_dataloader()
        ]
    assert sum(losses).item() == pytest.approx(expected.item(), rel=1e-5)


def characters() -> FastTokenizer:
    """Return a vocabulary of the characters up to U+00FF, which may take two bytes."""
    backend = Backend(models.BPE({chr(i): i for i in range(256)} | {"<eos>": 256}, []))
    backend.decoder = decoders.Fuse()
    return FastTokenizer(backend.to_str(), "characters", eos_id=256, pad_id=256)


def test_the_bytes_of_what_each_id_stands_for(tmp_path):
    data = module(tmp_path, ["Grüße " + text for text in TEXTS])
    assert data.text_bytes[:256].tolist() == [1.0] * 256 and not data.text_bytes[256:].any()
    parts = [["Grüße " * 2 + text for text in TEXTS], ["ü" * (1 + i % 50) for i in range(500)]]
    tokenizer = characters()
    mixed = module(
        tmp_path, mixture(tmp_path / "mixed", (1, 1), parts), tokenizer, val_fraction=0.3
    )
    val = [text for text in parts[0] + parts[1] if hash_of_text(text) < 0.3 * 2**64]
    ids = [i for text in val for i in tokenizer.encode(text)]
    assert mixed.text_bytes[ids].sum() == pytest.approx(sum(len(text.encode()) for text in val))
    assert mixed.text_bytes[tokenizer.encode("ü")].tolist() == [2.0]
    val = decoded(module(tmp_path, ["Grüße " + text for text in TEXTS]), "val")
    assert the_store(data, "val").text_bytes == sum(len(text.encode()) for text in val)


# --- text that is not enough


def test_few_conversations_are_never_sent_to_split_tail(tmp_path):
    """Conversations refuse it, so the advice would lead to another refusal."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    source = {"format": "chat", "files": str(file)}
    with pytest.raises(DataError) as error:
        assert module(tmp_path, source, document_mask=True).rows
    assert "more conversations" in str(error.value) and "tail" not in str(error.value)


def test_many_kinds_of_what_was_left_out_are_summed_up():
    few = {f"kind {i}": i for i in range(1, 4)}
    assert _left_out(few) == "left out: 1 x kind 1, 2 x kind 2, 3 x kind 3"
    many = {f"kind {i}": i for i in range(1, 31)}
    line = _left_out(many)
    assert line.startswith("left out: 30 x kind 30, 29 x kind 29, ")
    assert line.endswith(f", 11 x kind 11, {sum(range(1, 11))} x 10 other kinds")


@pytest.mark.parametrize(
    ("texts", "settings", "expected"),
    [
        ([" ", "\n"], {"on_bad_row": "skip"}, "data.source: there is no text in it (left out: "),
        (
            ["one document " * 9],
            {},
            (
                "data.split: hash needs several documents, and the text is a single one; write"
                " data.split: tail"
            ),
        ),
        (
            ["same"] * 9,
            {},
            (
                "data.val_fraction: 0.05 with data.split: hash leaves 9 documents to train on and 0"
                " to validate on; give more"
            ),
        ),
        (
            TEXTS,
            {"val_fraction": 0.9999},
            (
                "data.val_fraction: 0.9999 with data.split: hash leaves 0 documents to train on and"
                " 200 to"
            ),
        ),
        (
            ["ab"],
            {"split": "tail"},
            (
                "data.source: there are 3 tokens to train on, and one row takes 9: 8"
                " (data.sequence_length, or"
            ),
        ),
        (
            ["abcdef" * 2],
            {"split": "tail", "val_fraction": 0.5},
            "data.source: there are 8 tokens to train on, and one row takes 9: 8",
        ),
        (
            ["a"],
            {"split": "tail"},
            (
                "data.val_fraction: 0.05 with data.split: tail leaves 0 documents to train on and 1"
                " to validate on;"
            ),
        ),
    ],
)
def test_text_that_is_not_enough(tmp_path, texts, settings, expected):
    with pytest.raises(DataError) as error:
        assert module(tmp_path, texts, **settings).rows
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "val", "key"), [(TEXTS, [" "], "data.validation"), ([" "], TEXTS, "data.source")]
)
def test_a_validation_source_needs_text_on_both_sides(tmp_path, train, val, key):
    with pytest.raises(
        DataError,
        match=(
            rf"{key}: there is no text in it \(left out: .* x empty file.*\); name files that hold"
            r" some, or leave out less"
        ),
    ):
        assert module(
            tmp_path, train, validation=write_jsonl(tmp_path / "val.jsonl", val), on_bad_row="skip"
        ).rows


def test_a_bad_row_of_the_validation_source(tmp_path):
    bad = write_jsonl(tmp_path / "val.jsonl", [*TEXTS, None])
    with pytest.raises(DataError, match=r"val\.jsonl:201: text is not a string: it is None"):
        assert module(tmp_path, TEXTS, validation=bad).rows
    said = []
    for _ in range(2):  # built, then cached
        assert module(
            tmp_path, [*TEXTS, 3], validation=bad, on_bad_row="skip", say=said.append
        ).rows
    left_out = "; left out: 1 x text is not a string"
    assert [line.partition("tokens")[0].split()[1] for line in said] == ["train", "val"] * 2
    assert all(line.endswith(left_out) for line in said[::2])
    assert all(
        line.endswith(f"{left_out}; 200 of the validation documents are also in the training text")
        for line in said[1::2]
    )


def test_text_that_is_just_enough(tmp_path):
    data = module(tmp_path, ["abcdefg" * 2], moving=False, split="tail", val_fraction=0.5)
    assert len(data.rows["train"]) == 1
    assert (
        rows_in(next(iter(data.train_dataloader())))
        == [([EOS, *b"abcdefg"], [*b"abcdefg", EOS])] * 8
    )
