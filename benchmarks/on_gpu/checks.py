"""What only a GPU can show. A check returns figures, or raises an error that says what failed."""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.on_gpu.runs import (
    GPT2,
    LLAMA,
    ROOT,
    Options,
    config,
    incidents,
    metrics,
    run,
    train,
    train_here,
)

OVERFLOWS_AT = 3  # the step whose gradient is made infinite


def machine(options: Options) -> dict[str, Any]:
    """Describe the machine: GPU, driver, versions."""
    import os
    import platform

    import lightning
    import torch
    import transformers

    figures: dict[str, Any] = {
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
    }
    if options.rehearse:
        return figures
    of_gpu = torch.cuda.get_device_properties(0)
    driver = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, RuntimeError):
        figures["driver"] = run(driver, ROOT).split()[0]
    return figures | {
        "gpu": of_gpu.name,
        "gpu_memory_gb": of_gpu.total_memory / 1e9,
        "capability": f"{of_gpu.major}.{of_gpu.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


def flash_attention(options: Options) -> dict[str, Any]:
    """bf16 attention takes the flash (or cuDNN) kernel, grouped heads too, and is right."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from lm.system.device import autocast
    from model import attend

    figures: dict[str, Any] = {}
    shapes = {"gpt2": GPT2, "llama, grouped": LLAMA | {"n_kv_heads": 2}}
    for name, shape in shapes.items():
        decoder = small_decoder(options, **shape, kernels="fused" if options.rehearse else "auto")
        ids = torch.randint(0, 512, (4, options.small["context_length"]), device=options.device)
        for masked in (False, True):
            with autocast(options.device, "bf16"), called_operations() as names:
                decoder(ids, ids, torch.zeros_like(ids) if masked else None).sum().backward()
            kernels = sorted({n for n in names if "dot_product" in n and "backward" not in n})
            figures[name + (", document mask" if masked else "")] = kernels
            if not masked:
                assert any("flash" in n or "cudnn" in n for n in kernels), f"{name}: {kernels}"
    q, k, v = torch.randn(3, 2, 4, 256, 64, device=options.device).bfloat16()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        flash = attend(q, k, v, None)
    with sdpa_kernel(SDPBackend.MATH):
        plain = attend(q.float(), k.float(), v.float(), None)
    figures["largest difference from fp32"] = difference = (flash - plain).abs().max().item()
    assert difference < 0.03, f"flash attention differs from fp32 by {difference}"
    return figures


def compiled_graph(options: Options) -> dict[str, Any]:
    """The model compiles without graph breaks, does not recompile, and has the same loss."""
    import torch
    from torch._dynamo.utils import counters

    from lm.config.reader import load
    from lm.surgery.compilation import try_to_compile
    from lm.system.device import autocast

    figures: dict[str, Any] = {}
    device, complaints = torch.device(options.device), list[str]()
    for name, shape, masked in (("gpt2", GPT2, False), ("llama", LLAMA, True)):
        torch._dynamo.reset()
        counters.clear()
        file = config(
            options,
            options.scratch / name,
            model=options.small | shape,
            data={"document_mask": masked},
        )
        decoder = small_decoder(options, **shape)
        context = lambda: autocast(options.device, "bf16")  # noqa: E731
        started = time.perf_counter()
        settings = load(str(file), ()).config
        try_to_compile(decoder, settings, 4, device, context, True, complaints.append)
        figures[f"{name}, seconds to compile"] = time.perf_counter() - started
        assert not complaints, complaints[0]
        graphs = counters["stats"]["unique_graphs"]
        for seed in range(3):
            ids = torch.randint(0, 512, (4, decoder.config.context_length), device=device)
            labels, documents = ids.clone(), torch.zeros_like(ids) + seed if masked else None
            with context():
                compiled = decoder(ids, labels, documents, total=True)
                compiled.backward()
                eager = decoder.forward(ids, labels, documents, total=True)  # never compiled
        torch.testing.assert_close(compiled, eager, atol=0.0, rtol=0.005)
        assert not counters["graph_break"], dict(counters["graph_break"])
        recompiled = counters["stats"]["unique_graphs"] - graphs
        assert recompiled == 0, f"{name}: {recompiled} graphs were compiled again in training"
    return figures


def fp16_scaler(options: Options) -> dict[str, Any]:
    """fp16 trains, an overflow leaves the weights alone, and the scale is saved."""
    options.needs_gpu()
    import torch
    from safetensors.torch import load_file

    from lm.training.module import LanguageModel

    accumulate = LanguageModel._accumulate

    def overflowing(self: Any, batch: dict[str, Any]) -> Any:
        loss = accumulate(self, batch)
        if self.step == OVERFLOWS_AT:
            self.decoder.norm.weight.grad.fill_(torch.inf)
        return loss

    folder = options.scratch
    saving = {"save_every": 1, "keep": 20}
    file = config(options, folder, trainer={"precision": "fp16"}, checkpoint=saving)
    LanguageModel._accumulate = overflowing  # type: ignore[method-assign]
    train_here(file)
    steps = [folder / "run" / f"step-{OVERFLOWS_AT + i:08d}.ckpt" for i in (0, 1, 2)]
    before, after, later = (load_file(step / "model.safetensors") for step in steps)
    assert all(torch.equal(before[name], after[name]) for name in before), "an overflow moved them"
    assert any(not torch.equal(after[name], later[name]) for name in after), "training stopped"
    noted = incidents(folder, "overflow")
    assert noted, "the overflow is not noted"
    state = torch.load(steps[2] / "train_state.pt", weights_only=True, map_location="cpu")
    assert "scaler" in state, "the scale is not saved"
    losses = metrics(folder, "loss")
    assert losses[-1] < losses[0], f"the loss did not fall: {losses}"
    return {"first loss": losses[0], "last loss": losses[-1], "overflows": len(noted)}


def resume_deterministic(options: Options) -> dict[str, Any]:
    """A resumed run equals an uninterrupted one bit for bit, with dropout: CUDA's random state."""
    return proved(options, "off")


def resume_compiled(options: Options) -> dict[str, Any]:
    """The same as resume_deterministic, compiled."""
    return proved(options, "on")


def proved(options: Options, compiled: str) -> dict[str, Any]:
    """Run tools.resume_proof with deterministic kernels."""
    file = config(options, options.scratch, model=options.small | {"dropout": 0.1})
    output = run(
        [sys.executable, "-m", "tools.resume_proof", "--config", str(file), "--steps", "8",
         "--stops", "1", "--trainer.deterministic", "true", "--trainer.compile", compiled],
        ROOT,
    )  # fmt: skip
    return {"said": output.splitlines()[-1]}


def nccl(options: Options) -> dict[str, Any]:
    """ddp and fsdp run under torchrun on one card, by NCCL, with the same losses."""
    losses = {}
    for strategy in ("ddp", "fsdp"):
        folder = options.scratch / strategy
        trainer = {"max_steps": 6, "strategy": strategy, "precision": "fp32"}
        launcher = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"
        output = train(config(options, folder, trainer=trainer), *launcher, NCCL_DEBUG="INFO")
        assert options.rehearse or "NCCL INFO" in output, f"{strategy}: NCCL was not used"
        losses[strategy] = metrics(folder, "loss")[-1]
    difference = abs(losses["ddp"] - losses["fsdp"])
    assert difference < 1e-3, f"the last losses differ: {losses}"
    return {f"last loss, {name}": loss for name, loss in losses.items()}


def out_of_memory(options: Options) -> dict[str, Any]:
    """With too little memory a step is done again with fewer rows, and its loss is the same."""
    options.needs_gpu()
    import torch

    trainer = {"max_steps": 3, "batch_size": 64, "micro_batch_size": 64, "precision": "bf16"}
    model = {"context_length": 512, "n_layers": 8, "d_model": 512}
    losses, peaks = [], []
    for name in ("enough", "too little"):
        folder = options.scratch / name.replace(" ", "_")
        train_here(config(options, folder, trainer=trainer, model=model))
        losses.append(metrics(folder, "loss"))
        peaks.append(max(metrics(folder, "peak_memory_mb")))
        gc.collect()  # Lightning's objects refer to each other
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(0.7 * peaks[0] * 1e6 / total)
    noted = incidents(folder, "memory")
    assert noted, f"no step ran out of memory: peaks {peaks} MB"
    differences = [abs(a - b) for a, b in zip(*losses, strict=True)]
    assert max(differences) < 0.01, f"the losses differ: {losses}"
    return {"peak MB": peaks, "noted": noted[0], "largest difference of losses": max(differences)}


def pinned_loader(options: Options) -> dict[str, Any]:
    """Worker processes run beside CUDA; pinned batches arrive unchanged. How much faster?"""
    import torch
    from torch.utils.data import DataLoader

    from data import PackedDataModule
    from lm.config.reader import load
    from lm.tokenizer.tokenizer import ByteTokenizer

    device = torch.device(options.device)
    torch.zeros(1, device=device)  # CUDA is up before the workers start, as in a run
    steps = 20
    trainer = {"max_steps": steps, "batch_size": 64}
    file = config(options, options.scratch, data={"workers": 2}, trainer=trainer)
    loader = PackedDataModule(load(str(file), ()).config, ByteTokenizer(), print).train_dataloader()
    pinned = DataLoader(
        loader.dataset, sampler=range(steps), batch_size=None, num_workers=2,
        pin_memory=not options.rehearse,
    )  # fmt: skip
    figures, sums = {}, []
    for name, batches in (("pageable", loader), ("pinned", pinned)):
        seconds, total = [], torch.zeros((), dtype=torch.int64, device=device)
        for batch in batches:
            started = time.perf_counter()
            ids = batch["input_ids"].to(device, non_blocking=True)
            torch.get_device_module(device).synchronize()
            seconds.append(time.perf_counter() - started)
            total = total * 31 + ids.sum()
        figures[f"{name}, ms a step"] = 1000 * statistics.median(seconds)
        sums.append(total.item())
    assert sums[0] == sums[1], "pinned batches differ"
    return figures


def small_decoder(options: Options, **shape: Any) -> Any:
    """Return a decoder of the small size on the device."""
    import torch

    from lm.config.schema.model import ModelConfig
    from model import Decoder

    torch.manual_seed(0)
    return Decoder(ModelConfig(**options.small | shape, vocab_size=512)).to(options.device)


@contextlib.contextmanager
def called_operations() -> Iterator[list[str]]:
    """Yield a list that grows by the name of each operation in the block."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []

    class Recorded(TorchDispatchMode):
        """Notes each operation."""

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Recorded():
        yield names
