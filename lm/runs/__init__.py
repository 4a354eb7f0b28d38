"""Runs: the folder of a run, its logs, and the decision where a run starts.

Start in folder.py: it draws the folder. origin.py decides what a run starts from, changes.py what a
resumed run may change. metrics.py, results.py and incidents.py each own one log. record.py reads a
whole run for reports, ancestors.py the checkpoints that it descends from.

Not here: the checkpoints themselves (lm/checkpoints), the loop that trains (lm/training), reports
about runs (lm/reports).
"""
