"""Compare what ten minutes on one core teach: ours and nanoGPT, on the same tokens.

    python benchmarks/ten_minutes.py --nanogpt nanoGPT --reviews reviews.jsonl --wikitext FOLDER

The text is film reviews and WikiText-2. Ours learns a vocabulary of 4,000 tokens from it, and the
tokens are exported for nanoGPT. Both have 6 layers, d 256, context 256 and 16 rows a step, and as
many steps as fit the seconds, start-up excluded. nanoGPT has its README's flags for small networks
(learning rate 1e-3, cosine to 1e-4), without dropout. Ours has the recipe of
configs/wikitext_reviews.yaml. Each runs on a core of its own, at the same time. A loss is that of
all validation tokens, in windows of 256; ends of documents count as tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.peers import copy_nanogpt, nanogpt_command  # noqa: E402
from benchmarks.steps import run_steps  # noqa: E402
from lm.system.machine import hardware  # noqa: E402

RECIPE = ROOT / "configs" / "wikitext_reviews.yaml"
WINDOW, ROWS, VOCABULARY = 256, 16, 4000
SHAPE = {"n_layer": 6, "n_head": 4, "n_embd": 256, "block_size": WINDOW, "batch_size": ROWS}
VALIDATION = """
import sys, json, numpy as np, torch
from model import GPT, GPTConfig
saved = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"])); model.load_state_dict(saved["model"]); model.eval()
ids = torch.from_numpy(np.fromfile(sys.argv[2], dtype=np.uint16).astype(np.int64))
n = (len(ids) - 1) // 256
x, y = ids[: n * 256].view(n, 256), ids[1 : n * 256 + 1].view(n, 256)
with torch.no_grad():
    losses = [model(x[i : i + 8], y[i : i + 8])[1].item() * len(x[i : i + 8]) for i in range(0, n, 8)]
print(json.dumps([sum(losses) / n, n * 256]))
"""


def main() -> None:
    """Train both for the same time and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of karpathy/nanoGPT")
    parser.add_argument("--reviews", type=Path, required=True, help='lines of {"text": ...}')
    parser.add_argument("--wikitext", type=Path, required=True, help="a folder of *.txt")
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    print(hardware("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        config = prepare(arguments, scratch)
        nanogpt = copy_nanogpt(arguments.nanogpt, scratch)
        command = [sys.executable, "-m", "tools.export_tokens", "--config", str(config)]
        run([*command, "--out", str(nanogpt / "data" / "ours")], ROOT)
        meta = nanogpt / "data" / "ours" / "meta.json"
        (nanogpt / "data" / "ours" / "meta.pkl").write_bytes(vocabulary(meta))
        with ThreadPoolExecutor(2) as both:
            ours = both.submit(train_ours, config, scratch, arguments.seconds)
            theirs = both.submit(train_nanogpt, nanogpt, arguments.seconds)
        scored = score_ours(config, scratch)
        loss, tokens = score_nanogpt(nanogpt)
    text_bytes = scored["text_bytes"]
    print("\n| program | steps | CPU s | nats per token | bits per byte |\n|---|---|---|---|---|")
    rows = {"nanoGPT": (*theirs.result(), loss, tokens), "ours": (*ours.result(), scored["loss"], scored["tokens"])}
    for name, (steps, cpu, nats, count) in rows.items():
        bits = nats * count / math.log(2) / text_bytes
        print(f"| {name} | {steps} | {cpu:.0f} | {nats:.4f} | {bits:.4f} |")
    print(f"\nours / nanoGPT: {scored['loss'] / loss:.3f}")
