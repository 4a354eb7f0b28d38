"""Make one ordinary checkpoint of adapters and the base that they were trained beside.

python -m tools.merge_lora --ckpt checkpoints/best.ckpt --out runs/merged
python -m tools.merge_lora --ckpt checkpoints/best.ckpt --base /elsewhere/base.ckpt --out runs/merged

The result is written into the folder that --out names, under the name of the adapters' step; both
others stay. It holds the averaged weights where the run kept them, and needs no base any more.
Every command reads it, and other runs can start from it (finetune.base, --init-from); the run
itself cannot be resumed from it, since it holds weights alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.checkpoints import folder as checkpoint
from lm.checkpoints.meta import read_adapters, read_model
from lm.commands import add_flag, command_parser
from lm.system import errors


def main() -> None:
    """Refuse what holds no adapters, then load torch and merge."""
    parser = command_parser("python -m tools.merge_lora", __doc__)
    add_flag(parser, "--ckpt", help="the checkpoint of the adapters")
    parser.add_argument(
        "--base",
        metavar="CKPT",
        type=Path,
        help="their base (default: where it was when they were trained)",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="the folder that gets the merged one"
    )
    arguments = parser.parse_args()
    folder = checkpoint.open_checkpoint(arguments.ckpt)
    meta = checkpoint.read_meta(folder)
    if read_adapters(folder, meta) is None:
        raise errors.CheckpointError(
            f"{folder} holds a whole model already: there is nothing to merge"
        )
    base = checkpoint.open_checkpoint(arguments.base) if arguments.base is not None else None
    path = arguments.out / checkpoint.step_name(meta["step"])
    if path.exists():
        raise errors.CheckpointError(
            f"{path} is there already; remove it, or name another folder with --out"
        )
    # it is copied: its hash would be that of the damage
    checkpoint.verify(folder, ("tokenizer.json",))
    checkpoint.write_checkpoint(path, writers(folder, meta, base))
    checkpoint.verify(path)
    print(f"{path}: merged, and verified; it can be used and started from, not resumed")


def writers(
    folder: Path, meta: dict[str, Any], base: Path | None
) -> dict[str, Callable[[Path], Any]]:
    """The files of the merged checkpoint: name -> function that writes it."""
    import torch

    from lm.checkpoints.adapters import load_whole
    from lm.checkpoints.weights import write_weights
    from lm.optim.optimizers import trained
    from model import Decoder

    with torch.device("meta"):
        decoder = Decoder(read_model(folder, meta), initialise=False)
    load_whole(decoder, folder, base)
    parent = {
        "path": str(folder),
        "step": meta["step"],
        "manifest_sha256": checkpoint.read_manifest(folder)["sha256"],
    }
    whole = {key: value for key, value in meta.items() if key != "adapters"} | {
        "parent": parent,
        "shards": 0,
    }
    return {
        "model.safetensors": lambda path: write_weights(path, trained(decoder)),
        "tokenizer.json": lambda path: shutil.copyfile(folder / "tokenizer.json", path),
        "meta.json": lambda path: checkpoint.write_json(path, whole),
    }


if __name__ == "__main__":
    errors.run(main)
