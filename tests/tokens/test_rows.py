"""Conversations become rows: every label is where it belongs, each conversation is alone, and a cut
invents nothing.
"""

import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import PackedDataModule, Rows
from lm.checks.overlap import StoredDocuments
from lm.checks.xray import read_rows
from lm.config.schema.config import Config
from lm.config.schema.model import ModelConfig
from lm.documents.templates import BEGINS, LEARNED
from lm.evaluation.validation import evaluate
from lm.optim.loss import IGNORE_INDEX
from lm.optim.randomness import fold
from lm.system.errors import DataError
from lm.tokenizer.learn import learn
from lm.tokenizer.tokenizer import ByteTokenizer, FastTokenizer
from lm.tokens.manifest import Manifest
from lm.tokens.rows import ConversationRows, PackedRows, pack
from lm.tokens.sources import held_out_conversations
from lm.tokens.store import SplitWriter, TokenStore
from model import Decoder

BYTES = ByteTokenizer()
EOS, PAD, END = BYTES.eos_id, BYTES.pad_id, 259
# A conversation here is a list of the ids after its EOS, with a flag for each.
conversations = st.lists(
    st.lists(
        st.tuples(st.integers(0, 255), st.sampled_from([0, LEARNED])), min_size=1, max_size=14
    ),
    max_size=8,
)


def make_store(folder, given):
    writer = SplitWriter(folder, "train", EOS, np.uint16, flagged=True)
    stream = [pair for conversation in given for pair in ((EOS, 0), *conversation)]
    ids = np.array([i for i, _ in stream], np.uint16)
    flags = np.array([flag for _, flag in stream], np.uint8)
    lengths = np.array([len(conversation) for conversation in given], np.int64)
    writer.add(ids, lengths, np.zeros(len(given), np.uint64), 1, flags, 1)
    return TokenStore(folder, "train", Manifest(dtype="uint16", splits={"train": writer.close()}))


def expected(given, length, too_long):
    """Return pairs of an input and its label for each conversation that is kept."""
    result = []
    for conversation in given:
        if len(conversation) > length and (
            too_long == "drop" or not any(flag for _, flag in conversation[:length])
        ):
            continue
        inputs = [EOS, *(i for i, _ in conversation)]
        result.append(
            [
                (token, i if flag else IGNORE_INDEX)
                for token, (i, flag) in zip(inputs, conversation[:length], strict=False)
            ]
        )
    return result


@pytest.mark.usefixtures("takes_seconds")
@settings(max_examples=150)
@given(conversations, st.integers(4, 16), st.booleans(), st.sampled_from(["drop", "cut"]))
def test_rows_hold_every_conversation_once_token_for_token(
    tmp_path_factory, given, length, packed, too_long
):
    part = ConversationRows(
        make_store(tmp_path_factory.mktemp("store"), given), length, packed, too_long
    )
    wanted, found = expected(given, length, too_long), []
    for number in range(len(part)):
        inputs, labels, begins = part.row(number)
        assert len(inputs) == len(labels) <= length
        pairs = list(zip(inputs.tolist(), labels.tolist(), strict=True))
        borders = [0, *begins.tolist(), len(pairs)]
        found += [pairs[a:b] for a, b in pairwise(borders)]
    assert sorted(found) == sorted(wanted)
    assert part.n_inputs == sum(map(len, wanted))
    assert sum(part.skipped.values()) == sum(
        len(conversation) > length for conversation in given
    ), "each is counted once"
    assert packed or len(part) == len(wanted)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(2, 9), st.integers(1, 9),
    st.integers(0, 3),
)  # fmt: skip
def test_packed_rows_of_an_epoch_are_those_of_a_rotated_stream(
    tmp_path_factory, lengths, length, stride, epoch
):
    """The slow version turns a list. Without a seed all epochs are the first."""
    documents = [[(10 * n + i + 1, 0) for i in range(size)] for n, size in enumerate(lengths)]
    store = make_store(tmp_path_factory.mktemp("store"), documents)
    stream = store.read(0, store.tokens).tolist()
    for seed in (None, 7):
        part = PackedRows(store, length, min(stride, length), seed)
        turn = fold(7, epoch) % (len(stream) - 1) if seed and epoch else 0
        turned = stream[turn:-1] + stream[: turn + 1]
        starts = {(start - turn) % (len(stream) - 1) for start in store.document_starts.tolist()}
        for number in range(len(part)):
            inputs, labels, begins = part.row(number, epoch)
            begin = number * part.stride
            assert inputs.tolist() == turned[begin : begin + length][: len(turned) - 1 - begin]
            assert labels.tolist() == turned[begin + 1 : begin + 1 + length]
            assert begins.tolist() == [
                i for i in range(1, len(inputs)) if (begin + i) % (len(stream) - 1) in starts
            ]


def test_a_cut_answer_keeps_its_beginning_and_gets_no_end_of_its_own(tmp_path):
    prompt, answer = [(1, 0)] * 4, [(2, LEARNED)] * 6 + [(END, LEARNED)]
    fills_the_row = [(3, 0)] * 8 + [(END, LEARNED)]
    part = ConversationRows(make_store(tmp_path, [prompt + answer, fills_the_row]), 8, True, "cut")
    [row] = [part.row(number) for number in range(len(part))]
    assert row[0].tolist() == [EOS, 1, 1, 1, 1, 2, 2, 2]
    assert row[1].tolist() == [IGNORE_INDEX] * 4 + [2] * 4, (
        "the fourth label of the answer is the last, and no END follows"
    )
    assert dict(part.skipped) == {
        "conversation cut at a row's end": 1,
        "conversation whose prompt fills a row": 1,
    }


def test_a_pair_is_two_sequences_of_one_row(tmp_path):
    pair = [
        (1, 0),
        (2, LEARNED),
        (END, LEARNED),
        (EOS, BEGINS),
        (1, 0),
        (3, LEARNED),
        (END, LEARNED),
    ]
    rows = Rows(
        [ConversationRows(make_store(tmp_path, [pair, pair]), 16, True, "drop")],
        PAD,
        document_mask=True,
    )
    batch = rows[np.array([[0, 0, 0]])]
    ids, labels = batch["document_ids"][0].tolist(), batch["labels"][0].tolist()
    assert ids == [0] * 4 + [1] * 3 + [2] * 4 + [3] * 3 + [4] * 2
    by_document = [
        [label for i, label in zip(ids, labels, strict=True) if i == n and label != IGNORE_INDEX]
        for n in range(5)
    ]
    assert by_document == [[2, END], [3, END], [2, END], [3, END], []]


def make_decoder(dropout=0.0):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 260,
        "context_length": 64,
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 2,
        "init_std": 0.2,
    }
    return Decoder(ModelConfig(**shape, dropout=dropout))


def loss_and_gradients(decoder, rows):
    decoder.zero_grad()
    losses = decoder(rows["input_ids"], rows["labels"], rows["document_ids"])
    losses.sum().backward()
    return losses.sum().item(), [parameter.grad.clone() for parameter in decoder.parameters()]


def test_packed_conversations_are_learnt_as_if_each_were_alone(tmp_path):
    chance = np.random.default_rng(1)
    given = [
        [
            (int(chance.integers(256)), int(flag))
            for flag in chance.integers(0, 2, chance.integers(2, 30))
        ]
        for _ in range(9)
    ]
    store, decoder = make_store(tmp_path, given), make_decoder()
    results = []
    for packed in (True, False):
        part = ConversationRows(store, 64, packed, "drop")
        addresses = np.array([[0, 0, number] for number in range(len(part))])
        results.append(
            (
                len(part),
                *loss_and_gradients(decoder, Rows([part], PAD, document_mask=True)[addresses]),
            )
        )
    (few, loss, gradients), (many, loss_apart, gradients_apart) = results
    assert few < many == 9
    assert loss == pytest.approx(loss_apart, rel=1e-5)
    for together, apart in zip(gradients, gradients_apart, strict=True):
        torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def config_of(folder, rows, length=64, **source):
    """Return a configuration over conversations of (prompt, answer)."""
    path = folder / "chats.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows
        )
    )
    source = {"format": "chat", "files": str(path), "template": "instruction-output"} | source
    data = {
        "source": source,
        "document_mask": True,
        "val_fraction": 0.3,
        "cache_dir": str(folder / "cache"),
    }
    return Config(
        model={"context_length": length},
        data=data,
        optimizer={"warmup_steps": 0},
        trainer={"max_steps": 4, "batch_size": 4},
    )


def labels_of(data):
    """Return the id of every label of the training split."""
    part = data.rows["train"].parts[0]
    found = [part.row(number)[1] for number in range(len(part))]
    return [int(label) for labels in found for label in labels if label != IGNORE_INDEX]


CHATS = [(f"What is {n}?", f"It is {n * n}.") for n in range(20)]


def test_only_the_answers_and_their_ends_are_labels(tmp_path):
    data = PackedDataModule(config_of(tmp_path, CHATS, length=128), BYTES, lambda line: None)
    store = data.rows["train"].parts[0].store
    learned = bytes(label if label < 256 else ord("$") for label in labels_of(data)).decode()
    answers = [f" It is {n * n}.\n$" for n in range(20)]
    assert sorted(learned.split("$")[:-1]) == sorted(
        answer[:-1] for answer in answers if answer[:-1] in learned.split("$")
    )
    assert learned.count("$") == store.documents
    assert "What" not in learned


def test_what_cannot_be_learnt_does_not_matter(tmp_path):
    """The loss is that of the answers alone. Labels at the prompt's positions would change it, and
    there are none.
    """
    data = PackedDataModule(config_of(tmp_path, CHATS, length=128), BYTES, lambda line: None)
    rows = data.rows["train"][np.array([[0, 0, 0]])]
    decoder = make_decoder()
    by_hand = decoder(rows["input_ids"], document_ids=rows["document_ids"]).log_softmax(dim=-1)
    learned = rows["labels"] != IGNORE_INDEX
    total = -by_hand[learned].gather(1, rows["labels"][learned][:, None]).sum()
    loss, _ = loss_and_gradients(decoder, rows)
    assert loss == pytest.approx(total.item(), rel=1e-5)
    assert 0 < learned.float().mean() < 0.5
    everything = PackedDataModule(
        config_of(tmp_path, CHATS, length=128, mask_prompt=False), BYTES, lambda line: None
    )
    assert len(labels_of(everything)) > 2 * len(labels_of(data))


def test_padding_is_never_learnt_even_where_it_is_the_end(tmp_path):
    """Many tokenizers, such as GPT-2's, use EOS as the padding, too. The true end must stay a
    label.
    """
    config = config_of(tmp_path, CHATS, length=128, template="alpaca", system="")
    tokenizer = ByteTokenizer()
    tokenizer.pad_id = tokenizer.eos_id
    data = PackedDataModule(config, tokenizer, lambda line: None)
    rows = data.rows["train"]
    for number in range(len(rows)):
        row = rows[rows.addresses(np.array([number]))]
        ids, labels = row["input_ids"][0].tolist(), row["labels"][0].tolist()
        assert labels.count(EOS) == ids.count(EOS) - (
            len(ids) - data.rows["train"].parts[0].row(number)[0].size
        )


def test_bits_per_byte_count_the_bytes_of_the_answers(tmp_path):
    data = PackedDataModule(config_of(tmp_path, CHATS, length=128), BYTES, lambda line: None)
    data.rows  # noqa: B018 - the first access makes them
    assert data.text_bytes[:256].tolist() == [1.0] * 256
    [corpus] = data.corpora
    assert (
        corpus.val.text_bytes
        == sum(len(f" It is {n * n}.\n") for n in range(20)) - corpus.train.text_bytes
    )


@pytest.mark.parametrize("too_long", ["drop", "cut"])
def test_bits_per_byte_are_of_the_answers_that_are_scored(tmp_path, too_long):
    """Answers that fit have a byte for each token, those that do not fit have many. They are left
    out, or cut, and so are their bytes.
    """
    definition, _ = learn(["abracadabra " * 40 + "".join(map(chr, range(33, 127)))], 280)
    specials = {token["content"]: token["id"] for token in json.loads(definition)["added_tokens"]}
    tokenizer = FastTokenizer(definition, "learnt", specials["<|eos|>"], specials["<|pad|>"])
    unlike = [(f"What is {n}?", "abracadabra " * 60 + str(n)) for n in range(100, 120)]
    config = config_of(tmp_path, [*CHATS, *unlike], length=64, too_long=too_long)
    data = PackedDataModule(config, tokenizer, lambda line: None)
    torch.manual_seed(0)
    shape = {"context_length": 64, "n_layers": 1, "d_model": 16, "n_heads": 2}
    decoder = Decoder(ModelConfig(vocab_size=tokenizer.vocab_size, **shape)).eval()
    nats, text = 0.0, ""
    for batch in data.val_dataloader():
        scores = decoder(batch["input_ids"], document_ids=batch["document_ids"]).log_softmax(-1)
        for place in (batch["labels"] != IGNORE_INDEX).nonzero().tolist():
            label = int(batch["labels"][tuple(place)])
            if label not in tokenizer.reserved_ids:
                nats -= scores[(*place, label)].item()
                text += tokenizer.decode([label])
    assert ("abracadabra" in text) == (too_long == "cut")
    result = evaluate(decoder, data.val_dataloader(), data.text_bytes)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)


def test_what_is_left_out_is_said(tmp_path):
    said = []
    data = PackedDataModule(
        config_of(tmp_path, [*CHATS, ("long " * 40, "yes")], length=80), BYTES, said.append
    )
    assert len(data.rows["train"]) > 0
    assert any("1 x conversation longer than a row" in line for line in said)


def test_rows_that_hold_no_conversation_are_refused(tmp_path):
    data = PackedDataModule(config_of(tmp_path, CHATS, length=16), BYTES, lambda line: None)
    with pytest.raises(
        DataError, match="no conversation of the train split fits a row of 16 tokens"
    ):
        data.rows  # noqa: B018


@pytest.mark.parametrize(
    ("length", "context", "base", "advice"),
    [
        (160, 256, False, "write data.sequence_length: 221 or more"),
        (160, 160, False, "write model.context_length: 221 or more"),
        (200, 200, True, "the base's context is 200 tokens: take a base with a longer one"),
        (
            64,
            64,
            True,
            "the base's context is 64 tokens: take a base with a longer one, or"
            " data.source.template: instruction-output, which takes 44",
        ),
    ],
)
def test_advice_for_conversations_without_room_is_what_gives_them_room(
    tmp_path, length, context, base, advice
):
    """Longer rows are no advice where the context ends, nor another template where it fits."""
    # The template alone takes 162 bytes; with an end of its own, another one takes 44.
    chats = [("x" * 40 + f"{n:02}", "y" * 38) for n in range(20)]
    config = config_of(tmp_path, chats, length=length, template="alpaca")
    given = config.model_dump() | {"finetune": {"base": "a"} if base else None}
    given["data"]["sequence_length"] = length
    given["model"]["context_length"] = context
    data = PackedDataModule(Config.model_validate(given), BYTES, lambda line: None)
    with pytest.raises(DataError) as refused:
        data.rows  # noqa: B018
    assert str(refused.value) == (
        f"data.source: no conversation of the train split fits a row of {length} tokens: the"
        f" shortest takes 221, of which template alpaca takes 141; {advice}"
    )


def test_text_beside_conversations_keeps_nothing_for_the_report(tmp_path):
    """The text source gives nothing to the report, in either order of the sources."""
    texts = [f"text number {n}" for n in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    chat = config_of(tmp_path, CHATS).data.source
    parts = [
        {"weight": 1, "source": chat},
        {"weight": 1, "source": {"format": "txt", "files": str(tmp_path / "text.txt")}},
    ]
    config = config_of(tmp_path, CHATS)
    data = config.data.model_dump() | {"test_fraction": 0.5}
    for order in (parts, parts[::-1]):
        mixed = Config.model_validate(
            config.model_dump() | {"data": data | {"source": {"format": "mixture", "parts": order}}}
        )
        corpora = PackedDataModule(mixed, BYTES, lambda line: None).corpora
        documents = {
            corpus.reader.source.format: corpus.train.documents + corpus.val.documents
            for corpus in corpora
        }
        assert documents["txt"] == len(texts)
        assert documents["chat"] < len(CHATS)


def test_the_report_reads_what_is_kept_for_it_and_that_alone(tmp_path):
    path = tmp_path / "more.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"other {n}", "completion": "yes"}) + "\n" for n in range(9))
    )
    validation = {"format": "chat", "files": str(path), "template": "instruction-output"}
    given = config_of(tmp_path, CHATS).model_dump(exclude={"data": {"val_fraction"}})

    def held_out(test_fraction):
        config = Config.model_validate(
            given
            | {"data": given["data"] | {"validation": validation, "test_fraction": test_fraction}}
        )
        return [
            conversation.prompt[0].content
            for conversation in held_out_conversations(config, BYTES)[1]
        ]

    assert sorted(held_out(0.0)) == [f"other {n}" for n in range(9)], (
        "what is validated on, where nothing else is held out"
    )
    tested = held_out(0.4)
    assert 0 < len(tested) < len(CHATS)
    assert set(tested) <= {prompt for prompt, _ in CHATS}


def test_conversations_that_two_sources_have_are_asked_once(tmp_path):
    """A conversation of two sources is asked once, even if one of them also learns the prompts. One
    that is twice in a source stays there twice.
    """
    twice = [*CHATS, CHATS[0], CHATS[0]]
    config = config_of(tmp_path, twice)
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"val_fraction": 0.9})}
    )
    alone = held_out_conversations(config, BYTES)[1]
    assert len(alone) == len(set(alone)) + 2
    sources = [
        {**config.data.source.model_dump(), "mask_prompt": mask_prompt}
        for mask_prompt in (False, True)
    ]
    mixture = {
        "format": "mixture",
        "parts": [{"weight": 1, "source": source} for source in sources],
    }
    mixed = Config.model_validate(
        config.model_dump() | {"data": config.data.model_dump() | {"source": mixture}}
    )
    assert held_out_conversations(mixed, BYTES)[1] == alone


def test_a_row_ends_with_its_last_conversation(tmp_path):
    """A row ends with its conversation whatever token ends a turn; here it is not EOS."""
    data = PackedDataModule(config_of(tmp_path, CHATS, length=128), BYTES, lambda line: None)
    batch = data.rows["train"][np.array([[[0, 0, number] for number in range(3)]])]
    rows = read_rows({**batch, "step": 0}, BYTES, [""] * 3)
    assert [(row.starts_inside, row.ends_inside) for row in rows] == [(False, False)] * 3


def test_what_a_template_puts_around_answers_is_not_compared(tmp_path):
    given = [
        [(ord("q"), 0), (ord("a"), LEARNED), (ord("b"), LEARNED), (END, LEARNED)],
        [(ord("q"), 0), (ord("c"), LEARNED)],
    ]
    texts = [
        document.text for document in StoredDocuments("train", [make_store(tmp_path, given)], BYTES)
    ]
    assert [text.rstrip() for text in texts] == [BYTES.decode([ord("a"), ord("b"), END]), "c"]


def test_blank_lines_are_no_conversations(tmp_path):
    config = config_of(tmp_path, CHATS, length=128)
    path = tmp_path / "chats.jsonl"
    path.write_text(path.read_text().replace("\n", "\n\n  \n"))
    data = PackedDataModule(config, BYTES, lambda line: None)
    assert data.corpora[0].train.documents + data.corpora[0].val.documents == len(CHATS)


def test_a_source_without_a_conversation_that_fits_is_refused_beside_others(tmp_path):
    config = config_of(tmp_path, CHATS, length=16)
    (tmp_path / "text.txt").write_text("\n\n".join(f"text number {n}" for n in range(60)))
    text = {"format": "txt", "files": str(tmp_path / "text.txt")}
    parts = [{"weight": 1, "source": text}, {"weight": 1, "source": config.data.source}]
    given = config.model_dump()
    mixed = Config.model_validate(
        given | {"data": given["data"] | {"source": {"format": "mixture", "parts": parts}}}
    )
    with pytest.raises(
        DataError,
        match=r"parts\[1\].source: no conversation of the train split fits a row of 16 tokens",
    ):
        PackedDataModule(mixed, BYTES, lambda line: None).rows  # noqa: B018


WRONG = [
    (
        {"source": {"layout": "preferences"}},
        "data.source.layout preferences does not go with finetune.objective sft",
    ),
    (
        {"source": {"template": "base"}},
        "data.source.template base is that of finetune.base, and this run has none",
    ),
    (
        {"source": {"filter": {"min_length": 9}}},
        "filter.min_length counts the characters of a text",
    ),
    (
        {"document_mask": False},
        "document_mask false would let conversations in one row see each other",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
@pytest.mark.parametrize("place", ["source", "validation"])
def test_what_conversations_need_is_asked_of_all_of_them(tmp_path, wrong, message, place):
    """Validation conversations need the same settings, even if the training data is text."""
    given = config_of(tmp_path, CHATS).model_dump(exclude={"data": {"val_fraction"}})
    data = given["data"] | {"document_mask": wrong.get("document_mask", True)}
    chat = data.pop("source") | wrong.get("source", {})
    text = {"format": "txt", "files": "text.txt"}
    data |= {"source": chat} if place == "source" else {"source": text, "validation": chat}
    with pytest.raises(
        ValueError, match=re.escape(message.replace("data.source", f"data.{place}"))
    ):
        Config.model_validate(given | {"data": data})


def test_a_model_speaks_in_one_template(tmp_path):
    given = config_of(tmp_path, CHATS).model_dump()
    source = given["data"]["source"]
    parts = [
        {"weight": 1, "source": source},
        {"weight": 1, "source": source | {"template": "alpaca"}},
    ]
    with pytest.raises(
        ValueError, match="in the templates alpaca and instruction-output; a model speaks in one"
    ):
        Config.model_validate(
            given | {"data": given["data"] | {"source": {"format": "mixture", "parts": parts}}}
        )


# --- sequences into rows, held against the slow and obvious best fit


def best_fit(lengths, capacity):
    """Return how much each row holds: longest sequences first, each into the fullest row that has
    room.
    """
    rows = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, used in enumerate(rows) if used + length <= capacity]
        if fitting:
            rows[max(fitting, key=lambda i: rows[i])] += length
        else:
            rows.append(length)
    return rows


@given(
    st.integers(1, 40).flatmap(
        lambda capacity: st.tuples(
            st.just(capacity), st.lists(st.integers(1, capacity), max_size=60)
        )
    )
)
def test_each_sequence_is_in_one_row_and_rows_are_as_full_as_best_fit_makes_them(case):
    capacity, lengths = case
    rows = pack(np.array(lengths, np.int64), capacity)
    assert sorted(number for row in rows for number in row.tolist()) == list(range(len(lengths)))
    used = [sum(lengths[number] for number in row.tolist()) for row in rows]
    assert all(0 < size <= capacity for size in used)
    assert sorted(used) == sorted(best_fit(lengths, capacity))


def test_the_same_lengths_give_the_same_rows():
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    assert [row.tolist() for row in pack(lengths, 128)] == [
        row.tolist() for row in pack(lengths.copy(), 128)
    ]


def test_little_is_padding():
    lengths = np.random.default_rng(0).integers(1, 64, 2000)
    assert lengths.sum() / (len(pack(lengths, 128)) * 128) > 0.99
