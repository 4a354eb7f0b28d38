"""Sources of text in, one cleaned document after another out.

Start with `reader.py`: a `Reader` iterates over the documents of a source. `formats.py` has one
generator for each format; a new format is a generator there. `files.py`, `parquet.py`, `hub.py` and
`flat.py` read the bytes, `globs.py` finds the files, and `flat_headers.py` knows what is no flat
file. `faults.py` describes rows that cannot be used. `conversations.py` and `templates.py` turn
prompts and answers into tokens.

Splits, token files and training rows are in `lm/tokens/`. The keys that describe a source are in
`lm/config/schema/source.py` and `chat.py`.
"""
