"""Ray's processes, on one machine or many, as an engine (lm/tokens/engines.py): `pip install ray`,
and `tools.prepare --ray`.

Actors of Ray itself, not its Ray Data: that holds results as rows of Arrow tables and in whatever
order suits it, and would have to be talked out of both; here each actor has its tokenizer, pieces
are dealt out in turn, and results come in the order of the pieces.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

from lm.documents.reader import Piece
from lm.system.errors import ConfigError, DataError, UserError
from lm.tokens.engines import WAITING
from lm.tokens.tokenise import Tokenise, Tokens


def on_ray(function: Tokenise, pieces: Iterator[Piece]) -> Iterator[Tokens]:
    """On all CPUs of the cluster that `RAY_ADDRESS` names, or of this machine. Files must be
    readable on every machine, by the same path.

    Raises:
        ConfigError: Ray is not installed.
        UserError: an actor has died more often than Ray starts it again.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError("--ray: Ray is not installed; pip install -e '.[cluster]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    shared = ray.put(function)
    actors = [_actor(ray).remote(shared) for _ in range(int(ray.cluster_resources()["CPU"]))]
    waiting: deque[Any] = deque()
    try:
        for piece, actor in zip(pieces, itertools.cycle(actors), strict=False):
            waiting.append(actor.apply.remote(piece))
            if len(waiting) >= WAITING * len(actors):
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DataError):
            raise error.cause from error
        raise
    except ray.exceptions.RayActorError as error:
        raise UserError(
            "a process of Ray's that tokenises was lost again and again, most often for want of"
            " memory"
        ) from error
    finally:
        for actor in actors:
            ray.kill(actor)


def _actor(ray: Any) -> Any:
    class Actor:
        def __init__(self, function: Tokenise):
            self.function = function

        def apply(self, piece: Piece) -> Tokens:
            return self.function(piece)

    # What a machine has lost is done again on another.
    return ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)(Actor)
