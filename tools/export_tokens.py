"""Write the tokens of a configuration as train.bin and val.bin, which nanoGPT and others read.

python -m tools.export_tokens --config config.yaml --out exported
python -m tools.export_tokens --config config.yaml --out exported --force

    d1 EOS d2 EOS ... dn EOS

The ids are uint16, or uint32 if the tokenizer has more than 65,536 ids: lowest byte first, without
a header. meta.json next to them says what the ids mean. Any key of the configuration can be given
as --section.key VALUE. A source of `format: bin` reads such files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lm.commands import add_flag, command_parser, load_config, to_path
from lm.system import disk, errors
from lm.system.units import in_bytes

if TYPE_CHECKING:
    from lm.tokenizer.tokenizer import Tokenizer
    from lm.tokens.corpus import Corpus


def main() -> None:
    """Check that the tokens can be exported, make those that are missing, and write the files."""
    arguments, overrides = parser().parse_known_args()
    config = load_config(arguments.config, overrides, trains=False).config
    if len(config.data.parts) > 1:
        raise errors.ConfigError(
            "data.source.format: the rows of a mixture are mixed as training goes, and flat files"
            " know no weights; export each source alone"
        )
    for key, _ in config.data.conversations:
        raise errors.ConfigError(
            f"{key}.format: flat files have no place for what of a conversation is learnt; export"
            " text"
        )
    if config.data.streams:
        raise errors.ConfigError(
            "data.source.streaming: a streamed source has no end; write false, to read the dataset"
            " once"
        )
    existing = [
        path
        for name in ("train.bin", "val.bin", "meta.json")
        if (path := arguments.out / name).exists()
    ]
    if existing and not arguments.force:
        raise errors.ConfigError(
            f"--out: {existing[0]} exists already; name another folder, or write over it with"
            " --force"
        )

    from lm.checkpoints.base import tokenizer_of
    from lm.tokens.corpus import open_corpora

    tokenizer = tokenizer_of(config)
    export(open_corpora(config, tokenizer, print), tokenizer, arguments.out)


def export(corpora: list[Corpus], tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files, and meta.json last: if it exists, all files are complete."""
    from lm.tokens.export import write_flat
    from lm.tokens.store import TokenStore

    with disk.refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)
    train, val = corpora[0].train, corpora[-1].val  # data.validation is the last, if it is given
    assert isinstance(train, TokenStore)
    splits = {}
    for store in (train, val):
        file = folder / f"{store.split}.bin"
        written = write_flat(store, file)
        counts = {
            "tokens": store.tokens - 1,
            "documents": store.documents,
            "text_bytes": store.text_bytes,
        }
        splits[store.split] = {"file": file.name, **counts, **written}
        print(
            f"{file}: {store.tokens - 1:,} tokens, {store.documents:,} documents,"
            f" {in_bytes(written['bytes'])}"
        )
    meta = {
        "layout": "d1 EOS d2 EOS ... dn EOS, without a header, lowest byte first",
        "dtype": train.dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "tokenizer": {"name": tokenizer.name, "sha256": tokenizer.sha256},
        "splits": splits,
    }
    disk.replace(folder / "meta.json", json.dumps(meta, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = command_parser("python -m tools.export_tokens", __doc__)
    add_flag(result, "--config")
    result.add_argument(
        "--out", required=True, type=to_path, metavar="DIR", help="the folder that gets the files"
    )
    result.add_argument("--force", action="store_true", help="overwrite existing files")
    return result


if __name__ == "__main__":
    errors.run(main)
