"""How well a decoder predicts and answers given text.

Start with validation.py (the validation loss) and scoring.py (the likelihood of any tokens).
surprisal.py splits the loss by position and source; answers.py measures answers to held-out
conversations; memorisation.py looks for copied training text; same_text.py compares two models;
intervals.py gives confidence intervals; examples.py chooses a few of many; harness.py runs
lm-evaluation-harness. Ranking checkpoints on cases is in lm/ranking.
"""
