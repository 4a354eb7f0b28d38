"""Run train.py under torchrun with clocks that differ by a second from process to process:

python -m tests.support.skewed FOLDER --config ... (the arguments of train.py)

FOLDER/process-RANK.json gets the learning rates of this process and a hash of its weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from lm.system import errors
from lm.training import deadline, launch
from lm.training.module import LanguageModel


def main() -> None:
    """Train, and write the rates and the hash after each step."""
    folder, *sys.argv[1:] = sys.argv[1:]
    rank, started = int(os.environ["RANK"]), deadline.process_started
    launch.process_started = lambda: started() - rank  # type: ignore[attr-defined]
    rates: list[float] = []
    original = LanguageModel.training_step

    def training_step(self: LanguageModel, batch: dict[str, Any], batch_idx: int) -> None:
        original(self, batch, batch_idx)
        rates.append(self.used_learning_rate)
        weights = hashlib.sha256()
        for weight in self.decoder.parameters():
            weights.update(weight.detach().numpy().tobytes())
        found = {"rates": rates, "weights": weights.hexdigest()}
        (Path(folder) / f"process-{rank}.json").write_text(json.dumps(found))

    LanguageModel.training_step = training_step  # type: ignore[method-assign]
    import train

    train.main()


if __name__ == "__main__":
    errors.run(main)
