"""Tokens: documents become shards of token ids on disk, and shards become rows for training.

Start with prepare.py, which writes the shards of a source, and store.py, which describes the files
and reads them. tokenise.py makes ids of documents in the processes that engines.py or ray_engine.py
start, and round_trip.py measures what the ids lose. cache.py keeps the folder complete and checks
it, by what manifest.py says and hashing.py finds. sources.py has the documents of all sources of a
configuration, and corpus.py opens their tokens: texts.py knows their text by its content, and
prepared.py finds tokens whose text is gone. stream.py makes windows of a dataset that is larger
than the disk, in the process of producer.py.

Then rows.py cuts tokens into rows, plan.py chooses the rows of each step, and mixture.py gives each
source its share of them. summary.py describes all this in a few lines, and export.py writes flat
files for other programs.

Batches are made in data.py. Reading and cleaning documents is the work of lm/documents.
"""
