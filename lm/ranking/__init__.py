"""The ranking of checkpoints on files of cases, for evaluate_checkpoints.py.

Start with ranking.py: it decides which checkpoint is better, and whether the cases can tell. In the
order of the work, candidates.py lists the checkpoints that the command line names, cases.py reads
the files, and questions.py encodes each case. results.py measures one decoder on one set,
entrants.py all checkpoints on all sets. measures.py defines the measures. words.py writes the table
and the sentences, and files.py the Markdown, CSV, JSON and picture.

The measurements themselves (likelihoods, answers, copies, intervals) are in lm/evaluation.
"""
