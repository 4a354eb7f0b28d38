"""Datasets of the Hugging Face hub, downloaded or streamed. Code in a dataset never runs."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from typing import Any

from lm.config.schema.chat import ChatSource
from lm.config.schema.source import HubSource
from lm.system.errors import DataError, first_line

# Rows are streamed in batches of this size. A lost connection repeats one batch.
BATCH_CHARACTERS = 2**18
PATIENCE = 300.0  # seconds without an answer of the hub before giving up
ADVICE = (
    "python -m tools.prepare with streaming: false, run once while online, makes training"
    " independent of the hub"
)


@functools.cache
def load_dataset(source: HubSource | ChatSource) -> Any:
    """Download a dataset, or find it in the hub's cache.

    Raises:
        DataError: it cannot be loaded.
    """
    import datasets
    import huggingface_hub

    if not sys.stderr.isatty():  # progress bars are for terminals
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
    try:
        return datasets.load_dataset(
            source.dataset, source.config, split=source.dataset_split, revision=source.revision
        )
    except Exception as error:  # what network, hub, cache and formats raise has no common class
        raise DataError(
            f"{_name(source)}: cannot be loaded ({first_line(error)}); check the names, and fetch"
            " it once while online: later runs find it in the hub's cache"
        ) from error


def newest_revision(source: HubSource) -> str:
    """Return the commit that `revision` means now.

    Raises:
        DataError: the hub has no such dataset or revision, or does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return str(HfApi().dataset_info(source.dataset, revision=source.revision, timeout=20).sha)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        missing = (
            "dataset"
            if isinstance(error, RepositoryNotFoundError)
            else f"revision {source.revision!r}"
        )
        raise DataError(
            f"{_name(source)}: the hub knows no such {missing}; check the names, or set HF_TOKEN if"
            " it is private or gated"
        ) from error
    except Exception as error:  # as in load_dataset
        raise DataError(
            f"{_name(source)}: cannot be streamed ({first_line(error)}); check the names and the"
            f" network, or {ADVICE}"
        ) from error


def stream(source: HubSource, revision: str, state: Any) -> Iterator[tuple[list[object], Any]]:
    """Yield batches of the column `text_key`, each with the state after it.

    A lost connection is tried again from the last batch, after 1, 2, 4 ... seconds. The retries of
    `datasets` end too early for a long run.

    Args:
        source: the dataset.
        revision: its commit.
        state: where to start; None is the beginning.

    Raises:
        DataError: there is no such dataset, commit or column, or the hub does not answer.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import RevisionNotFoundError

    # It would print each lost connection with its long address, although a retry repairs it.
    huggingface_hub.utils.logging.set_verbosity_error()
    # Its own 20 retries of 5 seconds would multiply ours.
    datasets.config.STREAMING_READ_MAX_RETRIES = 2
    datasets.config.STREAMING_READ_RETRY_INTERVAL = 1
    lost_at = wait = 0.0
    began = False
    while True:
        try:
            for values, next_state in _batches(source, revision, state):
                state, lost_at, wait, began = next_state, 0.0, 0.0, True
                yield values, state
            return
        except DataError:
            raise
        except Exception as error:  # as in load_dataset
            if isinstance(error.__cause__, RevisionNotFoundError):
                raise DataError(
                    f"{_name(source)}, revision: {revision}: the hub no longer has this commit, and"
                    " a run goes on in no other; start a new one, from its weights with"
                    " --init-from CKPT, in another checkpoint.directory"
                ) from error
            wait = min(2 * wait, 60.0) if lost_at else 1.0
            lost_at = lost_at or time.monotonic()
            # Before the first batch these errors mean a wrong name; later, a truncated download.
            permanent = (
                not began and isinstance(error, ValueError | FileNotFoundError)
            ) or datasets.config.HF_HUB_OFFLINE
            if permanent or time.monotonic() + wait - lost_at > PATIENCE:
                fault = f"{_name(source)}: cannot be read on ({first_line(error)})"
                # such as an unknown configuration or split
                if isinstance(error, ValueError) and state is None:
                    raise DataError(f"{fault}; check the names") from error
                raise DataError(f"{fault}; start again with --resume auto, or {ADVICE}") from error
            print(
                f"{_name(source)}: {first_line(error)}; trying again in {wait:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(wait)


def _batches(source: HubSource, revision: str, state: Any) -> Iterator[tuple[list[object], Any]]:
    import datasets

    rows = datasets.load_dataset(
        source.dataset, source.config, split=source.dataset_split, revision=revision, streaming=True
    )
    if rows.column_names is not None and source.text_key not in rows.column_names:
        raise DataError(
            f"{source.dataset}: no column {source.text_key!r}; there are {rows.column_names};"
            " text_key names the one that holds the text"
        )
    if state is not None:
        rows.load_state_dict(state)
    values: list[object] = []
    size = 0
    for row in rows:
        value = row.get(source.text_key)
        values.append(value)
        size += 1 + (len(value) if isinstance(value, str) else 0)
        if size >= BATCH_CHARACTERS:
            yield values, rows.state_dict()
            values, size = [], 0
    if values:
        yield values, rows.state_dict()


def _name(source: HubSource | ChatSource) -> str:
    return (
        f"dataset {source.dataset!r}, config {source.config!r}, dataset_split"
        f" {source.dataset_split!r}"
    )
