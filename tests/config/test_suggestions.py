"""A suggestion leads on: the key exists, and the value that is suggested is accepted."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from lm.config.keys import keys, leaves
from lm.config.other_names import OTHER_NAMES, ROWS
from lm.config.reader import load
from lm.config.scalars import flow
from lm.system.errors import ConfigError
from tests.support.configs import BASE, complaints

SECTIONS = ["", "model.", "optimizer.", "trainer.", "data.", "checkpoint.", "logging."]
VALUES = [
    *(0, 1, 8, 0.02, 3e-4, -1, 1e300, True, False, None, "", "x", "bfloat16", "cosine", "lora"),
    *("a.jsonl", "a/b", ["q_proj"], ["a.csv"], {"enabled": True}, [{"path": "a"}]),
]


def suggested(message: str, value: object) -> dict[str, str]:
    """Return the keys that a message says to write, each with the value as YAML."""
    if similar := re.search(r"did you mean ([\w.]+)\?", message):
        return {similar[1]: flow(value)}
    message = message.removesuffix("; see --help")
    _, _, words = message.partition("write ")
    pair = r"([a-z_]+\.[\w.]+): (\{.*\}|\[.*\]|\"[^\"]*\"|[^ ,]+)"
    return dict(re.findall(rf"{pair}(?=, [a-z_]+\.| and [a-z_]+\.|$)", words))


def refusals(text: str, flags: list[str], tmp_path: Any) -> list[str]:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    try:
        load(path, flags)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def misplaced() -> Iterator[tuple[str, str, Any]]:
    """Yield other programs' names, and our own names in sections where they are not."""
    sections = itertools.cycle(SECTIONS)
    ours = [key.short for key in leaves() if "[]" not in key.name]
    for number, name in enumerate([*OTHER_NAMES, *ours]):
        for value in VALUES[number % 3 :: 3]:
            yield next(sections), name, value


@pytest.mark.usefixtures("takes_seconds")
def test_a_suggestion_is_accepted(tmp_path: Any) -> None:
    """Whatever a message says to write, with a value, is no mistake of that key again."""
    tried, wrong = 0, []
    for section, name, value in misplaced():
        if f"{section}{name}" in keys():
            continue
        if f"data.source.{name}" in keys() and section == "data.":
            continue  # the source's format decides
        flag = f"--{section}{name}"
        lines = refusals(BASE, [f"{flag}={flow(value)}"], tmp_path)
        message = next((line for line in lines if line.startswith(f"command line: {flag}:")), "")
        assert message, (flag, value, lines)
        writing = suggested(message, value)
        for key in re.findall(r"\b(?:data|model|optimizer|trainer)\.[a-z_.]*[a-z]\b", message):
            assert key in keys() or key == f"{section}{name}", message
        if not writing or any(
            f"write {key}: {keys()[key].type}" in message for key in writing if key in keys()
        ):
            continue  # the message says which values there are
        tried += 1
        flags = [f"--{key}={text}" for key, text in writing.items()]
        again = refusals(BASE, flags, tmp_path)
        wrong += [
            f"{message} -> {line}"
            for line in again
            for key in writing
            if line.startswith(f"command line: --{key}:")
            # Such a key needs another one or other data too, and the message says so.
            and not re.search(
                "is not divisible by|learns from preferences|is for conversations|a length"
                "|model.tie_embeddings",
                line,
            )
        ]
    assert not wrong, "\n".join(wrong)
    assert tried > 300


CHATS = """\
data:
  document_mask: true
  source:
    format: chat
    layout: preferences
    files: a.jsonl
finetune:
  base: a.ckpt
  objective: dpo
trainer:
  max_steps: 1000
"""
TOGETHER = [
    # nanoGPT: a batch of micro-batches, and a lowest rate instead of a fraction
    (
        "trainer: {max_steps: 1000, batch_size: 12}\noptimizer: {gradient_accumulation_steps: 5}",
        "optimizer.gradient_accumulation_steps: unknown key, got 5, write trainer.batch_size: 60"
        " and trainer.micro_batch_size: 12",
    ),
    (
        "trainer: {max_steps: 1000}\noptimizer: {lr: 6e-4, min_lr: 6e-5}",
        "optimizer.min_lr: unknown key, got 6.0e-5, write optimizer.final_lr_fraction: 0.1",
    ),
    # TrainingArguments
    (
        "trainer: {max_steps: 2000, warmup_ratio: 0.05}",
        "trainer.warmup_ratio: unknown key, got 0.05, write optimizer.warmup_steps: 100",
    ),
    (
        "trainer: {max_tokens: 1e6, warmup_ratio: 0.05}",
        "trainer.warmup_ratio: unknown key, got 0.05, write optimizer.warmup_steps: 0.05 x the"
        " steps of the run",
    ),
    (
        "trainer: {max_steps: 2000, adam_beta2: 0.999}",
        "trainer.adam_beta2: unknown key, got 0.999, write optimizer.betas: [0.9, 0.999]",
    ),
    (
        "trainer: {max_steps: 2000, learning-rate: 2e-4}",
        "trainer.learning-rate: unknown key, got 0.0002, did you mean optimizer.lr?",
    ),
    # our own key in another section, with another program's value
    (
        "trainer: {max_steps: 2000}\nmodel: {compile: true}",
        "model.compile: unknown key, got true, write trainer.compile: on",
    ),
    (
        "trainer: {max_steps: 2000, tie_embeddings: 3}",
        "trainer.tie_embeddings: unknown key, got 3, write model.tie_embeddings: true or false",
    ),
    (
        "trainer: {num_train_epochs: 3}\noptimizer: {warmup_steps: 1}",
        "trainer.num_train_epochs: unknown key, got 3, did you mean trainer.max_epochs?",
    ),
    (
        "trainer: {max_steps: 10, epochs: 0.5}\noptimizer: {warmup_steps: 1}",
        "trainer.epochs: unknown key, got 0.5, did you mean trainer.max_epochs?",
    ),
]


@pytest.mark.parametrize(("text", "expected"), TOGETHER, ids=range(len(TOGETHER)))
def test_a_value_is_converted_with_what_stands_beside_it(write, text: str, expected: str) -> None:
    data = "data:\n  source:\n    format: txt\n    files: a.txt\n"
    [line] = complaints(write(data + text))
    assert re.sub(r"^c\.yaml:\d+: ", "", line) == expected


def test_a_row_is_the_context_of_a_new_model_and_the_rows_of_a_fine_tuning(write) -> None:
    assert complaints(write(BASE + "  max_length: 64")) == [
        "c.yaml:7: trainer.max_length: unknown key, got 64, did you mean model.context_length?"
    ]
    assert refusals_of(write(CHATS + "  max_length: 64")) == [
        "c.yaml:12: trainer.max_length: unknown key, got 64, did you mean data.sequence_length?"
    ]


def test_adapters_and_preferences_come_with_what_they_need(write) -> None:
    """A rank alone would be refused, because the default method has no adapters."""
    assert complaints(write(BASE + "  lora_r: 8"))[0].endswith(
        "write finetune.base: checkpoints/best.ckpt, finetune.method: lora and finetune.lora.rank:"
        " 8"
    )
    path = write(CHATS + "  lora_target_modules: [q_proj, v_proj]\n  beta: 0.3")
    assert [line.partition("], ")[2] or line for line in refusals_of(path)] == [
        "write finetune.method: lora and finetune.lora.targets: ['*.q_proj', '*.v_proj']".replace(
            "'", '"'
        ),
        "c.yaml:13: trainer.beta: unknown key, got 0.3, write finetune.objective: dpo and"
        " finetune.dpo_beta: 0.3",
    ]


def test_keys_of_a_source_stay_in_their_source(write) -> None:
    text = BASE.replace("files: a.txt", "dataset: a").replace("txt", "hub") + "  x: 1\n"
    text = text.replace("dataset: a", "dataset: a\n    split: train\n    text_column: body")
    assert complaints(write(text))[:2] == [
        'c.yaml:5: data.source.split: unknown key, got "train", did you mean'
        " data.source.dataset_split?",
        'c.yaml:6: data.source.text_column: unknown key, got "body", did you mean'
        " data.source.text_key?",
    ]
    [line] = complaints(write(BASE.replace("files:", "data_files:")), "--data.source.files=b")
    assert line.endswith("did you mean data.source.files?")
    [line] = complaints(write(BASE.replace("files: a.txt", "files: a.txt\n    text_column: b")))
    assert line.endswith("write data.source.text_key, which is for jsonl, csv, parquet or hub")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("train_file: d/a.jsonl.gz", "write data.source: {format: jsonl, files: d/a.jsonl.gz}"),
        ("data_dir: data/openwebtext", "write data.source: a section with format and files"),
        ("corpus: corpus/shards", "write data.source: a section with format and files"),
        ("val_data: a/b", "write data.validation: a section with format and files"),
        ("dataset: a/b", "write data.source: {format: hub, dataset: a/b}"),
        ("dtype: uint16", "write data.source.dtype, which is for bin"),
        ("dtype: bfloat16", "write trainer.precision: bf16"),
    ],
)
def test_files_are_no_dataset_of_the_hub(write, given: str, expected: str) -> None:
    [line] = complaints(write(f"{BASE}  {given}\n"))
    assert line.endswith(f", {expected}")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("deepspeed: zero3.json", "write trainer.strategy: fsdp, which splits weights, gradients"),
        ("fsdp: full_shard auto_wrap", "write trainer.strategy: fsdp"),
        ("fsdp: {mode: full}", "write trainer.strategy: fsdp"),
        ("fsdp: true", "write trainer.strategy: fsdp"),
        ("fsdp: ''", "write trainer.strategy: auto"),
        ("fsdp: no_shard", "write trainer.strategy: auto"),
        (
            "fsdp_config: {min_num_params: 2000}",
            "remove it: trainer.strategy: fsdp has no settings",
        ),
        ("neftune_noise_alpha: 5", "remove it: no noise is added to the embeddings; model.dropout"),
        ("group_by_length: true", "remove it: data.rows: packed leaves no padding"),
        ("norm_class_name: RMSNorm", "write model.norm: rmsnorm"),
        ("loss_type: ipo", "write finetune.objective: sft or dpo"),
        ("optim: adamw_torch_fused", "write optimizer.name: adamw"),
        ("nnodes: 2", "did you mean trainer.num_nodes?"),
    ],
)
def test_settings_of_other_trainers(write, given: str, expected: str) -> None:
    [line] = complaints(write(f"{BASE}  {given}\n"))
    assert line.startswith("c.yaml:7: trainer.") and f", {expected}" in line


PROGRAMS = {
    "nanoGPT": "out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint"
    " init_from wandb_log wandb_project wandb_run_name dataset gradient_accumulation_steps"
    " batch_size block_size n_layer n_head n_embd dropout bias learning_rate max_iters weight_decay"
    " beta1 beta2 grad_clip decay_lr warmup_iters lr_decay_iters min_lr backend device dtype"
    " compile",
    "nanochat": "run device_type depth head_dim max_seq_len window_pattern num_iterations"
    " target_flops target_param_data_ratio device_batch_size total_batch_size embedding_lr"
    " unembedding_lr weight_decay matrix_lr warmup_ratio warmdown_ratio final_lr_frac eval_every"
    " eval_tokens sample_every save_every model_tag",
    "litgpt": "model_name out_dir precision initial_checkpoint_dir resume data save_interval"
    " log_interval global_batch_size micro_batch_size lr_warmup_steps max_tokens max_seq_length"
    " tie_embeddings max_norm min_lr max_iters initial_validation final_validation"
    " optimizer devices num_nodes tokenizer_dir logger_name seed checkpoint_dir quantize lora_r"
    " lora_alpha lora_dropout lora_query lora_key lora_value lora_projection lora_mlp lora_head"
    " epochs",
    "Axolotl": "base_model model_type tokenizer_type load_in_8bit load_in_4bit adapter datasets"
    " dataset_prepared_path val_set_size output_dir sequence_len sample_packing"
    " pad_to_sequence_len lora_r lora_alpha lora_dropout lora_target_modules lora_target_linear"
    " wandb_project wandb_entity wandb_watch wandb_name wandb_log_model"
    " gradient_accumulation_steps micro_batch_size num_epochs optimizer lr_scheduler learning_rate"
    " train_on_inputs group_by_length bf16 fp16 tf32 gradient_checkpointing"
    " early_stopping_patience resume_from_checkpoint local_rank logging_steps flash_attention"
    " warmup_steps evals_per_epoch saves_per_epoch debug deepspeed weight_decay fsdp fsdp_config"
    " special_tokens chat_template field_messages eval_sample_packing",
    "LLaMA-Factory": "model_name_or_path trust_remote_code stage do_train finetuning_type"
    " lora_rank lora_target deepspeed dataset template cutoff_len max_samples overwrite_cache"
    " preprocessing_num_workers dataloader_num_workers output_dir logging_steps save_steps"
    " plot_loss overwrite_output_dir save_only_model report_to per_device_train_batch_size"
    " gradient_accumulation_steps learning_rate num_train_epochs lr_scheduler_type warmup_ratio"
    " bf16 ddp_timeout resume_from_checkpoint eval_dataset val_size eval_strategy eval_steps"
    " per_device_eval_batch_size pref_beta pref_loss neat_packing quantization_bit dataset_dir"
    " flash_attn enable_liger_kernel use_unsloth neftune_noise_alpha packing mask_history",
    "torchtune": "output_dir tokenizer dataset seed shuffle batch_size epochs optimizer loss"
    " max_steps_per_epoch gradient_accumulation_steps optimizer_in_bwd clip_grad_norm compile"
    " device enable_activation_checkpointing enable_activation_offloading dtype metric_logger"
    " log_every_n_steps log_peak_memory_stats log_level profiler lora_attn_modules"
    " apply_lora_to_mlp apply_lora_to_output lora_rank lora_alpha lora_dropout lr_scheduler"
    " resume_from_checkpoint packed train_on_input max_seq_len run_val_every_n_steps",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_other_programs_write_in_their_examples_is_answered(program: str) -> None:
    ours = {key.short for key in keys().values()}
    assert [name for name in PROGRAMS[program].split() if name not in {*OTHER_NAMES, *ours}] == []


def test_a_name_stands_in_one_row() -> None:
    """A second row would silently replace the first."""
    names = [name for _, row in ROWS for name in row.split()]
    assert [name for name, times in Counter(names).items() if times > 1] == []


def test_flags_of_other_programs(write) -> None:
    flags = ["--learning_rate", "3e-4", "--bf16", "--gradient_accumulation_steps=4"]
    lines = complaints(write(BASE), *flags, "--per-device-train-batch-size", "8", "--out_dir=x")
    assert [line.removeprefix("command line: ") for line in lines] == [
        "--learning_rate: unknown flag, did you mean optimizer.lr?; see --help",
        "--bf16: unknown flag, write trainer.precision: bf16; see --help",
        "--gradient_accumulation_steps: unknown flag, write trainer.batch_size: 32 and"
        " trainer.micro_batch_size: 8; see --help",
        "--per-device-train-batch-size: unknown flag, write trainer.batch_size: 32 and"
        " trainer.micro_batch_size: 8; see --help",
        "--out_dir: unknown flag, did you mean checkpoint.directory?; see --help",
    ]


def refusals_of(path: str) -> list[str]:
    """Return the problems of a fine-tuning's file, without its base."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value).splitlines()


def test_a_broken_key_in_a_list_of_sections_is_answered(write) -> None:
    """Close to two keys at once, one of them of the list and not of its sections."""
    text = """\
data:
  source:
    format: mixture
    parts:
      - weight  source: {format: txt, files: a.txt}
trainer: {max_steps: 1000}
"""
    lines = complaints(write(text))
    assert lines[-1].endswith("write data.source.parts[0].weight: a whole number >= 1 and <= 1000")
