"""The end of a text, and the part of it that may be shown before the end is known."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from lm.config.schema.model import ModelConfig
from lm.generation.continuation import Sample, StopStrings, write
from lm.generation.prompt import open_prompt, read_prompt
from lm.generation.sampling import Sampling
from lm.system.errors import ConfigError, DataError
from lm.tokenizer.tokenizer import load_tokenizer
from model import Decoder

BYTE = load_tokenizer("byte")


def tiny_decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        ModelConfig(vocab_size=320, d_model=16, n_layers=1, n_heads=2, context_length=32)
    )


def pieces(stops: list[str], texts: list[str]) -> tuple[list[str], bool]:
    watcher = StopStrings(stops)
    return [watcher.push(text) for text in texts] + [watcher.flush()], watcher.found


def up_to_the_first_stop(stops: list[str], text: str) -> tuple[str, bool]:
    """Return the shortest beginning that ends in a stop string, without it: slow, obvious."""
    for end in range(1, len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            return text[: end - max(map(len, matching))], True
    return text, False


# Stop strings


@given(
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    texts=st.lists(st.text("ab\nc", max_size=5), max_size=12),
)
def test_what_comes_through_does_not_depend_on_the_pieces(
    stops: list[str], texts: list[str]
) -> None:
    out, found = pieces(stops, texts)
    assert ("".join(out), found) == up_to_the_first_stop(stops, "".join(texts))


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    assert pieces(["END"], ["one E", "N", "TER ", "EN", "D two"]) == (
        ["one ", "", "ENTER ", "", "", ""],
        True,
    )
    assert pieces(["END"], ["the E"]) == (["the ", "E"], False)
    assert pieces([], ["a", "b"]) == (["a", "b", ""], False)


def test_the_stop_string_that_is_complete_first_counts() -> None:
    assert pieces(["bcde", "cd"], ["abcde"]) == (["ab", ""], True)
    assert pieces(["bcd", "cd"], ["abcd"]) == (["a", ""], True)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ConfigError, match="--stop is empty"):
        StopStrings(["x", ""])


# Samples


def grow(text: str, stops: list[str], ids: list[int] | None = None) -> tuple[Sample, list[str]]:
    sample, shown = Sample(BYTE, open_prompt(BYTE, "prompt"), stops), []
    for token in ids if ids is not None else BYTE.encode(text):
        if sample.finish is None:
            sample.add(token)
            shown.append(sample.text)
    return sample, shown


def test_characters_are_shown_whole_and_once() -> None:
    text = "aé語🙂z"
    sample, shown = grow(text, [])
    sample.close("length")
    assert (sample.text, sample.finish, sample.tokens) == (text, "length", 11)
    assert set(shown) == {text[:n] for n in range(1, 6)}


def test_a_stop_string_over_many_tokens_ends_the_text_before_it() -> None:
    sample, shown = grow("Q: why?\nA: 語 so\n\nQ: next", ["\n\nQ:", "never"])
    assert (sample.text, sample.finish) == ("Q: why?\nA: 語 so", "stop")
    assert all(sample.text.startswith(text) for text in shown)


def test_eos_ends_the_text_and_gives_free_what_was_held_back() -> None:
    sample, _ = grow("", ["END"], [*b"the EN", BYTE.eos_id])
    assert (sample.text, sample.finish, sample.tokens) == ("the EN", "eos", 7)


def test_the_space_between_prompt_and_continuation_is_part_of_the_text(tmp_path: Path) -> None:
    """Tokenizers that mark the beginning of a word show no space before a text's first word. The
    continuation's first word keeps its space.
    """
    words = Backend(
        models.WordLevel(
            {"<|endoftext|>": 0, "\u2581big": 1, "\u2581deal": 2, "<unk>": 3}, unk_token="<unk>"
        )
    )
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    sample = Sample(tokenizer, open_prompt(tokenizer, "big"))
    sample.add(2)
    assert sample.text == " deal"


def test_a_stop_string_that_only_the_end_completes() -> None:
    sample, _ = grow("", ["\ufffd"], [*b"ab", "語".encode()[0], BYTE.eos_id])
    assert (sample.text, sample.finish) == ("ab", "stop")


# Writing


def test_all_samples_end_for_a_reason_and_the_decoder_is_as_before() -> None:
    decoder = tiny_decoder().train()
    steps = write(
        decoder,
        BYTE,
        open_prompt(BYTE, "ab"),
        Sampling(temperature=3.0),
        300,
        torch.Generator().manual_seed(0),
        6,
        ["e", "x"],
    )
    samples = next(steps)
    assert [sample.text for sample in samples] == [""] * 6 and decoder.training, (
        "nothing is computed yet"
    )
    ended: dict[int, tuple[int, str]] = {}
    for again in steps:
        assert again is samples
        for number, sample in enumerate(samples):
            if sample.finish is not None:
                assert ended.setdefault(number, (sample.tokens, sample.text)) == (
                    sample.tokens,
                    sample.text,
                ), "it has ended"
    assert {sample.finish for sample in samples} == {"eos", "stop"}
    assert not any("e" in sample.text or "x" in sample.text for sample in samples)
    assert decoder.training


def test_it_stops_computing_when_every_sample_has_ended() -> None:
    decoder, forwards = tiny_decoder(), []
    forward = decoder.forward

    def counting(*arguments: Any, **more: Any) -> Any:
        forwards.append(1)
        return forward(*arguments, **more)

    decoder.forward = counting  # type: ignore[method-assign]
    *_, [sample] = write(
        decoder,
        BYTE,
        [BYTE.eos_id],
        Sampling(),
        500,
        torch.Generator().manual_seed(0),
        stops=[chr(c) for c in range(128)],
    )
    assert sample.finish == "stop"
    assert len(forwards) == sample.tokens < 500


def test_the_length_is_kept() -> None:
    *_, [sample] = write(
        tiny_decoder(), BYTE, open_prompt(BYTE, "a"), Sampling(temperature=0), 7, torch.Generator()
    )
    assert (sample.tokens, sample.finish) == (7, "length")
    half = sample.text[-1] + "never"
    *_, [same] = write(
        tiny_decoder(),
        BYTE,
        open_prompt(BYTE, "a"),
        Sampling(temperature=0),
        7,
        torch.Generator(),
        stops=[half],
    )
    assert same.text == sample.text, "what was held back is shown at the end"


def test_only_ids_of_the_tokenizer_are_drawn() -> None:
    """The model has 320 rows, of which the tokenizer knows 260."""

    class Eager(Decoder):
        def forward(self, *arguments: Any, **more: Any) -> Any:
            logits = torch.zeros(1, 1, 320)
            logits[..., [97, 300]] = torch.tensor([5.0, 10.0])
            return logits

    decoder = Eager(tiny_decoder().config)
    *_, [sample] = write(
        decoder, BYTE, [BYTE.eos_id], Sampling(temperature=0), 3, torch.Generator()
    )
    assert sample.text == "aaa"


# Prompts


def test_a_prompt_is_opened_by_one_eos() -> None:
    assert open_prompt(BYTE, "ab") == [BYTE.eos_id, 97, 98]
    assert open_prompt(BYTE, "") == [BYTE.eos_id]
    assert open_prompt(BYTE, "<|eos|>").count(BYTE.eos_id) == 1


@pytest.mark.parametrize(
    "data",
    [" two\nlines é\n", " two\nlines é\n\n", " two\nlines é\n\r\n", "\ufeff two\nlines é\n\n"],
)
def test_the_last_line_break_of_a_file_does_not_count_and_nothing_else_is_cut(
    tmp_path: Path, data: str
) -> None:
    (tmp_path / "prompt.txt").write_bytes(data.encode())
    expected = " two\nlines é" if data.count("\n") == 2 else " two\nlines é\n"
    assert read_prompt(None, str(tmp_path / "prompt.txt")) == expected


def test_a_prompt_from_the_command_line_is_taken_as_it_is() -> None:
    assert read_prompt("a\n", None) == "a\n"
    assert read_prompt("", None) == ""


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"ab\xff", DataError, "is not UTF-8 text"),
        (b"\n", ConfigError, "holds no text"),
        (None, DataError, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_prompt(
    tmp_path: Path, content: bytes | None, error: type[Exception], message: str
) -> None:
    path = tmp_path / "prompt.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_prompt(None, str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_what_never_ends_is_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"^/dev/zero is larger than 16 MiB; write "):
        read_prompt(None, "/dev/zero")
    with Path("/dev/zero").open("rb") as zeros, monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", io.TextIOWrapper(zeros))
        with pytest.raises(DataError, match=r"^stdin is larger than 16 MiB; write "):
            read_prompt(None, None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe holds no text"):
        read_prompt(None, str(tmp_path / "pipe"))
    for path, reason in ((str(tmp_path), "Is a directory"), ("", "No such file")):
        with pytest.raises(DataError, match=f"^{path or '--prompt-file'} cannot be read: {reason}"):
            read_prompt(None, path)


def test_a_pipe_that_somebody_writes_into_is_waited_for() -> None:
    """The shell makes such a pipe for `--prompt-file <(command)`."""
    reader, writer = os.pipe()
    late = threading.Timer(0.3, lambda: (os.write(writer, b"Attention is\n"), os.close(writer)))
    late.start()
    assert read_prompt(None, f"/dev/fd/{reader}") == "Attention is"
    late.join()
    os.close(reader)


def test_a_prompt_may_be_as_long_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_bytes(b"a" * 2**24)
    assert len(read_prompt(None, str(tmp_path / "long.txt"))) == 2**24


def test_an_argument_that_is_not_utf8() -> None:
    with pytest.raises(DataError, match="--prompt is not UTF-8"):
        read_prompt("ab\udcff", None)
    with pytest.raises(DataError, match="--prompt is not UTF-8"):
        read_prompt("ab\ud800", None)
