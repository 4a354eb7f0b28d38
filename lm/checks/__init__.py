"""Checks before and after a run, and views of the data that a model sees.

Start with selfchecks.py: each function checks one property of a decoder. subject.py gives the
checks the decoder and the rows of a real run. sameness.py compares two runs bit by bit, for
tools/resume_proof.py. For tools/inspect_data.py, xray.py counts rows and sources, overlap.py finds
held-out text in the training text, and rendering.py shows rows of tokens.

Checks that every start of a run makes are in lm/training.
"""
