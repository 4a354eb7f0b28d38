"""Checkpoints: how a run is written to disk, and how it is opened again.

Start in folder.py: it draws the files, and `open_checkpoint` returns a `Checkpoint`. write.py
writes checkpoints, names them and deletes them. meta.py gives meta.json types, lineage.py writes
it. weights.py, train_state.py and fsdp.py hold the tensors; adapters.py joins adapters with their
base, which base.py opens for fine-tuning. load.py makes a decoder of a checkpoint.

Not here: a run's folder and its logs (lm/runs), tokenizer files (lm/tokenizer), token caches
(lm/tokens).
"""
