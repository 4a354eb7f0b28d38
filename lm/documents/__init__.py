"""Sources of text in, one cleaned document after another out.

Start with `reader.py`: a `Reader` iterates over the documents of a source. `formats.py` has one
generator for each format; a new format is a generator there. `files.py`, `delimited.py` (CSV),
`parquet.py`, `hub.py` and `flat.py` read the bytes. `globs.py` finds the files, and
`flat_headers.py` knows what is no flat file. `faults.py` describes rows that cannot be used.
`encodings.py` guesses the encoding of what is not UTF-8.

`layouts.py` has the table of a conversation's keys, `row_keys.py` those beside them.
`conversations.py` puts turns in order, and `templates.py` turns them into tokens.

Splits, token files and training rows are in `lm/tokens/`. The keys that describe a source are in
`lm/config/schema/source.py` and `chat.py`.
"""
