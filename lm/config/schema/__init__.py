"""The sections of a configuration: each key with its type, range, default and meaning.

`config.py` has `Config` with all sections and the checks between them. Each section has a file of
its own name: `model.py`, `data.py`, `trainer.py` and so on. `source.py` and `chat.py` describe
where text comes from, and `cases.py` the files of `evaluate_checkpoints.py`.

`docs/CONFIG_REFERENCE.md` is generated from these files. How a YAML file is read is in
`lm/config/reader.py`.
"""
