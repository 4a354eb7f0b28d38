"""The deadline of a run whose schedule follows the clock (optimizer.schedule_by: time).

The run ends at `trainer.max_minutes` of wall time, counted from the start of the process over all
of its sessions. Start-up, validations, saves and pictures count. The time that the end of the run
needs is reserved, as measured so far.

    0 %                                   progress                          100 %
    | start-up | steps, validations, saves ...                    | last step | reserve |

Only the first process looks at its clock. What it finds is sent to all, once for each step: other
learning rates on other processes would give other weights.
"""

from __future__ import annotations

import collections
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.config.schema.config import Config
from lm.system.errors import ConfigError
from lm.system.units import duration

RECENT_STEPS = 20  # whose median is the time of a step: compiling and one stall do not count
LARGEST_JUMP = 2.0  # progress of one step, in steps' shares of the run
MARGIN = 1.2  # of the reserve
# The reserve for what is not measured: at most this share of the run, and these seconds.
UNMEASURED_SHARE = 0.02
PICTURES, FIRST_SAVE = 3.0, 30.0


def now() -> float:
    """Return the seconds of a clock that goes on while a laptop is suspended. Tests replace it."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def process_started() -> float:
    """Return when this process started, by `now`. Where the system does not say it, that is now."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # since the system's start, as BOOTTIME
    except (OSError, ValueError, IndexError):
        return now()


class Deadline:
    """How far a run is on its way to the deadline.

    Args:
        config: the configuration of the run.
        started: the time at which this process started (`process_started`).
        say: prints a line.
        before: the seconds of the run's earlier sessions.
        costs: the seconds of a "save" and a "validation", as they measured them.

    Attributes:
        progress: the share of the run that is done after the step at hand, from 0 to 1.
        over: the step at hand is the last one.
        reached: it is the last one because of the clock, and not of another limit.
    """

    def __init__(
        self,
        config: Config,
        started: float,
        say: Callable[[str], None],
        before: float = 0.0,
        costs: Mapping[str, float] | None = None,
    ):
        assert config.trainer.max_minutes is not None
        self.seconds = 60 * config.trainer.max_minutes
        self.progress = 0.0
        self.over = False
        self.reached = False
        self._config = config
        self._say = say
        self._read = started  # the clock, when it was last read
        self._elapsed = before
        self._begun = before  # when the step at hand began
        self._steps: collections.deque[float] = collections.deque(maxlen=RECENT_STEPS)
        self._costs = dict(costs or {})  # the last of each kind
        self._done = 0  # steps of this session

    @property
    def elapsed(self) -> float:
        """The seconds of the run so far. It never falls: a clock that is set back stands still."""
        before, self._read = self._read, now()
        self._elapsed += max(0.0, self._read - before)
        return self._elapsed

    def seconds_left(self) -> float:
        """Return the seconds until the deadline."""
        return max(0.0, self.seconds - self.elapsed)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint records."""
        return {"elapsed": self.elapsed, "over": self.reached, "costs": dict(self._costs)}

    @property
    def reserve(self) -> float:
        """The seconds that the end of the run takes: a save, a validation, and the pictures."""
        share = UNMEASURED_SHARE * self.seconds
        save = self._costs.get("save", min(share, FIRST_SAVE))
        return MARGIN * (save + self._costs.get("validation", 0.0)) + min(share, PICTURES)

    def require_time(self) -> None:
        """Raise ConfigError if no time is left for a step."""
        if (elapsed := self.elapsed) + self.reserve >= self.seconds:
            minutes = self._config.trainer.max_minutes
            raise ConfigError(
                f"trainer.max_minutes: {minutes:g} minutes leave no time for a step: start-up and"
                f" earlier sessions took {duration(round(elapsed))}, the end takes"
                f" {duration(round(self.reserve))}; write a longer one"
            )

    @contextlib.contextmanager
    def measured(self, kind: str) -> Iterator[None]:
        """Measure a "save" or a "validation"."""
        before = self.elapsed
        yield
        self._costs[kind] = self.elapsed - before

    def begin_step(self, step: int, to_all: Callable[[Any], Any] = lambda own: own) -> float:
        """Set `progress`, `over` and `reached` for update `step`, and return `progress`.

        `to_all` returns the first process's value on every process.
        """
        self.progress, self.over, self.reached = to_all(self._look(step))
        return self.progress

    def _look(self, step: int) -> tuple[float, bool, bool]:
        """Return `progress`, `over` and `reached` for update `step`, by this process's clock."""
        self._begun = elapsed = self.elapsed
        end = self.seconds - self.reserve
        takes = statistics.median(self._steps) if self._steps else 0.0
        left = max(0.0, end - elapsed)
        # After this step, and what is due then, another one would not fit.
        over = reached = left - takes - self._due_after(step) < takes or left == 0
        target = 1.0 if end <= 0 else min(1.0, (elapsed + takes) / end)
        steps_left = left / takes if takes else float("inf")
        if (most := self._config.most_steps) is not None:
            over = over or step + 1 >= most
            target = max(target, (step + 1) / most)
            steps_left = min(steps_left, most - step)
        if over:
            return 1.0, True, reached
        largest = max(LARGEST_JUMP * takes / self.seconds, (1 - self.progress) / max(1, steps_left))
        if not takes:  # nothing is measured yet; a resumed run is on its way
            return max(self.progress, target), False, False
        jump = target - self.progress
        if jump > max(0.05, 2 * largest):
            self._say(
                f"trainer.max_minutes: {duration(round(jump * self.seconds))} passed without a"
                f" step; the learning rate follows in about {max(1, round(steps_left)):,} steps"
            )
        return max(self.progress, min(target, self.progress + largest)), False, False

    def end_step(self) -> None:
        """Note that a step is done: what follows it is not its time."""
        if self._done:  # the first one loads and compiles
            self._steps.append(self.elapsed - self._begun)
        self._done += 1

    def _due_after(self, step: int) -> float:
        """Return the seconds of what follows a step that is not the last one."""
        trainer, checkpoint = self._config.trainer, self._config.checkpoint
        validates = (step + 1) % trainer.validate_every == 0
        saves = validates or (step + 1) % checkpoint.save_every == 0
        validation, save = self._costs.get("validation", 0.0), self._costs.get("save", 0.0)
        return validates * validation + saves * save
