"""Text to token ids and back.

Start with `tokenizer.py`: the class that the rest of the project knows. `files.py` finds a
tokenizer by its name: a file, a folder, a hub id. `definition.py` refuses hostile ones, and
`sentencepiece.py` converts SentencePiece models. `learn.py` trains a vocabulary, `stream.py`
decodes ids while they arrive, and `fast_bpe.py` encodes much text fast.

Chat templates and special tokens of a conversation are in `lm/documents/templates.py`; the ids of
whole corpora are in `lm/tokens/`.
"""
