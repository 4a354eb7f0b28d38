"""The way of the data, held against slow and obvious versions of itself: every token once, the same rows for any workers and processes."""

import json
import math
import tracemalloc
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data import PackedDataModule, PackedRows, TrainingSteps, ValidationBatches, hash_of_text
from lm.errors import DataError
from lm.schema import Config
from lm.shards import SplitWriter, TokenStore
from lm.tokenizer import ByteTokenizer
from model import Decoder

BYTES = ByteTokenizer()
EOS, PAD = BYTES.eos_id, BYTES.pad_id


def write_jsonl(path, texts):
    """The source section of a new file; one that holds just that already stays as it is, and its cache valid."""
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    if not path.exists() or path.read_text() != content:
        path.write_text(content)
    return {"format": "jsonl", "files": str(path)}


def make_config(tmp_path, source, length=8, trainer=None, **data):
    trainer = {"max_steps": 20, "batch_size": 8, "seed": 1, **(trainer or {})}
    data = {"source": source, "cache_dir": str(tmp_path / "cache"), **data}
    return Config(model={"context_length": length}, data=data, optimizer={"warmup_steps": 0}, trainer=trainer)


def module(tmp_path, texts, tokenizer=BYTES, place=(0, 1), say=lambda line: None, **settings):
    source = texts if isinstance(texts, dict) else write_jsonl(tmp_path / "texts.jsonl", texts)
    result = PackedDataModule(make_config(tmp_path, source, **settings), tokenizer, say)
    result.trainer = SimpleNamespace(global_rank=place[0], world_size=place[1])
    return result


def make_store(folder, documents, dtype=np.uint16, shard_tokens=2**26):
    writer = SplitWriter(folder, "train", EOS, dtype, shard_tokens)
    writer.add([np.array(ids, dtype) for ids in documents], 1)
    return TokenStore(folder, "train", {"dtype": np.dtype(dtype).name, "splits": {"train": writer.close()}})


def decoded(module, split):
    """The documents of a split as its stream of tokens has them."""
    store = module.rows[split].store
    bounds = [*store.document_starts.tolist(), store.tokens - 1]
    return [BYTES.decode(store.read(a, b - a)[1:]) if b - a > 1 else "" for a, b in pairwise(bounds)]


TEXTS = [f"document {i} " + "x" * (i % 7) for i in range(200)]


# --- rows


def obvious_rows(documents, length):
    """One position after the other: input, label, number of the document (padding is one more than the last)."""
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


@given(documents=documents, length=st.integers(2, 12), shard_tokens=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_rows_are_the_stream_and_its_successors(tmp_path_factory, documents, length, shard_tokens):
    store = make_store(tmp_path_factory.mktemp("rows"), documents, shard_tokens=shard_tokens)
    expected = obvious_rows(documents, length)
    rows = PackedRows(store, length, PAD, document_mask=True)
    assert len(rows) == len(expected)
    found = rows[np.arange(len(rows))]
    for i, row in enumerate(expected):
        inputs, labels, numbers = zip(*row, strict=True)
        assert found["input_ids"][i].tolist() == list(inputs)
        assert found["labels"][i].tolist() == list(labels)
        assert (found["document_ids"][i] - found["document_ids"][i][0]).tolist() == [number - numbers[0] for number in numbers]
    without = PackedRows(store, length, PAD, document_mask=False)[np.arange(len(rows))]
    assert sorted(without) == ["input_ids", "labels"]
    assert all(torch.equal(without[name], found[name]) for name in without)


@given(documents=documents, length=st.integers(2, 12), batch_size=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_token_is_a_target_once_an_epoch(tmp_path_factory, documents, length, batch_size):
    """Also the tails. Positions in the stream stand in for the ids, so that each token is told from all others."""
    folder = tmp_path_factory.mktemp("epoch")
    store = make_store(folder, documents, np.uint32)
    np.arange(store.tokens, dtype=np.uint32).tofile(folder / "train-00000.bin")
    rows = PackedRows(store, length, PAD, document_mask=False)
    steps = TrainingSteps(rows, batch_size, micro_batch=1, seed=3, rank=0, world_size=1)
    n_steps = math.lcm(len(rows), batch_size) // batch_size  # the fewest steps that are whole epochs
    labels = torch.cat([steps[k]["labels"].flatten() for k in range(n_steps)])
    seen = Counter(labels[labels != -100].tolist())
    assert seen == dict.fromkeys(range(1, store.tokens), n_steps * batch_size // len(rows))


def test_rows_have_any_shape_and_none_past_the_end_has_labels(tmp_path):
    rows = PackedRows(make_store(tmp_path, [[1, 2, 3, 4]]), 2, PAD, document_mask=True)
    found = rows[np.array([[0, 1, 2], [3, 4, 9]])]
    assert {name: tuple(values.shape) for name, values in found.items()} == dict.fromkeys(found, (2, 3, 2))
    assert found["labels"].dtype == found["input_ids"].dtype == torch.int64
    assert found["input_ids"].tolist() == [[[EOS, 1], [2, 3], [4, PAD]], [[PAD, PAD]] * 3]
    assert found["labels"].tolist() == [[[1, 2], [3, 4], [EOS, -100]], [[-100, -100]] * 3]


def test_an_id_that_looks_like_eos_does_not_part_a_document(tmp_path):
    rows = PackedRows(make_store(tmp_path, [[1, EOS, 2], [3]]), 6, PAD, document_mask=True)
    assert rows[np.array([0])]["document_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]


def test_masked_documents_are_computed_as_if_alone(tmp_path):
    """Logits and gradients of packed rows are those of each document in a row of its own."""
    torch.manual_seed(0)
    documents = [[1, 2, 3], [], [4, 5, 6, 7], [8], [9, 9, 9]]
    config = make_config(tmp_path, write_jsonl(tmp_path / "a.jsonl", []), length=17).with_vocabulary(BYTES.vocab_size)
    decoder = Decoder(config.model)

    def gradients(rows):
        decoder.zero_grad()
        loss = sum(decoder(row["input_ids"], row["labels"], row.get("document_ids")).sum() for row in rows)
        loss.backward()
        return loss.item(), [parameter.grad.clone() for parameter in decoder.parameters()]

    (tmp_path / "all").mkdir()
    packed = PackedRows(make_store(tmp_path / "all", documents), 17, PAD, document_mask=True)
    alone = []
    for i, ids in enumerate(documents):
        (tmp_path / str(i)).mkdir()
        alone.append(PackedRows(make_store(tmp_path / str(i), [ids]), len(ids) + 1, PAD, document_mask=False)[np.array([0])])
    assert len(packed) == 1
    (loss, packed_gradients), (sum_of_losses, gradients_alone) = gradients([packed[np.array([0])]]), gradients(alone)
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
    few, many = (set(decoded(module(tmp_path, TEXTS, val_fraction=fraction), "val")) for fraction in (0.1, 0.3))
    assert few < many


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), fraction=st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_tail_split_cuts_at_the_character(tmp_path_factory, lengths, fraction):
    texts = [("abcdefghi"[:n] + "ü") * 5 for n in lengths]
    text = "".join(texts)
    cut = int(len(text) * (1 - fraction))
    assume(cut > 0)  # else nothing is left to train on, and that is refused
    data = module(tmp_path_factory.mktemp("tail"), texts, length=2, split="tail", val_fraction=fraction)
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
    assert data.rows["train"].store.read(0, 10**6).tolist() == [EOS, *text[: int(n * 0.9)].encode(), EOS]
    assert data.rows["val"].store.read(0, 10**6).tolist() == [EOS, *text[int(n * 0.9) :].encode(), EOS]


def test_a_validation_source_and_what_it_shares_with_training(tmp_path):
    said = []
    data = module(tmp_path, TEXTS[:50], validation=write_jsonl(tmp_path / "val.jsonl", [*TEXTS[48:60], TEXTS[0]]), say=said.append)
    assert decoded(data, "train") == TEXTS[:50]
    assert decoded(data, "val") == [*TEXTS[48:60], TEXTS[0]]
    assert "; 3 of the validation documents are also in the training text" in said[0]


def test_special_tokens_in_the_text_are_text(tmp_path):
    data = module(tmp_path, ["<|eos|> and <|pad|>" + text for text in TEXTS])
    stream = data.rows["train"].store.read(0, 10**6)
    assert (stream == EOS).sum() == data.rows["train"].store.documents + 1
    assert not (stream == PAD).any()


# --- tokens on disk


class LargeTokenizer(ByteTokenizer):
    """Bytes, moved to the upper end of a larger vocabulary."""

    def __init__(self, vocab_size):
        super().__init__()
        self.shift = vocab_size - 260
        self.vocab_size, self.eos_id = vocab_size, vocab_size - 1
        self.definition = json.dumps({"vocab_size": vocab_size})

    def encode_batch(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(self.dtype) + self.dtype(self.shift) for text in texts]


@pytest.mark.parametrize(("vocab_size", "bytes_per_id"), [(65_535, 2), (65_536, 2), (65_537, 4), (200_000, 4)])
def test_the_type_follows_the_largest_id(tmp_path, vocab_size, bytes_per_id):
    data = module(tmp_path, TEXTS, LargeTokenizer(vocab_size))
    store = data.rows["train"].store
    size = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*/train-0*.bin"))
    assert size == store.tokens * bytes_per_id
    first = decoded(module(tmp_path, TEXTS), "train")[0].encode()
    assert store.read(0, len(first) + 1).tolist() == [vocab_size - 1] + [byte + vocab_size - 260 for byte in first]


def test_the_cache_is_used_again(tmp_path):
    said = []
    first, second = (module(tmp_path, TEXTS, say=said.append) for _ in range(2))
    assert first.sha256 == second.sha256
    assert [("written to" in line, "read from" in line) for line in said] == [(True, False), (False, True)]


@pytest.mark.parametrize(
    "change",
    [
        lambda path, arguments: arguments.update(tokenizer=LargeTokenizer(300)),
        lambda path, arguments: path.write_text(path.read_text() + '{"text": "more"}\n'),
        lambda path, arguments: path.write_text(path.read_text().replace("document 3 ", "DOCUMENT 3 ")),
        lambda path, arguments: arguments.update(split="tail"),
        lambda path, arguments: arguments.update(val_fraction=0.3),
        lambda path, arguments: arguments.update(on_bad_row="skip"),
        lambda path, arguments: arguments.update(validation=write_jsonl(path.parent / "val.jsonl", TEXTS)),
    ],
    ids=["tokenizer", "longer file", "other content of the same size", "split", "fraction", "bad rows", "validation"],
)
def test_a_cache_of_other_data_is_not_used(tmp_path, change):
    source, said, arguments = write_jsonl(tmp_path / "a.jsonl", TEXTS), [], {}
    assert module(tmp_path, source).rows
    change(tmp_path / "a.jsonl", arguments)
    assert module(tmp_path, source, **arguments, say=said.append).rows
    assert "written to" in said[0]


def test_the_cache_serves_any_row_length_and_mask(tmp_path):
    said = []
    lengths = [module(tmp_path, TEXTS, length=n, document_mask=n > 8, say=said.append).rows["train"].length for n in (8, 16)]
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
    monkeypatch.setattr("data.BATCH_CHARACTERS", 50)
    assert module(tmp_path, TEXTS, cache_dir=str(tmp_path / "other")).sha256 == whole


def test_the_corpus_is_never_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("data.BATCH_CHARACTERS", 10_000)
    source = write_jsonl(tmp_path / "a.jsonl", (f"document {i} " + "x" * 1000 for i in range(5000)))
    data = module(tmp_path, source)
    tracemalloc.start()
    assert data.rows["train"].store.text_bytes > 4_000_000
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_the_line_that_is_said(tmp_path):
    said = []
    texts = ["Grüße", " ", *TEXTS]
    data = module(tmp_path, texts, say=said.append)
    train, val = (data.rows[split].store for split in ("train", "val"))
    folder = next((tmp_path / "cache").glob("*/"))
    assert said == [
        f"data: train {train.documents} documents, {train.tokens:,} tokens, {len(data.rows['train'])} rows of 8; "
        f"val {val.documents} documents, {val.tokens:,} tokens, {len(data.rows['val'])} rows of 8; 1.00 bytes per token; "
        f"written to {folder}; skipped: 1 x empty document"
    ]
    assert train.documents + val.documents == 201
    assert train.text_bytes + val.text_bytes == sum(len(text.encode()) for text in texts) - 1


# --- batches


def steps_of(data):
    return {batch["step"]: batch for batch in data.train_dataloader()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])) for name in a)


def rows_in(batch):
    """A step's rows, whatever its shape: pairs of inputs and labels, sorted."""
    inputs, labels = batch["input_ids"].flatten(0, -2).tolist(), batch["labels"].flatten(0, -2).tolist()
    return sorted(zip(inputs, labels, strict=True))


def test_steps_have_micro_batches(tmp_path):
    data = module(tmp_path, TEXTS, trainer={"micro_batch_size": 2}, document_mask=True)
    batches = list(data.train_dataloader())
    assert [batch["step"] for batch in batches] == list(range(20))
    assert {name: tuple(value.shape) for name, value in batches[0].items() if name != "step"} == dict.fromkeys(
        ["input_ids", "labels", "document_ids"], (4, 2, 8)
    )


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
    """Epochs have 7.5 steps here, so some of these are behind an epoch's border, and one is in its middle."""
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS[:40])
    straight = steps_of(module(tmp_path, source))
    resumed = module(tmp_path, source)
    assert 1 < 1 / resumed.epochs_per_step < 19
    resumed.start_step = start
    rest = steps_of(resumed)
    assert sorted(rest) == list(range(start, 20))
    assert all(equal(rest[k], straight[k]) for k in rest)


def test_epochs_are_shuffled_anew_and_seeds_differ(tmp_path):
    def order(seed, epoch):
        data = module(tmp_path, TEXTS, trainer={"batch_size": 1, "seed": seed})
        n, steps = len(data.rows["train"]), data.train_dataloader().dataset
        return [rows_in(steps[k])[0] for k in range(epoch * n, (epoch + 1) * n)]

    orders = [order(1, 0), order(1, 1), order(1, 2), order(2, 0)]
    assert all(sorted(rows) == sorted(orders[0]) for rows in orders)
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize(("micro_batch", "world_size"), [(8, 1), (4, 1), (2, 1), (4, 2), (2, 2), (1, 4)])
def test_micro_batches_and_processes_share_out_the_same_rows(tmp_path, micro_batch, world_size):
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    whole = steps_of(module(tmp_path, source))
    trainer = {"micro_batch_size": micro_batch, "devices": world_size}
    shares = [steps_of(module(tmp_path, source, place=(rank, world_size), trainer=trainer)) for rank in range(world_size)]
    accumulation = 8 // (micro_batch * world_size)
    for k, batch in whole.items():
        assert all(share[k]["input_ids"].shape == (accumulation, micro_batch, 8) for share in shares)
        assert sorted(row for share in shares for row in rows_in(share[k])) == rows_in(batch)
        # Dealt out in the order (micro-batch, process, row), so that numbering a row by its place does not depend on the layout.
        dealt = torch.stack([share[k]["input_ids"] for share in shares], dim=1).reshape(8, 8)
        assert torch.equal(dealt, batch["input_ids"].reshape(8, 8))


def test_loading_leaves_the_global_random_state_alone(tmp_path):
    data = module(tmp_path, TEXTS)
    assert data.rows
    state = torch.get_rng_state()
    next(iter(data.train_dataloader()))
    list(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


# --- validation


@given(n_tokens=st.integers(2, 60), n_rows=st.none() | st.integers(1, 30), micro_batch=st.integers(1, 5), world_size=st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_validation_scores_each_chosen_token_once(tmp_path_factory, n_tokens, n_rows, micro_batch, world_size):
    folder = tmp_path_factory.mktemp("val")
    store = make_store(folder, [[0] * (n_tokens - 2)], np.uint32)
    np.arange(n_tokens, dtype=np.uint32).tofile(folder / "train-00000.bin")
    rows = PackedRows(store, 3, PAD, document_mask=False)
    shares = [ValidationBatches(rows, n_rows, micro_batch, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1, "equally many batches on every process"
    labels = torch.cat([share[i]["labels"] for share in shares for i in range(len(share))]).flatten()
    assert all(share[i]["labels"].shape == (micro_batch, 3) for share in shares for i in range(len(share)))
    scored = labels[labels != -100].tolist()
    chosen = min(n_rows or len(rows), len(rows))
    expected = [i for k in range(chosen) for i in rows[np.array([k * len(rows) // chosen])]["labels"].flatten().tolist() if i != -100]
    assert sorted(scored) == sorted(expected)
    assert len(set(scored)) == len(scored)
    if chosen == len(rows):
        assert sorted(scored) == list(range(1, n_tokens))


def test_validation_rows_are_spread_and_always_the_same(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    data = module(tmp_path, source, val_fraction=0.5, trainer={"validation_rows": 8, "micro_batch_size": 2})
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    assert len(first) == 4
    assert all(map(equal, first, second))
    n = len(data.rows["val"])
    expected = data.rows["val"][np.array([k * n // 8 for k in range(8)])]
    assert torch.equal(torch.cat([batch["input_ids"] for batch in first]), expected["input_ids"])
    other_seed = module(tmp_path, source, val_fraction=0.5, trainer={"validation_rows": 8, "micro_batch_size": 2, "seed": 9})
    assert all(map(equal, first, list(other_seed.val_dataloader())))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_validation_loss_does_not_depend_on_the_batch_size(tmp_path, batch_size):
    data = module(tmp_path, TEXTS, trainer={"batch_size": batch_size})
    torch.manual_seed(0)
    decoder = Decoder(data.config.with_vocabulary(BYTES.vocab_size).model).eval()
    store = data.rows["val"].store
    ids = torch.from_numpy(store.read(0, 10**6).astype(np.int64))
    expected = sum(
        torch.nn.functional.cross_entropy(decoder(ids[None, s : s + 8][:, : len(ids) - 1 - s])[0], ids[s + 1 : s + 9], reduction="sum")
        for s in range(0, len(ids) - 1, 8)
    )
    with torch.no_grad():
        losses = [decoder(batch["input_ids"], batch["labels"]).sum() for batch in data.val_dataloader()]
    assert sum(losses).item() == pytest.approx(expected.item(), rel=1e-5)


def test_bytes_per_token(tmp_path):
    data = module(tmp_path, ["Grüße " + text for text in TEXTS], LargeTokenizer(70_000))
    assert data.text_bytes_per_token == 1.0
    val = decoded(module(tmp_path, ["Grüße " + text for text in TEXTS]), "val")
    assert data.rows["val"].store.text_bytes == sum(len(text.encode()) for text in val)


# --- text that is not enough


@pytest.mark.parametrize(
    ("texts", "settings", "expected"),
    [
        ([" ", "\n"], {"on_bad_row": "skip"}, "data.source: there is no text in it; name files that hold some"),
        (["one document " * 9], {}, "data.split: hash needs several documents, and the text is a single one; write data.split: tail"),
        (["same"] * 9, {}, "data.val_fraction: 0.05 with data.split: hash leaves 9 documents to train on and 0 to validate on; give more"),
        (TEXTS, {"val_fraction": 0.9999}, "data.val_fraction: 0.9999 with data.split: hash leaves 0 documents to train on and 200 to"),
        (["ab"], {"split": "tail"}, "data.source: there are 3 tokens to train on, and one row takes 9: 8 (data.sequence_length, or"),
        (["abcdef" * 2], {"split": "tail", "val_fraction": 0.5}, "data.source: there are 8 tokens to train on, and one row takes 9: 8"),
        (["a"], {"split": "tail"}, "data.val_fraction: 0.05 with data.split: tail leaves 0 documents to train on and 1 to validate on;"),
    ],
)
def test_text_that_is_not_enough(tmp_path, texts, settings, expected):
    with pytest.raises(DataError) as error:
        assert module(tmp_path, texts, **settings).rows
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("train", "val", "key"), [(TEXTS, [" "], "data.validation"), ([" "], TEXTS, "data.source")])
def test_a_validation_source_needs_text_on_both_sides(tmp_path, train, val, key):
    with pytest.raises(DataError, match=rf"{key}: there is no text in it; name files that hold some"):
        assert module(tmp_path, train, validation=write_jsonl(tmp_path / "val.jsonl", val), on_bad_row="skip").rows


def test_a_bad_row_of_the_validation_source(tmp_path):
    bad = write_jsonl(tmp_path / "val.jsonl", [*TEXTS, None])
    with pytest.raises(DataError, match=r"val\.jsonl:201: text is not a string: it is None"):
        assert module(tmp_path, TEXTS, validation=bad).rows
    said = []
    for _ in range(2):  # built, then cached
        assert module(tmp_path, [*TEXTS, 3], validation=bad, on_bad_row="skip", say=said.append).rows
    assert all("; skipped: 2 x text is not a string; 200 of the validation documents" in line for line in said)


def test_text_that_is_just_enough(tmp_path):
    data = module(tmp_path, ["abcdefg" * 2], split="tail", val_fraction=0.5)
    assert len(data.rows["train"]) == 1
    assert rows_in(next(iter(data.train_dataloader()))) == [([EOS, *b"abcdefg"], [*b"abcdefg", EOS])] * 8
