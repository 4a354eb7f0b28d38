"""Compare the tokens that are learnt with transformers' and trl's masks of the same conversations.

python -m pytest tests/oracles/test_masks_of_others.py

Ids and masks agree to the token. Three differences are intended:

* Theirs ends with the line break that chatml writes after each turn. Ours has line breaks only
  between turns. No answer needs the last one, and neither mask learns it.
* The jinja template decides what counts inside `{% generation %}`. CHATML here puts an answer and
  its <|im_end|> there, as our mask does. trl's own training template for Qwen2.5 also counts the
  line breaks around the answer. The first one ends every prompt, so a model never writes it. The
  last one comes after the model has stopped.
* They tokenise everything between two special tokens as one text. An answer that begins with a
  line break therefore has another first token (tests/documents/test_templates.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lm.documents.conversations import Conversation
from lm.documents.layouts import conversation_of
from lm.documents.templates import LEARNED, ChatFormat, Encoded
from tests.documents.test_templates import LEARNT

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if"
    " message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{%"
    " endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{%"
    " endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CONVERSATIONS: list[list[dict[str, str]]] = [
    [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris."},
    ],
    [
        {"role": "system", "content": "Be brief.\n\nVery."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris.\n\nIs it?\n"},
        {"role": "user", "content": "ham or spam:\n 1 + 1 = 2"},
        {"role": "assistant", "content": "語🙂 ham"},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"},
    ],
]
FORM = ChatFormat("chatml", LEARNT)


def ours(messages: list[dict[str, str]]) -> Encoded:
    conversation = conversation_of({"messages": messages}, "messages")
    assert isinstance(conversation, Conversation)
    return FORM.encode(conversation)


def theirs(template: str = CHATML) -> Any:
    """Return our tokenizer as a tokenizer of transformers."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(LEARNT.definition),
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


NEWLINE = LEARNT.encode("\n")


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_transformers_assistant_tokens_mask(messages: list[dict[str, str]]) -> None:
    encoded = ours(messages)
    found = theirs().apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )
    assert found["input_ids"] == encoded.ids.tolist() + NEWLINE
    assert found["assistant_masks"] == [*(encoded.flags & LEARNED).tolist(), 0]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_transformers_generation_prompt(messages: list[dict[str, str]]) -> None:
    """A chat has the same ids as theirs, except the EOS that opens each sequence here."""
    conversation = conversation_of({"messages": messages}, "messages")
    assert isinstance(conversation, Conversation)
    found = theirs().apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=True
    )
    assert [LEARNT.eos_id, *found["input_ids"]] == FORM.prompt(conversation.prompt)


def test_what_counts_inside_the_generation_block() -> None:
    """The mask of trl's template also includes the line breaks around each answer, and nothing
    else.
    """
    trl = pytest.importorskip("trl")
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5_training.jinja").read_text(
        encoding="utf-8"
    )
    # This one has a system message. Without one, Qwen's template adds its own.
    messages = CONVERSATIONS[1]
    found = theirs(template).apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )
    encoded = ours(messages)
    assert found["input_ids"] == encoded.ids.tolist() + NEWLINE
    mask, learned = found["assistant_masks"], [*(encoded.flags & LEARNED).tolist(), 0]
    differing = [i for i, (a, b) in enumerate(zip(mask, learned, strict=True)) if a != b]
    assert [found["input_ids"][i] for i in differing] == NEWLINE * 2 * 3
    assert not any(learned[i] for i in differing)


def trl_batch(rows: list[dict[str, Any]], folder: Path, **settings: bool) -> Any:
    """Return the batch of all rows that trl's trainer gives its model: input_ids, attention_mask
    and labels.
    """
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    shape = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=LEARNT.vocab_size, **shape))
    plain = {
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "max_length": None,
        "disable_tqdm": True,
    }
    arguments = SFTConfig(output_dir=str(folder), **plain, **settings)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=theirs(),
    )
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])


def assert_same(batch: Any, conversations: list[list[dict[str, str]]], only_last: bool) -> None:
    assert len(batch["input_ids"]) == len(conversations)
    for messages, ids, labels in zip(
        conversations, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True
    ):
        encoded = ours(messages)
        learned = (encoded.flags & LEARNED).astype(bool)
        if only_last:
            learned[: len(FORM.prompt(Conversation(tuple(_turns(messages))).prompt)) - 1] = False
        n = len(learned)
        assert ids[: n + 1] == encoded.ids.tolist() + NEWLINE
        assert set(ids[n + 1 :]) <= {LEARNT.pad_id}
        assert labels[:n] == [
            int(number) if flag else -100 for number, flag in zip(encoded.ids, learned, strict=True)
        ]
        # Completion-only loss counts everything after the prompt, also the line break after the
        # last answer.
        assert labels[n] == (NEWLINE[0] if only_last else -100)
        assert set(labels[n + 1 :]) <= {-100}


def _turns(messages: list[dict[str, str]]) -> Any:
    conversation = conversation_of({"messages": messages}, "messages")
    assert isinstance(conversation, Conversation)
    return conversation.turns


@pytest.mark.usefixtures("takes_seconds")
def test_trl_assistant_only_loss(tmp_path: Path) -> None:
    assert_same(
        trl_batch(
            [{"messages": messages} for messages in CONVERSATIONS],
            tmp_path,
            assistant_only_loss=True,
        ),
        CONVERSATIONS,
        False,
    )


def test_trl_completion_only_loss(tmp_path: Path) -> None:
    """Theirs learns only the last of several answers; ours also learns those in a prompt."""
    rows = [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in CONVERSATIONS]
    assert_same(trl_batch(rows, tmp_path, completion_only_loss=True), CONVERSATIONS, True)
