"""A training run: the LightningModule, its callbacks, the Trainer, from a run's start to its end.

Start with `module.py`: `training_step` is one optimiser step. `callbacks.py` has all that happens
between two steps. `launch.py` holds the folder and decides where a session starts; train.py has
the loop over sessions. `record.py` and `logger.py` write the run's files, `forecast.py` says what
the run takes, `processes.py` lets several processes agree.

Not here: the loss and the optimisers (`lm/optim`), the rows (`data.py`), and what a run's folder
means (`lm/runs`).
"""
