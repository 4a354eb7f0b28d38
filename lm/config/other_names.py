"""Keys of other programs that train language models, with what to write for them here.

The names are those of nanoGPT, nanochat, litgpt, minimind, Hugging Face (TrainingArguments, TRL,
model configurations), Axolotl, LLaMA-Factory and Lightning. `ROWS` is the table: each row has a
way to write, and the names that are written so. A new name is one word in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

# All values of the configuration by the last part of their keys: some need another one beside them.
Given = Mapping[str, Any]
# The keys here with their values, or words where the value cannot be known.
Writing = dict[str, Any] | str
Translate = Callable[[Any, Given], Writing]

DEFAULT_LR = 1e-3
DEFAULT_BETAS = [0.9, 0.95]
DEFAULT_ROW = 256
ADAPTERS = ("lora", "qlora")
FORMATS = {
    ".txt": "txt", ".md": "txt", ".jsonl": "jsonl", ".json": "instruction", ".csv": "csv",
    ".tsv": "csv", ".parquet": "parquet", ".bin": "bin",
}  # fmt: skip
PACKINGS = (".gz", ".bz2", ".xz", ".zst")
PRECISIONS = {
    "bf16": ("bf16", "bfloat16", "bf16-mixed", "bf16-true", "torch.bfloat16"),
    "fp16": ("fp16", "float16", "half", "16", "16-mixed", "16-true", "torch.float16"),
    "fp32": ("fp32", "float32", "float", "32", "32-true", "no", "torch.float32"),
}
SCHEDULES = {
    "cosine": ("cosine", "cosine_with_min_lr", "cosine_with_restarts", "cosineannealinglr"),
    "linear": ("linear", "linear_with_warmup", "polynomial"),
    "wsd": ("wsd", "warmup_stable_decay", "trapezoidal"),
    "constant": ("constant", "constant_with_warmup", "none"),
}
TRAINED_ROWS = ("per_device_train_batch_size", "device_batch_size", "micro_batch_size")
ACCUMULATED = (
    "gradient_accumulation_steps", "accumulate_grad_batches", "accumulation_steps",
    "grad_accum_steps", "gradient_accumulation",
)  # fmt: skip
STEPS = (
    "max_iters", "num_iterations", "max_train_steps", "num_train_steps", "total_steps",
    "train_steps", "training_steps", "num_steps", "n_steps", "iterations", "train_iters",
)  # fmt: skip
LEARNING_RATES = ("learning_rate", "max_lr", "base_lr", "peak_lr", "init_lr")


def _first(given: Given, names: tuple[str, ...], otherwise: Any = None) -> Any:
    """Return the first value among `names` that is a number, else `otherwise`."""
    return next((value for name in names if is_number(value := given.get(name))), otherwise)


def is_number(value: object) -> bool:
    """Return whether a value is a number to calculate with: no bool, no text, not huge."""
    return type(value) in (int, float) and abs(value) < 2**53  # type: ignore[arg-type]


def _same(key: str) -> Translate:
    """Write the value as it is."""
    return lambda value, given: {key: value}


def _words(text: str) -> Translate:
    return lambda value, given: text


def _nothing(reason: str) -> Translate:
    """Write nothing here."""
    return lambda value, given: f"remove it: {reason}"


def _choice(key: str, choices: Mapping[str, tuple[str, ...]]) -> Translate:
    """Write the choice that has the value among its names."""

    def translate(value: Any, given: Given) -> Writing:
        name = str(value).lower()
        return {key: next((choice for choice, names in choices.items() if name in names), value)}

    return translate


def _switch(key: str, on: Any, off: Any) -> Translate:
    """Write one of two values for true and false, and any other value as it is."""

    def translate(value: Any, given: Given) -> Writing:
        return {key: {"true": on, "1": on, "false": off, "0": off}.get(str(value).lower(), value)}

    return translate


def _adapter(key: str) -> Translate:
    """Write a key of the adapters; they belong to a method that is not the default."""

    def translate(value: Any, given: Given) -> Writing:
        values = value
        if key == "finetune.lora.targets":
            names = [value] if isinstance(value, str) else value
            if names in (["all"], ["all-linear"]):
                names = ["layers.*"]
            elif isinstance(names, list):
                names = [name if "*" in str(name) else f"*.{name}" for name in names]
            values = names
        method = {} if given.get("method") in ADAPTERS else {"finetune.method": "lora"}
        return method | {key: values}

    return translate


def _row_length(value: Any, given: Given) -> Writing:
    if "base" in given:  # the base decides the context
        return {"data.sequence_length": value}
    return {"model.context_length": value}


def _micro_batch(value: Any, given: Given) -> Writing:
    """Rows of one forward pass: the batch is what several of them make together."""
    accumulated = _first(given, ACCUMULATED, 1)
    devices = _first(given, ("devices",), 1) * _first(given, ("num_nodes",), 1)
    if not is_number(value):
        return {"trainer.micro_batch_size": value}
    return {
        "trainer.batch_size": value * accumulated * devices,
        "trainer.micro_batch_size": value,
    }


def _accumulation(value: Any, given: Given) -> Writing:
    rows = _first(given, (*TRAINED_ROWS, "batch_size"))
    if rows is None or not is_number(value):
        return (
            f"write trainer.micro_batch_size, the rows of one forward pass, and"
            f" trainer.batch_size: {value} x as many"
        )
    return _micro_batch(rows, {**given, "gradient_accumulation_steps": value})


def _batch_in_tokens(value: Any, given: Given) -> Writing:
    length = _first(given, ("sequence_length", "context_length", "max_seq_len"), DEFAULT_ROW)
    if not is_number(value) or not 1 <= length <= value:
        return {"trainer.batch_size": value}
    return {"trainer.batch_size": int(value // length)}


def _epochs(value: Any, given: Given) -> Writing:
    return (
        f"write trainer.max_steps: the steps of {value} passes over the text; --plan says how many"
        " steps one pass takes, for any max_steps"
    )


def _warmup_ratio(value: Any, given: Given) -> Writing:
    steps = _first(given, ("max_steps", *STEPS))
    if not is_number(value) or not 0 <= value < 1:  # a number of steps
        return {"optimizer.warmup_steps": value}
    if steps is None:
        return f"write optimizer.warmup_steps: {value} x the steps of the run"
    return {"optimizer.warmup_steps": int(value * steps)}


def _final_rate(value: Any, given: Given) -> Writing:
    highest = _first(given, (*LEARNING_RATES, "lr"), DEFAULT_LR)
    if not is_number(value) or not highest:
        return {"optimizer.final_lr_fraction": value}
    return {"optimizer.final_lr_fraction": float(f"{value / highest:.6g}")}


def _beta(index: int) -> Translate:
    def translate(value: Any, given: Given) -> Writing:
        names = [(f"beta{i}", f"adam_beta{i}", f"beta_{i}") for i in (1, 2)]
        betas = [_first(given, names[i], DEFAULT_BETAS[i]) for i in (0, 1)]
        betas[index] = value
        return {"optimizer.betas": betas}

    return translate


def _preference(value: Any, given: Given) -> Writing:
    return {"finetune.objective": "dpo", "finetune.dpo_beta": value}


def _files(section: str) -> Translate:
    """Write a source of text by the ending of its files, in front of that of their packing."""

    def translate(value: Any, given: Given) -> Writing:
        name = value[0] if isinstance(value, list) and value else value
        if isinstance(name, str):
            path = PurePath(name)
            plain = path.with_suffix("") if path.suffix in PACKINGS else path
            if known := FORMATS.get(plain.suffix):
                return {section: {"format": known, "files": value}}
        return f"write {section}: a section with format and files"

    return translate


def _dataset(section: str) -> Translate:
    """Write a source of text: files by their ending, a dataset of the hub by the slash in it."""

    def translate(value: Any, given: Given) -> Writing:
        writing = _files(section)(value, given)
        if isinstance(writing, dict):
            return writing
        name = value[0] if isinstance(value, list) and value else value
        if isinstance(name, str) and name.count("/") == 1 and not name.startswith(("/", ".", "~")):
            return {section: {"format": "hub", "dataset": name}}
        return f"{writing}, or with format: hub and dataset"

    return translate


def _held_out(value: Any, given: Given) -> Writing:
    if is_number(value) and 1 <= value < 100:
        return {"data.val_fraction": value / 100}
    return {"data.val_fraction": value}


def _dataset_split(value: Any, given: Given) -> Writing:
    key = "data.split" if value in ("hash", "tail") else "data.source.dataset_split"
    return {key: value}


def _validation_rows(value: Any, given: Given) -> Writing:
    rows = _first(given, ("batch_size", *TRAINED_ROWS), 32)
    return {"trainer.validation_rows": value * rows if is_number(value) else value}


ROWS: list[tuple[Translate, str]] = [
    # length of the run
    (_epochs, "epochs epoch num_epochs num_train_epochs n_epochs max_epoch train_epochs"),
    (_same("trainer.max_steps"), " ".join(STEPS)),
    (_same("trainer.max_tokens"), "train_tokens total_tokens num_tokens"),
    (_same("trainer.max_minutes"), "max_time time_limit max_train_minutes"),
    # batch
    (_micro_batch, " ".join(TRAINED_ROWS)),
    (_accumulation, " ".join(ACCUMULATED)),
    (_same("trainer.batch_size"), "global_batch_size train_batch_size effective_batch_size bs"),
    (_batch_in_tokens, "total_batch_size batch_size_tokens"),
    # learning rate and optimiser
    (_same("optimizer.lr"), " ".join(LEARNING_RATES)),
    (
        _same("optimizer.warmup_steps"),
        "warmup_iters lr_warmup_steps num_warmup_steps lr_warmup_iters warmup warmup_updates",
    ),
    (_warmup_ratio, "warmup_ratio warmup_fraction lr_warmup_fraction warmup_proportion"),
    (
        _choice("optimizer.schedule", SCHEDULES),
        "lr_scheduler_type lr_scheduler scheduler lr_schedule lr_decay_style scheduler_type",
    ),
    (_switch("optimizer.schedule", "cosine", "constant"), "decay_lr"),
    (_final_rate, "min_lr min_learning_rate lr_min end_lr cosine_min_lr"),
    (
        _same("optimizer.final_lr_fraction"),
        "final_lr_frac min_lr_ratio min_lr_rate cosine_min_lr_ratio",
    ),
    (_same("optimizer.decay_fraction"), "warmdown_ratio cooldown_fraction decay_ratio"),
    (_nothing("the rate decays up to trainer.max_steps"), "lr_decay_iters lr_decay_steps"),
    (_same("optimizer.weight_decay"), "wd"),
    (_beta(0), "beta1 adam_beta1 beta_1"),
    (_beta(1), "beta2 adam_beta2 beta_2"),
    (_same("optimizer.eps"), "adam_epsilon adam_eps epsilon"),
    (
        _same("optimizer.grad_clip"),
        "max_grad_norm gradient_clip_val clip_grad grad_norm_clip max_norm gradient_clipping"
        " clip_grad_norm grad_clip_norm clip",
    ),
    (_same("optimizer.ema_decay"), "ema"),
    (_choice("optimizer.name", {"adamw": ("adam", "adamw", "adamw_torch")}), "optim"),
    # model
    (_same("model.n_layers"), "n_layer num_layers num_hidden_layers n_blocks depth layers"),
    (_same("model.n_heads"), "n_head num_heads num_attention_heads heads n_query_heads"),
    (_same("model.n_kv_heads"), "n_kv_head num_key_value_heads num_kv_heads n_query_groups"),
    (_same("model.d_model"), "n_embd hidden_size embed_dim emb_dim dim hidden_dim model_dim"),
    (_same("model.d_ff"), "intermediate_size ffn_dim n_inner ff_dim mlp_dim ffn_hidden_size"),
    (
        _row_length,
        "max_length max_seq_length max_seq_len block_size seq_len seq_length sequence_len"
        " cutoff_len context_size ctx_len context_window max_context_length model_max_length",
    ),
    (
        _same("model.context_length"),
        "max_position_embeddings n_positions n_ctx max_sequence_len max_sequence_length",
    ),
    (_same("model.vocab_size"), "padded_vocab_size n_vocab"),
    (
        _same("model.dropout"),
        "resid_pdrop embd_pdrop attn_pdrop attention_dropout resid_dropout hidden_dropout drop_rate"
        " hidden_dropout_prob attn_dropout",
    ),
    (_same("model.norm_eps"), "rms_norm_eps layer_norm_epsilon layer_norm_eps norm_epsilon"),
    (_same("model.tie_embeddings"), "tie_word_embeddings weight_tying tied_embeddings"),
    (_same("model.init_std"), "initializer_range"),
    (_same("model.rope_theta"), "rope_base rotary_base rope_freq_base"),
    (
        _choice(
            "model.mlp",
            {
                "gelu": ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_tanh"),
                "swiglu": ("silu", "swish", "swiglu"),
            },
        ),
        "hidden_act activation activation_function act_fn",
    ),
    (_nothing("a head is model.d_model / model.n_heads wide"), "head_dim head_size"),
    (
        _nothing("attention always uses torch's fused kernels"),
        "flash_attention flash_attn use_flash_attention attn_implementation sdp_attention",
    ),
    (_same("model.gradient_checkpointing"), "activation_checkpointing use_gradient_checkpointing"),
    # device and precision
    (_switch("trainer.precision", "bf16", "fp32"), "bf16 use_bf16"),
    (_switch("trainer.precision", "fp16", "fp32"), "fp16 use_fp16 amp use_amp"),
    (_choice("trainer.precision", PRECISIONS), "dtype torch_dtype mixed_precision ptdtype"),
    (_switch("trainer.compile", "on", "off"), "torch_compile use_compile compile_model compile"),
    (
        _choice("trainer.device", {"cuda": ("gpu", "cuda"), "cpu": ("cpu",), "mps": ("mps",)}),
        "accelerator",
    ),
    (_switch("trainer.device", "cpu", "auto"), "use_cpu no_cuda"),
    (_same("trainer.devices"), "num_gpus gpus n_gpu nproc_per_node world_size num_processes"),
    (_same("trainer.seed"), "random_seed data_seed manual_seed random_state"),
    (
        _same("data.workers"),
        "num_workers dataloader_num_workers preprocessing_num_workers n_workers",
    ),
    # intervals, files and logs
    (
        _same("checkpoint.save_every"),
        "save_steps save_interval save_freq checkpoint_interval checkpoint_every ckpt_interval"
        " every_n_train_steps save_iters",
    ),
    (_same("checkpoint.keep"), "save_total_limit keep_last_n max_checkpoints save_top_k"),
    (
        _same("trainer.validate_every"),
        "eval_steps eval_interval eval_every val_check_interval val_interval val_every eval_freq"
        " validation_interval val_steps validate_interval",
    ),
    (_validation_rows, "eval_iters eval_batches limit_val_batches val_batches max_val_batches"),
    (_same("trainer.early_stopping"), "early_stopping_patience patience"),
    (
        _same("logging.every"),
        "logging_steps log_interval log_every log_every_n_steps log_steps print_every log_freq",
    ),
    (
        _same("checkpoint.directory"),
        "output_dir out_dir save_dir default_root_dir run_dir checkpoint_dir work_dir outdir"
        " save_path ckpt_dir log_dir logging_dir output_path results_dir",
    ),
    (
        _words("write --resume auto, or --resume CKPT, on the command line"),
        "resume_from_checkpoint resume_from resume from_resume load_checkpoint auto_resume",
    ),
    (
        _words("write --init-from CKPT on the command line, or finetune.base for fine-tuning"),
        "init_from from_weight init_checkpoint load_from",
    ),
    (
        _nothing("metrics.csv is always written, and logging.tensorboard adds its files"),
        "report_to wandb wandb_project wandb_log use_wandb wandb_run_name wandb_entity run_name"
        " logger swanlab",
    ),
    (
        _nothing("intervals count steps: trainer.validate_every and checkpoint.save_every"),
        "eval_strategy evaluation_strategy save_strategy logging_strategy evals_per_epoch"
        " saves_per_epoch check_val_every_n_epoch always_save_checkpoint",
    ),
    (
        _nothing("the command and the configuration say what is done"),
        "do_train do_eval eval_only overwrite_output_dir overwrite_cache trust_remote_code"
        " push_to_hub remove_unused_columns ddp_timeout group_by_length num_sanity_val_steps"
        " per_device_eval_batch_size eval_batch_size shuffle backend use_moe",
    ),
    # text
    (
        _files("data.source"),
        "train_file train_files train_data data_path data_file data_files text_file dataset_path"
        " data_dir train_path train_bin corpus input_file",
    ),
    (_dataset("data.source"), "dataset dataset_name datasets train_dataset hf_dataset dataset_id"),
    (
        _files("data.validation"),
        "validation_file val_file valid_file eval_file val_data val_path test_file validation_data",
    ),
    (_dataset("data.validation"), "eval_dataset val_dataset"),
    (_same("data.source.config"), "dataset_config_name dataset_config subset config_name"),
    (_dataset_split, "split train_split"),
    (
        _same("data.source.text_key"),
        "dataset_text_field text_column text_field text_column_name content_key text_col",
    ),
    (
        _held_out,
        "val_set_size val_size validation_split_percentage test_size val_split eval_split"
        " val_split_fraction valid_fraction validation_split val_ratio",
    ),
    (_same("data.source.filter.max_documents"), "max_samples max_train_samples num_samples"),
    (
        _same("tokenizer.name"),
        "tokenizer_name tokenizer_path tokenizer_name_or_path tokenizer_type tokenizer_file",
    ),
    (_switch("data.rows", "packed", "document"), "packing sample_packing pack pack_sequences"),
    # fine-tuning
    (
        _same("finetune.base"),
        "base_model model_name_or_path pretrained pretrained_model pretrained_model_name_or_path"
        " base_checkpoint",
    ),
    (_adapter("finetune.lora.rank"), "lora_r lora_rank lora_dim r"),
    (_adapter("finetune.lora.alpha"), "lora_alpha"),
    (_adapter("finetune.lora.dropout"), "lora_dropout"),
    (_adapter("finetune.lora.targets"), "lora_target_modules lora_target target_modules"),
    (
        _choice("finetune.method", {"lora": ("lora",), "qlora": ("qlora",), "full": ("full",)}),
        "adapter finetuning_type peft_type",
    ),
    (_switch("finetune.method", "lora", "full"), "use_lora use_peft"),
    (_switch("finetune.method", "qlora", "lora"), "load_in_4bit use_qlora"),
    (_preference, "beta pref_beta dpo_alpha"),
    (_choice("finetune.objective", {"sft": ("sft",), "dpo": ("dpo", "sigmoid")}), "stage rl"),
    (
        _switch("data.source.mask_prompt", False, True),
        "train_on_inputs train_on_prompt train_on_source",
    ),
    (
        _same("data.source.mask_prompt"),
        "completion_only_loss assistant_only_loss train_on_responses_only",
    ),
    (_same("data.source.template"), "chat_template prompt_template"),
    (_same("data.source.system"), "system_prompt default_system"),
]
OTHER_NAMES: dict[str, Translate] = {
    name: translate for translate, names in ROWS for name in names.split()
}
