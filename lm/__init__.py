"""The rooms, lowest first. A room imports only rooms below it; each has a sign in `__init__.py`.

    system                        the machine: errors, disk, locks, signals, devices
    config                        a YAML file and flags become one checked Config
    optim                         loss, objectives, optimisers, learning rate, averaged weights
    model.py (at the root)        the decoder
    tokenizer                     text to ids and back
    documents                     files, hub datasets and conversations become cleaned documents
    tokens                        documents become token ids on disk, and rows for each step
    surgery                       LoRA, 4 bits, FSDP and torch.compile, applied to a decoder
    checkpoints                   folders on disk that are models
    runs                          a run's folder: its start, metrics, validations, incidents
    display                       tables, curves, pages
    generation                    a prompt becomes text; `from lm import load` opens a model
    evaluation                    validation loss, likelihoods, answers, memorisation
    training                      the LightningModule, its callbacks, the Trainer
    ranking                       which checkpoint is best on files of cases
    checks                        what to verify before a long run
    reports                       pages and tables about runs
    data.py (at the root)         the LightningDataModule: shards to batches

The commands at the root use all of them: read train.py, model.py, data.py and training/module.py
first. This package imports nothing until `load` is asked for, so `import lm` is instant.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm.generation.load import load
else:

    def __getattr__(name: str) -> object:
        """Import `load` when it is asked for, because it needs torch."""
        if name == "load":
            from lm.generation.load import load

            return load
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["load"]
