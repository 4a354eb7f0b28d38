"""One optimiser step in formulas.

Start with loss.py, optimizers.py and schedule.py: what a token costs, which weights decay, and how
fast they move. early_gradients.py sums a step's losses in less memory. objectives.py says what a
row is trained for (next token, or DPO); averaging.py keeps averaged weights; randomness.py derives
every seed; modes.py evaluates a model in training. The training step is in lm/training/module.py.
"""
