"""Make one ordinary checkpoint from adapters and the base that they were trained on.

python -m tools.merge_lora --ckpt checkpoints/best.ckpt --out runs/merged
python -m tools.merge_lora --ckpt checkpoints/best.ckpt --base moved/base.ckpt --out runs/merged

The result lies in the folder that --out names, under the name of the adapters' step. Adapters and
base stay. The result holds the averaged weights if the run kept them, and needs no base any more.
Every command reads it, and other runs can start from it (finetune.base, --init-from). It holds
weights alone, so the run itself cannot be resumed from it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.checkpoints.folder import Checkpoint, open_checkpoint, step_name
from lm.checkpoints.meta import read_meta
from lm.checkpoints.write import write_checkpoint, write_json
from lm.commands import add_flag, command_parser, to_path
from lm.system import errors


def main() -> None:
    """Refuse a checkpoint without adapters, then load torch and merge."""
    parser = command_parser("python -m tools.merge_lora", __doc__)
    add_flag(parser, "--ckpt", help="the checkpoint of the adapters")
    parser.add_argument(
        "--base",
        metavar="CKPT",
        type=to_path,
        help="their base (default: where it was during training)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=to_path,
        required=True,
        help="the folder that gets the merged one",
    )
    arguments = parser.parse_args()
    adapters = open_checkpoint(arguments.ckpt)
    if read_meta(adapters).adapters is None:
        raise errors.CheckpointError(
            f"{adapters.path} holds a whole model already: there is nothing to merge"
        )
    base = open_checkpoint(arguments.base).path if arguments.base is not None else None
    path = arguments.out / step_name(adapters.step)
    if path.exists():
        raise errors.CheckpointError(
            f"{path} is there already; remove it, or name another folder with --out"
        )
    # it is copied: the new manifest would have the hash of a damaged file
    adapters.verify(("tokenizer.json",))
    write_checkpoint(path, writers(adapters, base))
    Checkpoint(path).verify()
    print(f"{path}: merged, and verified; it can be used and started from, not resumed")


def writers(adapters: Checkpoint, base: Path | None) -> dict[str, Callable[[Path], Any]]:
    """Return the files of the merged checkpoint: name -> function that writes the file."""
    import torch

    from lm.checkpoints.adapters import load_whole
    from lm.checkpoints.weights import write_weights
    from lm.optim.optimizers import trained
    from model import Decoder

    with torch.device("meta"):
        decoder = Decoder(read_meta(adapters).model, initialise=False)
    load_whole(decoder, adapters, base)
    parent = {
        "path": str(adapters.path),
        "step": adapters.step,
        "manifest_sha256": adapters.sha256,
    }
    meta = {key: value for key, value in adapters.meta.items() if key != "adapters"} | {
        "parent": parent,
        "shards": 0,
    }
    return {
        "model.safetensors": lambda path: write_weights(path, trained(decoder)),
        "tokenizer.json": lambda path: shutil.copyfile(adapters.path / "tokenizer.json", path),
        "meta.json": lambda path: write_json(path, meta),
    }


if __name__ == "__main__":
    errors.run(main)
