"""Make one ordinary checkpoint of a sharded one, which many processes wrote (trainer.strategy:
fsdp).

python -m tools.consolidate checkpoints/step-00001000.ckpt
python -m tools.consolidate checkpoints/last.ckpt --out runs/whole

The result is written into the folder `consolidated` beside it, or into the one that --out names,
under the same name; the sharded one stays. Every other command reads it, and `train.py
--checkpoint.directory THAT_FOLDER --resume auto` goes on from it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.checkpoints import folder as checkpoint
from lm.checkpoints.folder import shard_count
from lm.commands import command_parser
from lm.system import errors


def main() -> None:
    """Refuse what is no sharded checkpoint, then load torch and join the shards."""
    parser = command_parser("python -m tools.consolidate", __doc__)
    parser.add_argument("ckpt", metavar="CKPT", help="the sharded checkpoint")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="the folder that gets the ordinary one (default: consolidated, beside it)",
    )
    arguments = parser.parse_args()
    folder = checkpoint.open_checkpoint(arguments.ckpt)
    meta, count = checkpoint.read_meta(folder), shard_count(checkpoint.verify(folder)["files"])
    if count == 0:
        raise errors.CheckpointError(
            f"{folder} is an ordinary checkpoint already: there is nothing to join"
        )
    path = (arguments.out or folder.parent / "consolidated") / checkpoint.step_name(meta["step"])
    if path.exists():
        raise errors.CheckpointError(
            f"{path} is there already; remove it, or name another folder with --out"
        )
    checkpoint.write_checkpoint(path, writers(folder, meta))
    checkpoint.verify(path)
    print(f"{path}: joined from {count} shards, and verified")


def writers(folder: Path, meta: dict[str, Any]) -> dict[str, Callable[[Path], Any]]:
    """The files of the ordinary checkpoint: name -> function that writes it. Each holds its tensors
    in memory while it does.
    """
    import torch

    from lm.checkpoints.fsdp import has_shards, read_shards, read_train_state
    from lm.checkpoints.weights import write_weights

    files: dict[str, Callable[[Path], Any]] = {
        "model.safetensors": lambda path: write_weights(path, dict(read_shards(folder, "model"))),
        "train_state.pt": lambda path: torch.save(read_train_state(folder), path),
        "tokenizer.json": lambda path: path.write_text(
            (folder / "tokenizer.json").read_text(encoding="utf-8"), encoding="utf-8"
        ),
        "meta.json": lambda path: checkpoint.write_json(path, meta | {"shards": 0}),
    }
    if has_shards(folder, "ema"):
        files["ema.safetensors"] = lambda path: write_weights(
            path, dict(read_shards(folder, "ema"))
        )
    return files


if __name__ == "__main__":
    errors.run(main)
