"""The adapter for lm-evaluation-harness, compared with the harness's own adapter for `transformers`
on the same weights, with our own scores, and with hand-computed figures. No test uses the network.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from lm import load
from lm.documents.templates import ChatFormat
from lm.evaluation.scoring import continued, score, split
from lm.generation.sampling import Sampling
from lm.system.errors import ConfigError, DataError, NonFiniteError
from lm.tokenizer.tokenizer import Tokenizer, from_definition, load_tokenizer
from model import Decoder
from tests.model.test_model import decoder as make_decoder
from tests.model.test_model import llama_like
from tests.support.runs import ROOT, without, write_trained

pytest.importorskip("lm_eval", reason="pip install lm-eval, to be asked by it")

from lm_eval.api.instance import Instance

from lm.evaluation.harness import (
    SEED,
    Generation,
    Subject,
    chance,
    find_tasks,
    generation,
    load_tasks,
)

CONTEXT = 32
TEXT = (
    "the theory of the thesis is there and the other thing is not, or it was; where do you think"
    " they are?"
)
WORDS = TEXT.split()


def text_of(words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def made_tokenizer(kind: str) -> Tokenizer:
    """Return the byte tokenizer, or a byte-level BPE whose words begin with a space."""
    if kind == "byte":
        return load_tokenizer("byte")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|pad|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [TEXT] * 9,
        trainers.BpeTrainer(vocab_size=330, special_tokens=specials, initial_alphabet=alphabet),
    )
    return from_definition(backend.to_str(), "bpe", 1, 0)


class Pair:
    """The same weights as our decoder and in `transformers`, and the adapters of both."""

    def __init__(self, kind: str):
        self.tokenizer = made_tokenizer(kind)
        shape = {
            "vocab_size": self.tokenizer.vocab_size,
            "context_length": CONTEXT,
            "n_kv_heads": 2,
            "n_layers": 2,
        }
        self.decoder = make_decoder(**shape).eval()
        with torch.no_grad():
            for parameter in self.decoder.parameters():
                # Larger weights make scores differ, so that rounding never decides greedy decoding.
                parameter.mul_(1.6)
        self.subject = Subject(self.decoder, self.tokenizer, 4)

    def theirs(self, add_bos: bool = True) -> Any:
        """Return the harness's own adapter.

        As in training, texts open with EOS if the post-processor of the tokenizer adds it. For
        rolling requests it must not, because the adapter adds EOS itself.
        """
        from lm_eval.models.huggingface import HFLM
        from transformers import PreTrainedTokenizerFast

        backend = Backend.from_str(self.tokenizer.definition)
        eos, pad = (backend.id_to_token(i) for i in (self.tokenizer.eos_id, self.tokenizer.pad_id))
        backend.post_processor = processors.TemplateProcessing(
            single=f"{eos} $A", special_tokens=[(eos, self.tokenizer.eos_id)]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=eos,
            bos_token=eos,
            pad_token=pad,
            clean_up_tokenization_spaces=False,
        )
        model = llama_like(self.decoder, "Llama")
        model.generation_config.eos_token_id = self.tokenizer.eos_id
        return HFLM(
            model,
            tokenizer=tokenizer,
            add_bos_token=add_bos,
            prefix_token_id=self.tokenizer.eos_id,
            batch_size=3,
            device="cpu",
        )


@pytest.fixture(scope="module", params=["byte", "bpe"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


@pytest.fixture(scope="module")
def bytewise() -> Pair:
    return Pair("byte")


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=row, idx=0) for row in arguments]


@torch.no_grad()
def slowly(decoder: Decoder, read: Sequence[int], first: int) -> tuple[float, bool]:
    """Return the log-probability of read[first:], one token at a time, with at most a context of
    the preceding tokens. Also return whether the tokens are the greedy ones.
    """
    total, greedy = 0.0, True
    for end in range(first, len(read)):
        probabilities = (
            decoder(torch.tensor([read[max(0, end - CONTEXT) : end]]))[0, -1].double().softmax(-1)
        )
        total += math.log(probabilities[read[end]])
        greedy &= int(probabilities.argmax()) == read[end]
    return total, greedy


# --- the harness's own adapter for transformers, on the same weights

CONTEXTS = [
    "the theory of",
    "",
    "where do you",
    text_of(40, 1),
    "the theory of  ",
    "is there\n",
    " ",
    "café and 語🙂",
    text_of(5, 2),
]


@pytest.mark.usefixtures("takes_seconds")
def test_log_likelihoods_are_those_of_transformers(pair: Pair) -> None:
    """Right logits, left truncation that keeps the end of the context, the opening EOS of
    training.
    """
    asked = [
        (context, continuation)
        for context in CONTEXTS
        for continuation in (" the thesis", " is", ", and", " 語")
    ]
    mine = pair.subject.loglikelihood(requests("loglikelihood", asked))
    theirs = pair.theirs().loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    np.testing.assert_allclose([nats for nats, _ in mine], [nats for nats, _ in theirs], atol=1e-4)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
    assert pair.subject.cut["loglikelihood"] >= 4


def test_the_greedy_continuation_is_known_as_such(pair: Pair) -> None:
    ids = [pair.tokenizer.eos_id]
    for _ in range(3):
        ids.append(int(pair.decoder(torch.tensor([ids]))[0, -1].argmax()))
    subject = Subject(pair.decoder, pair.tokenizer, 4)
    assert subject._score([([], ids[1:]), ([], [*ids[1:3], (ids[3] + 1) % 256])]) == [
        (pytest.approx(slowly(pair.decoder, ids, 1)[0], abs=1e-4), True),
        (
            pytest.approx(slowly(pair.decoder, [*ids[:3], (ids[3] + 1) % 256], 1)[0], abs=1e-4),
            False,
        ),
    ]


@pytest.mark.usefixtures("takes_seconds")
def test_rolling_log_likelihoods_are_those_of_transformers(pair: Pair) -> None:
    asked = [(text_of(words, words),) for words in (1, 7, 30, 90, 200)] + [("",)]
    mine = pair.subject.loglikelihood_rolling(requests("loglikelihood_rolling", asked))
    theirs = pair.theirs(add_bos=False).loglikelihood_rolling(
        requests("loglikelihood_rolling", asked), disable_tqdm=True
    )
    np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=1e-6)
    assert mine[-1] == 0


# No letter of a special token's name: the other adapter would stop there too, although its text has
# no special tokens.
WANTED: list[dict[str, Any]] = [
    {"until": [], "max_gen_toks": 12},
    {"until": ["h", "C", "zz"], "max_gen_toks": 16, "do_sample": False, "temperature": 0.7},
    {"until": " t", "max_gen_toks": 3, "temperature": 0.0},
]


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_texts_are_those_of_transformers(pair: Pair, wanted: dict[str, Any]) -> None:
    asked = [(context.rstrip() or "you", wanted) for context in CONTEXTS]
    mine = pair.subject.generate_until(requests("generate_until", asked))
    theirs = pair.theirs().generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert mine == theirs
    assert len(set(mine)) > 2


# --- our own scores; order and batch size


def test_log_likelihoods_are_those_of_our_own_scores(pair: Pair) -> None:
    cases = [
        ("the theory of", " the thesis"),
        ("", "where do you"),
        ("is there", ", or not"),
        (text_of(60, 3), " thing"),
    ]
    mine = pair.subject.loglikelihood(requests("loglikelihood", cases))
    rows = [
        continued(pair.tokenizer.eos_id, *split(pair.tokenizer, *case), CONTEXT) for case in cases
    ]
    assert [nats for nats, _ in mine] == pytest.approx(
        [-scores.nats.sum() for scores in score(pair.decoder, rows)], abs=1e-5
    )


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_order_and_batch_size_change_no_number(pair: Pair, batch_size: int) -> None:
    """Neither the order nor the batch size changes a result."""
    asked = [(context, " " + text_of(n + 1, n)) for n, context in enumerate(CONTEXTS)]
    expected = dict(
        zip(asked, pair.subject.loglikelihood(requests("loglikelihood", asked)), strict=True)
    )
    shuffled = random.Random(0).sample(asked, len(asked))
    subject = Subject(pair.decoder, pair.tokenizer, batch_size)
    scores = subject.loglikelihood(requests("loglikelihood", shuffled))
    np.testing.assert_allclose(
        [nats for nats, _ in scores], [expected[row][0] for row in shuffled], atol=1e-4
    )
    wanted = {"until": ["e"], "max_gen_toks": 9}
    texts = [(context, wanted) for context in CONTEXTS]
    mixed = [
        (context, wanted if n % 2 else {**wanted, "max_gen_toks": 3})
        for n, context in enumerate(CONTEXTS)
    ]
    whole, some = (
        subject.generate_until(requests("generate_until", rows)) for rows in (texts, mixed)
    )
    assert whole == pair.subject.generate_until(requests("generate_until", texts))
    assert some[1::2] == whole[1::2]


def test_a_continuation_longer_than_the_context_is_scored_in_parts(bytewise: Pair) -> None:
    context, continuation = "the", " " + text_of(20, 4)
    assert len(continuation) > 2 * CONTEXT
    ((nats, greedy),) = bytewise.subject.loglikelihood(
        requests("loglikelihood", [(context, continuation)])
    )
    whole = [bytewise.tokenizer.eos_id, *bytewise.tokenizer.encode(context + continuation)]
    expected = 0.0
    for start in range(1 + len(context), len(whole), CONTEXT):
        end = min(len(whole), start + CONTEXT)
        read = whole[max(0, end - 1 - CONTEXT) : end]
        expected += slowly(bytewise.decoder, read, len(read) - (end - start))[0]
    assert nats == pytest.approx(expected, abs=1e-4)
    assert not greedy


def test_an_empty_continuation_is_certain(pair: Pair) -> None:
    assert pair.subject.loglikelihood(
        requests("loglikelihood", [("the theory", ""), ("", "")])
    ) == [(0, True), (0, True)]


def test_scores_that_are_not_finite_are_no_result() -> None:
    broken = make_decoder(vocab_size=260, context_length=CONTEXT)
    broken.norm.weight.data[:] = math.nan
    with pytest.raises(NonFiniteError, match="damaged or diverged"):
        Subject(broken, load_tokenizer("byte"), 4).loglikelihood(
            requests("loglikelihood", [("a", "b")])
        )


# --- generation


def test_what_a_task_asks_for(caplog: pytest.LogCaptureFixture) -> None:
    assert generation({}) == Generation(Sampling(temperature=0), 256, ())
    assert generation({"until": "\n", "max_gen_toks": 5, "do_sample": False}) == Generation(
        Sampling(temperature=0), 5, ("\n",)
    )
    assert generation(
        {"until": ["a", ""], "max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9}
    ) == Generation(Sampling(temperature=0.5, top_p=0.9), 7, ("a",))
    assert generation({"do_sample": True}).options == Sampling(temperature=1.0)
    assert generation({"do_sample": False, "temperature": 1.0, "top_k": 3}).options.greedy
    with pytest.raises(
        ConfigError,
        match=(
            r"generation_kwargs: a task asks for num_beams: 4, which is not offered; there is"
            r" .*top_k"
        ),
    ):
        generation({"num_beams": 4})


def test_drawn_texts_depend_on_their_own_number_alone(bytewise: Pair) -> None:
    drawn = [
        (context, {"do_sample": True, "temperature": 1.5, "max_gen_toks": 12})
        for context in ("the", "the", "other")
    ]
    alike = [
        Subject(bytewise.decoder, bytewise.tokenizer, size).generate_until(requests("", drawn))
        for size in (1, 9)
    ]
    assert alike[0] == alike[1]
    assert alike[0][0] != alike[0][1]  # repeats of one request are different draws
    assert SEED == 1234


def test_a_long_prompt_leaves_room_and_its_newest_half_at_least(bytewise: Pair) -> None:
    subject = Subject(bytewise.decoder, bytewise.tokenizer, 4)
    long = text_of(40, 5)
    for most, kept in ((4, CONTEXT - 4), (CONTEXT // 2, CONTEXT // 2), (3 * CONTEXT, CONTEXT // 2)):
        whole = subject.generate_until(requests("", [(long, {"max_gen_toks": most})]))
        ids, written = bytewise.tokenizer.encode(long)[-kept:], []
        for _ in range(min(most, CONTEXT - kept)):  # until the context is full
            written.append(int(bytewise.decoder(torch.tensor([ids + written]))[0, -1].argmax()))
        assert whole[0].startswith(bytewise.tokenizer.decode(written).rstrip("\ufffd"))
    assert subject.cut == {"generate_until": 3}


# --- conversations


def test_conversations_are_put_in_the_checkpoints_template() -> None:
    tokenizer = made_tokenizer("bpe")
    form = ChatFormat("chatml", tokenizer)
    decoder = make_decoder(vocab_size=tokenizer.vocab_size, context_length=96).eval()
    subject = Subject(decoder, tokenizer, 4, form)
    history = [
        {"role": "system", "content": "the"},
        {"role": "user", "content": "is it <|im_end|>?"},
    ]
    context = subject.apply_chat_template(history)
    assert json.loads(context) == history
    prompt = subject._prompt(context)
    special = tokenizer.specials["<|im_end|>"]
    assert prompt.count(special) == 2  # the text adds none
    (nats, _), (alone, _) = subject.loglikelihood(
        requests("", [(context, " the thesis"), ("", "the thesis")])
    )
    answer = form.answer("the thesis")
    assert answer[-1] == special
    assert nats == pytest.approx(
        -score(decoder, [continued(tokenizer.eos_id, prompt[1:], answer, 96)])[0].nats.sum(),
        abs=1e-5,
    )
    assert alone == pytest.approx(
        -score(decoder, [continued(tokenizer.eos_id, [], tokenizer.encode("the thesis"), 96)])[
            0
        ].nats.sum(),
        abs=1e-5,
    )
    (written,) = subject.generate_until(requests("", [(context, {"max_gen_toks": 5})]))
    assert tokenizer.decode(prompt).endswith("assistant\n")
    assert "<|im_" not in written
    with pytest.raises(ConfigError, match="gen_prefix"):
        subject.apply_chat_template(
            [*history, {"role": "assistant", "content": "Answer:"}], add_generation_prompt=False
        )


def test_caches_of_the_harness_tell_tokenizers_and_templates_apart(pair: Pair) -> None:
    names = {Subject(pair.decoder, pair.tokenizer, 4).tokenizer_name}
    names |= {
        Subject(
            pair.decoder, pair.tokenizer, 4, ChatFormat("alpaca", pair.tokenizer)
        ).tokenizer_name
    }
    assert (
        len(names | {Pair("byte").subject.tokenizer_name, Pair("bpe").subject.tokenizer_name}) == 3
    )


# --- whole tasks, through the harness


def write_task(folder: Path, name: str, rows: Sequence[dict[str, Any]], **keys: object) -> Path:
    """Write a task with its own data, as a user would."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(source | keys), encoding="utf-8")
    return path


QUESTIONS = [
    {
        "q": text_of(2 + n % 5, n),
        "choices": ["thing", "the other one", "theory", "think so"][: 2 + n % 3],
        "answer": n % 2,
    }
    for n in range(24)
]
CHOOSING = {
    "output_type": "multiple_choice",
    "doc_to_text": "q",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
}
WRITING = {"output_type": "generate_until", "doc_to_text": "q", "doc_to_target": "reference"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, bytewise: Pair) -> Path:
    return write_trained(tmp_path_factory.mktemp("run"), bytewise.decoder, bytewise.tokenizer, {})


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tell the libraries that there is no network, and fail if one of them tries to connect."""
    import socket

    import datasets

    def refuse(*_: object) -> None:
        raise AssertionError("asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    # It would take seconds to list the machine's packages.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def command(
    *arguments: str | Path, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process whose sockets refuse to connect."""
    cut_off = (
        "import socket, sys\n"
        "def refuse(*a): sys.exit('asked for the network')\n"
        "socket.socket.connect = refuse\n"
        "from lm.system import errors\n"
        "import tools.lm_eval\n"
        "errors.run(tools.lm_eval.main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", cut_off, *map(str, arguments)],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done


def asked_by_the_harness(subject: Subject, folder: Path, **options: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    manager, names = find_tasks([path.stem for path in sorted(folder.glob("*.yaml"))], folder)
    return dict(
        simple_evaluate(subject, tasks=load_tasks(manager, names), task_manager=manager, **options)
    )


@pytest.mark.usefixtures("starts_processes")
def test_the_command_gives_the_figures_that_a_slow_computation_gives(
    tmp_path: Path, bytewise: Pair, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks are multiple choice, exact match and perplexity, each token read alone."""
    tokenizer, decoder = bytewise.tokenizer, bytewise.decoder
    eos = tokenizer.eos_id
    best, best_by_length = [], []
    for row in QUESTIONS:
        prompt = [eos, *tokenizer.encode(row["q"])]
        totals = [
            slowly(decoder, [*prompt, *tokenizer.encode(f" {choice}")], len(prompt))[0]
            for choice in row["choices"]
        ]
        best.append(int(np.argmax(totals)) == row["answer"])
        per_length = [
            total / len(choice) for total, choice in zip(totals, row["choices"], strict=True)
        ]
        best_by_length.append(int(np.argmax(per_length)) == row["answer"])
    texts = []
    for row in QUESTIONS:
        ids = [eos, *tokenizer.encode(row["q"])][-(CONTEXT - 6) :]
        for _ in range(6):
            ids.append(int(decoder(torch.tensor([ids[-CONTEXT:]]))[0, -1].argmax()))
        texts.append(tokenizer.decode(ids[-6:]).partition("e")[0])
    references = [text if n % 3 else "no" for n, text in enumerate(texts)]
    pages = [text_of(words, words) for words in (3, 9, 25, 60)]
    nats = 0.0
    for page in pages:
        whole = [eos, *tokenizer.encode(page)]
        # in parts of a context, the last one with all the preceding text that fits
        for start in range(1, len(whole), CONTEXT):
            end = min(len(whole), start + CONTEXT)
            read = whole[max(0, end - 1 - CONTEXT) : end]
            nats -= slowly(decoder, read, len(read) - (end - start))[0]

    write_task(
        tmp_path,
        "choosing",
        QUESTIONS,
        **CHOOSING,
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    written = [
        {"q": row["q"], "reference": reference}
        for row, reference in zip(QUESTIONS, references, strict=True)
    ]
    kwargs = {"until": ["e"], "max_gen_toks": 6}
    write_task(
        tmp_path,
        "writing",
        written,
        **WRITING,
        generation_kwargs=kwargs,
        metric_list=[{"metric": "exact_match"}],
    )
    reading = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "page"}
    write_task(
        tmp_path,
        "reading",
        [{"page": page} for page in pages],
        **reading,
        metric_list=[{"metric": "bits_per_byte"}],
    )

    nowhere = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    words = [
        "--ckpt",
        checkpoint,
        "--tasks",
        "choosing",
        "writing",
        "reading",
        "--include-path",
        tmp_path,
        "--device",
        "cpu",
    ]
    done = command(*words, "--json", "--out", tmp_path / "report.json", **nowhere)
    report = json.loads(done.stdout)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    results = report["results"]
    for metric, right in (("acc", best), ("acc_norm", best_by_length)):
        assert results["choosing"][f"{metric},none"] == statistics.mean(right)
        assert results["choosing"][f"{metric}_stderr,none"] == pytest.approx(
            statistics.stdev(right) / math.sqrt(len(right))
        )
    assert 0 < statistics.mean(best) < 1
    assert report["chance"] == {"choosing": pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)}
    matches = [text == reference for text, reference in zip(texts, references, strict=True)]
    assert (
        results["writing"]["exact_match,none"] == statistics.mean(matches) == pytest.approx(16 / 24)
    )
    size = sum(len(page.encode()) for page in pages)
    assert results["reading"]["bits_per_byte,none"] == pytest.approx(
        nats / math.log(2) / size, abs=1e-5
    )
    assert report["step"] == 150
    assert report["cut"] == {
        "loglikelihood": sum(over(row) for row in QUESTIONS),
        "generate_until": sum(len(row["q"]) > 25 for row in QUESTIONS),
    }
    assert (
        f"{report['cut']['loglikelihood']} loglikelihood requests do not fit the context of 32"
        " tokens" in done.stderr
    )

    shown = command(*words, "--limit", "3", **nowhere).stdout
    assert shown.startswith(f"{checkpoint} (step 150) on cpu, lm-evaluation-harness 0.4.")
    assert "|exact_match" in shown
    assert "choosing: a blind guess is right with a probability of 0.3611" in shown


def over(row: dict[str, Any]) -> int:
    return sum(len(row["q"]) + 1 + len(choice) > CONTEXT for choice in row["choices"])


PAIRS = [
    ("", "The cats are here.", "The cats is here."),
    ("", "She sees herself.", "She sees himself."),
    ("The dog that saw the boys", " was old.", " were old."),
    ("Many", " people think so.", " person think so."),
    ("Nobody has", " ever been there.", " never been there."),
    ("", "Who do you think is there?", "Who do you think are there?"),
]


def own_choices(pair: Pair, cases: Sequence[tuple[str, Sequence[str]]]) -> list[int]:
    """Return the choices with the highest log-probability, as our own ranking chooses."""
    chosen = []
    for prompt, choices in cases:
        rows = [
            continued(pair.tokenizer.eos_id, *split(pair.tokenizer, prompt, choice), CONTEXT)
            for choice in choices
        ]
        chosen.append(int(np.argmax([-scores.nats.sum() for scores in score(pair.decoder, rows)])))
    return chosen


@pytest.mark.usefixtures("offline")
def test_minimal_pairs_are_chosen_as_our_own_ranking_chooses(pair: Pair, tmp_path: Path) -> None:
    turned = [
        (prompt, [good, bad][:: -1 if n % 2 else 1], n % 2)
        for n, (prompt, good, bad) in enumerate(PAIRS)
    ]
    rows = [
        {"q": prompt, "choices": choices, "answer": answer} for prompt, choices, answer in turned
    ]
    write_task(
        tmp_path, "pairs", rows, **CHOOSING, target_delimiter="", metric_list=[{"metric": "acc"}]
    )
    results = asked_by_the_harness(pair.subject, tmp_path)
    chosen = own_choices(pair, [(prompt, choices) for prompt, choices, _ in turned])
    expected = [
        float(choice == answer) for choice, (_, _, answer) in zip(chosen, turned, strict=True)
    ]
    assert [sample["acc"] for sample in results["samples"]["pairs"]] == expected
    assert results["results"]["pairs"]["acc,none"] == statistics.mean(expected)
    assert chance(results["samples"]["pairs"]) == 0.5


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.usefixtures("offline")
def test_the_shipped_minimal_pairs_as_a_task(tmp_path: Path) -> None:
    """docs/EVALUATION.md shows this: a file of cases as a task of the harness has exactly the
    accuracy of our own choices.
    """
    cases = (
        pytest.importorskip("lm.ranking.cases").read_cases(ROOT / "cases" / "grammar.yaml").cases
    )
    rows = [
        {
            "q": case.prompt,
            "choices": case.choices,
            "answer": next(i for i, text in enumerate(case.choices) if text in case.targets),
        }
        for case in cases
    ]
    decoder, tokenizer = (
        make_decoder(vocab_size=260, context_length=128).eval(),
        load_tokenizer("byte"),
    )
    write_task(
        tmp_path, "grammar", rows, **CHOOSING, target_delimiter="", metric_list=[{"metric": "acc"}]
    )
    results = asked_by_the_harness(Subject(decoder, tokenizer, 16), tmp_path)
    expected = []
    for row in rows:
        asked = [
            continued(tokenizer.eos_id, *split(tokenizer, row["q"], choice), 128)
            for choice in row["choices"]
        ]
        expected.append(
            float(
                int(np.argmin([scores.nats.sum() for scores in score(decoder, asked)]))
                == row["answer"]
            )
        )
    assert [sample["acc"] for sample in results["samples"]["grammar"]] == expected
    assert (
        0
        < results["results"]["grammar"]["acc,none"]
        == pytest.approx(statistics.mean(expected), abs=1e-12)
    )


@pytest.mark.usefixtures("offline")
def test_conversations_of_a_task_are_turns(tmp_path: Path) -> None:
    """Examples become earlier turns, and the description becomes the system's message."""
    tokenizer = made_tokenizer("bpe")
    form = ChatFormat("chatml", tokenizer)
    decoder = make_decoder(vocab_size=tokenizer.vocab_size, context_length=192).eval()
    write_task(
        tmp_path,
        "asking",
        QUESTIONS[:6],
        **CHOOSING,
        description="the thesis",
        metric_list=[{"metric": "acc"}],
    )
    results = asked_by_the_harness(
        Subject(decoder, tokenizer, 4, form), tmp_path, apply_chat_template=True, num_fewshot=2
    )
    for sample in results["samples"]["asking"]:
        context, continuation = sample["arguments"][0]
        turns = json.loads(context)
        assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * 2, "user"]
        assert turns[0]["content"] == "the thesis"
        assert turns[-1]["content"] == sample["doc"]["q"]
        assert continuation == sample["doc"]["choices"][0]


# --- mistakes


def test_chance_counts_the_choices_behind_a_context() -> None:
    asked = [
        {"arguments": [("q", " a"), ("q", " b"), ("", " a"), ("", " b")]},
        {"arguments": [("", "a"), ("", "b"), ("", "c"), ("", "d")]},
    ]
    assert chance(asked) == (1 / 2 + 1 / 4) / 2


@pytest.mark.usefixtures("offline")
def test_a_task_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    write_task(tmp_path, "fine", QUESTIONS, **CHOOSING)
    write_task(tmp_path, "gone", QUESTIONS, **CHOOSING)
    (tmp_path / "gone.jsonl").unlink()
    (tmp_path / "group.yaml").write_text("group: both\ntask: [fine]\n")
    manager, names = find_tasks(["fine", "gone"], tmp_path)
    with pytest.raises(DataError, match=r"task gone: cannot be loaded \(.*gone.jsonl"):
        load_tasks(manager, names)
    manager, _ = find_tasks(["fine"], tmp_path)
    with pytest.raises(
        ConfigError, match="--tasks: fine is in both as well as in fine; leave one of them out"
    ):
        load_tasks(manager, ["both", "fine"])
    (group,) = load_tasks(manager, ["both"])
    assert group.name == "both"
    (task,) = load_tasks(*find_tasks([str(tmp_path / "fine.yaml")], None))
    assert task.task_name == "fine"
    task.UNSAFE_CODE = True
    type(task).UNSAFE_CODE = True
    try:
        with pytest.raises(ConfigError, match="--tasks: fine runs code that the model writes"):
            load_tasks(manager, ["fine"])
    finally:
        type(task).UNSAFE_CODE = False


def test_a_task_is_asked_once(tmp_path: Path) -> None:
    for name in ("own_a", "own_b", "other"):
        write_task(tmp_path, name, QUESTIONS, **CHOOSING)
    _, names = find_tasks(["own_a", "other", "own_a"], tmp_path)
    assert names == ["own_a", "other"]


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (
            ["--tasks", "lambada_openia"],
            2,
            "--tasks: there is no task lambada_openia; near it are lambada_openai, ",
        ),
        (
            ["--tasks", "remote"],
            3,
            "task remote: cannot be loaded (Couldn't reach 'nobody/nothing' on the Hub",
        ),
        (["--ckpt", "README.md", "--tasks", "mine"], 5, "README.md"),
        (
            ["--tasks", "mine", "--include-path", "nowhere"],
            2,
            "--include-path nowhere: no such folder",
        ),
        (
            ["--tasks", "mine", "--out", "nowhere/x.json"],
            2,
            "--out nowhere/x.json: there is no folder nowhere",
        ),
        (["--tasks", "mine", "--limit", "0"], 2, "--limit 0 is out of range; write 1 or more"),
        (["--tasks", "mine", "--template", "alpaca"], 2, "--template is for --chat"),
        (
            ["--tasks", "mine", "--chat", "--template", "chatty"],
            2,
            "--template chatty: there is alpaca, chatml",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_line(
    words: list[str], code: int, expected: str, tmp_path: Path, checkpoint: Path
) -> None:
    write_task(tmp_path, "mine", QUESTIONS, **CHOOSING)
    write_task(
        tmp_path,
        "remote",
        [],
        **{**CHOOSING, "dataset_path": "nobody/nothing", "dataset_kwargs": {}},
    )
    nowhere = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    common = without(["--ckpt", checkpoint, "--include-path", tmp_path], words)
    done = command(*common, *words, code=code, **nowhere)
    assert done.stderr.startswith(expected)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("starts_processes")
def test_without_the_harness_the_command_says_what_to_install(checkpoint: Path) -> None:
    missing = (
        "import sys\n"
        "sys.modules['lm_eval'] = None\n"
        "from lm.system import errors\n"
        "import tools.lm_eval\n"
        "errors.run(tools.lm_eval.main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", missing, "--ckpt", checkpoint, "--tasks", "piqa"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == f"lm-evaluation-harness is not installed: {sys.executable} -m pip install"
        " lm-eval==0.4.13\n"
    )


def test_a_checkpoint_is_asked_as_it_is_loaded(checkpoint: Path, bytewise: Pair) -> None:
    decoder, tokenizer, _ = load(checkpoint)
    asked = requests("", [("the theory of", " the thesis")])
    assert Subject(decoder, tokenizer, 4).loglikelihood(asked) == bytewise.subject.loglikelihood(
        asked
    )
