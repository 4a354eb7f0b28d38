"""An engine (lm/tokens/engines.py) on a Ray cluster: `pip install ray`, `tools.prepare --ray`.

It uses Ray's actors, not Ray Data, which turns results into Arrow tables and does not keep their
order. Each actor has its own tokenizer, pieces are dealt out in turn, and results come in the order
of the pieces.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

from lm.documents.reader import Piece
from lm.system.errors import ConfigError, DataError, UserError
from lm.tokens.engines import WAITING
from lm.tokens.tokenise import Tokenise, Tokens


def on_ray(function: Tokenise, pieces: Iterator[Piece]) -> Iterator[Tokens]:
    """Tokenise on all CPUs of the cluster that `RAY_ADDRESS` names, or of this machine.

    Every machine must be able to read the files, by the same path.

    Raises:
        ConfigError: Ray is not installed.
        UserError: an actor died more often than Ray restarts it.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--ray: Ray is not installed: {sys.executable} -m pip install ray"
        ) from error
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
            " memory; start Ray with fewer: ray start --head --num-cpus 1"
        ) from error
    finally:
        for actor in actors:
            ray.kill(actor)


def _actor(ray: Any) -> Any:
    """Return the actor's class; Ray is imported only if it is used."""

    class Actor:
        def __init__(self, function: Tokenise):
            self.function = function

        def apply(self, piece: Piece) -> Tokens:
            return self.function(piece)

    # If a machine is lost, another one repeats its work.
    return ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)(Actor)
