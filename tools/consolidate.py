"""Make one ordinary checkpoint from a sharded one, which several processes wrote
(trainer.strategy: fsdp).

python -m tools.consolidate checkpoints/step-00001000.ckpt
python -m tools.consolidate checkpoints/last.ckpt --out runs/whole

The result has the same name and lies in the folder `consolidated` next to the sharded checkpoint,
or in the folder that --out names. The sharded checkpoint stays. Every other command reads the
result, and `train.py --checkpoint.directory THAT_FOLDER --resume auto` continues from it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.checkpoints.folder import Checkpoint, open_checkpoint, shard_count, step_name
from lm.checkpoints.meta import read_meta
from lm.checkpoints.write import write_checkpoint, write_json
from lm.commands import command_parser, to_path, to_path_text
from lm.system import errors


def main() -> None:
    """Refuse anything but a sharded checkpoint, then load torch and join the shards."""
    parser = command_parser("python -m tools.consolidate", __doc__)
    parser.add_argument("ckpt", metavar="CKPT", type=to_path_text, help="the sharded checkpoint")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=to_path,
        help="the folder that gets the ordinary one (default: consolidated, next to it)",
    )
    arguments = parser.parse_args()
    sharded = open_checkpoint(arguments.ckpt)
    step, count = sharded.step, shard_count(sharded.files)
    sharded.verify()
    if count == 0:
        raise errors.CheckpointError(
            f"{sharded.path} is an ordinary checkpoint already: there is nothing to join"
        )
    path = (arguments.out or sharded.path.parent / "consolidated") / step_name(step)
    if path.exists():
        raise errors.CheckpointError(
            f"{path} is there already; remove it, or name another folder with --out"
        )
    require_resumable(sharded)
    write_checkpoint(path, writers(sharded))
    Checkpoint(path).verify()
    print(f"{path}: joined from {count} shards, and verified")


def require_resumable(sharded: Checkpoint) -> None:
    """Read the checkpoint as a run that goes on from it does: its hashes prove only that it is what
    was written.

    Raises:
        CheckpointError: a tensor or a value is not one that a run of this model saves.
    """
    import torch

    from lm.checkpoints.fsdp import has_shards, read_any_weights
    from lm.checkpoints.train_state import read_train_state
    from lm.optim.optimizers import make_optimizer, trained
    from lm.surgery.lora import add_adapters
    from model import Decoder

    meta = read_meta(sharded)
    with torch.device("meta"):
        decoder = Decoder(meta.model, initialise=False)
    if meta.adapters is not None:
        add_adapters(decoder, meta.adapters.lora)
    for averaged in {False, has_shards(sharded, "ema")}:
        read_any_weights(sharded, trained(decoder), averaged)
    read_train_state(sharded, make_optimizer(decoder, meta.config.optimizer, precision="fp32"))


def writers(sharded: Checkpoint) -> dict[str, Callable[[Path], Any]]:
    """Return the files of the ordinary checkpoint: name -> function that writes the file.

    Each function holds all tensors of its kind in memory.
    """
    from lm.checkpoints.fsdp import has_shards, join_train_state, read_shards
    from lm.checkpoints.weights import write_state, write_weights

    def write_joined(kind: str) -> Callable[[Path], None]:
        return lambda path: write_weights(path, dict(read_shards(sharded, kind)))

    files: dict[str, Callable[[Path], Any]] = {
        "model.safetensors": write_joined("model"),
        "train_state.pt": lambda path: write_state(path, join_train_state(sharded)),
        "tokenizer.json": lambda path: shutil.copyfile(sharded.path / "tokenizer.json", path),
        "meta.json": lambda path: write_json(path, sharded.meta | {"shards": 0}),
    }
    if has_shards(sharded, "ema"):
        files["ema.safetensors"] = write_joined("ema")
    return files


if __name__ == "__main__":
    errors.run(main)
