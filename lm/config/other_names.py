"""Keys of other programs that train language models, with what to write for them here.

The names are those of nanoGPT, nanochat, litgpt, minimind, torchtune, Hugging Face
(TrainingArguments, TRL, PEFT, model configurations), Axolotl, LLaMA-Factory and Lightning. Each
table has a line for each way to write, with all names that are written so. A new name is one word.
"""

from __future__ import annotations

from lm.config import translations as to
from lm.config.translations import Translate

# Key here -> names of the same key, with the same values.
SAME = {
    "trainer.max_steps": " ".join(to.STEPS),
    "trainer.max_tokens": "train_tokens total_tokens num_tokens",
    "trainer.max_epochs": "epochs epoch num_epochs num_train_epochs n_epochs max_epoch"
    " train_epochs",
    "trainer.max_minutes": "max_time time_limit max_train_minutes",
    "trainer.batch_size": "global_batch_size train_batch_size effective_batch_size bs",
    "trainer.devices": "num_gpus gpus n_gpu nproc_per_node world_size num_processes",
    "trainer.num_nodes": "nnodes num_machines n_nodes",
    "trainer.seed": "random_seed data_seed manual_seed random_state seed_everything",
    "trainer.deterministic": "full_determinism use_deterministic_algorithms",
    "trainer.validate_every": "eval_steps eval_interval eval_every val_check_interval val_interval"
    " val_every eval_freq validation_interval val_steps validate_interval run_val_every_n_steps",
    "trainer.early_stopping": "early_stopping_patience patience",
    "optimizer.lr": " ".join(to.LEARNING_RATES),
    "optimizer.embedding_lr": "embedding_learning_rate embed_lr",
    "optimizer.head_lr": "unembedding_lr lm_head_lr",
    "optimizer.muon_lr": "matrix_lr",
    "optimizer.muon_momentum": "momentum",
    "optimizer.warmup_steps": "warmup_iters lr_warmup_steps num_warmup_steps lr_warmup_iters warmup"
    " warmup_updates",
    "optimizer.final_lr_fraction": "final_lr_frac min_lr_ratio min_lr_rate cosine_min_lr_ratio",
    "optimizer.decay_fraction": "warmdown_ratio cooldown_fraction decay_ratio",
    "optimizer.weight_decay": "wd",
    "optimizer.eps": "adam_epsilon adam_eps epsilon",
    "optimizer.grad_clip": "max_grad_norm gradient_clip_val clip_grad grad_norm_clip max_norm"
    " gradient_clipping clip_grad_norm grad_clip_norm clip",
    "optimizer.ema_decay": "ema",
    "model.n_layers": "n_layer num_layers num_hidden_layers n_blocks depth layers",
    "model.n_heads": "n_head num_heads num_attention_heads heads n_query_heads",
    "model.n_kv_heads": "n_kv_head num_key_value_heads num_kv_heads n_query_groups",
    "model.d_model": "n_embd hidden_size embed_dim emb_dim dim hidden_dim model_dim",
    "model.d_ff": "intermediate_size ffn_dim n_inner ff_dim mlp_dim ffn_hidden_size",
    "model.context_length": "max_position_embeddings n_positions n_ctx max_sequence_len"
    " max_sequence_length",
    "model.vocab_size": "padded_vocab_size n_vocab",
    "model.dropout": "resid_pdrop embd_pdrop attn_pdrop attention_dropout resid_dropout"
    " hidden_dropout drop_rate hidden_dropout_prob attn_dropout",
    "model.norm_eps": "rms_norm_eps layer_norm_epsilon layer_norm_eps norm_epsilon",
    "model.qk_norm": "use_qk_norm qk_layernorm qk_layer_norm",
    "model.bias": "attention_bias mlp_bias qkv_bias use_bias add_bias_linear",
    "model.tie_embeddings": "tie_word_embeddings weight_tying tied_embeddings",
    "model.init_std": "initializer_range",
    "model.rope_theta": "rope_base rotary_base rope_freq_base",
    "model.gradient_checkpointing": "activation_checkpointing use_gradient_checkpointing"
    " enable_activation_checkpointing",
    "checkpoint.save_every": "save_steps save_interval save_freq checkpoint_interval ckpt_interval"
    " checkpoint_every every_n_train_steps save_iters",
    "checkpoint.keep": "save_total_limit keep_last_n max_checkpoints save_top_k"
    " keep_last_n_checkpoints",
    "checkpoint.directory": "output_dir out_dir save_dir default_root_dir run_dir checkpoint_dir"
    " work_dir outdir save_path ckpt_dir log_dir logging_dir output_path results_dir model_tag",
    "logging.every": "logging_steps log_interval log_every log_every_n_steps log_steps print_every"
    " log_freq",
    "logging.tensorboard": "use_tensorboard",
    "logging.sample_tokens": "max_new_tokens generation_max_length",
    "logging.sample_temperature": "temperature",
    "tokenizer.name": "tokenizer_name tokenizer_path tokenizer_name_or_path tokenizer_type"
    " tokenizer_file tokenizer_dir",
    "data.workers": "num_workers dataloader_num_workers preprocessing_num_workers n_workers"
    " dataset_num_proc dataset_processes num_proc",
    "data.cache_dir": "dataset_prepared_path tokenized_path preprocessed_path dataset_cache_dir",
    "data.document_mask": "neat_packing intra_doc_masking reset_position_ids",
    "data.source.config": "dataset_config_name dataset_config subset config_name",
    "data.source.text_key": "dataset_text_field text_column text_field text_column_name content_key"
    " text_col",
    "data.source.filter.max_documents": "max_samples max_train_samples num_samples",
    "data.source.mask_prompt": "completion_only_loss assistant_only_loss train_on_responses_only",
    "data.source.template": "chat_template prompt_template",
    "data.source.system": "system_prompt default_system default_system_message",
    "data.source.columns.messages": "field_messages messages_field",
    "data.source.columns.instruction": "field_instruction",
    "data.source.columns.output": "field_output",
    "data.source.columns.input": "field_input",
    "data.source.columns.system": "field_system",
    "data.source.columns.prompt": "prompt_column prompt_field",
    "data.source.columns.completion": "completion_column response_column",
    "finetune.base": "base_model model_name_or_path pretrained pretrained_model base_checkpoint"
    " pretrained_model_name_or_path initial_checkpoint_dir",
}

# Key here -> for each of its values, the values of other programs -> names of the key.
CHOICES: list[tuple[str, dict[str, str], str]] = [
    (
        "optimizer.schedule",
        {
            "cosine": "cosine cosine_with_min_lr cosine_with_restarts cosineannealinglr",
            "linear": "linear linear_with_warmup polynomial",
            "wsd": "wsd warmup_stable_decay trapezoidal",
            "constant": "constant constant_with_warmup none",
        },
        "lr_scheduler_type lr_scheduler scheduler lr_schedule lr_decay_style scheduler_type",
    ),
    (
        "optimizer.name",
        {
            "adamw": "adam adamw adamw_torch adamw_torch_fused adamw_hf adamw_8bit adamw_bnb_8bit",
            "muon": "muon",
        },
        "optim optimizer_type optim_type",
    ),
    (
        "model.mlp",
        {
            "gelu": "gelu_new gelu_pytorch_tanh gelu_tanh",
            "gelu_erf": "gelu gelu_python",
            "swiglu": "silu swish swiglu",
        },
        "hidden_act activation activation_function act_fn hidden_activation",
    ),
    (
        "model.norm",
        {"rmsnorm": "rmsnorm rms_norm", "layernorm": "layernorm layer_norm"},
        "norm_type norm_class_name normalization normalization_layer",
    ),
    (
        "model.positions",
        {"rope": "rope rotary", "learned": "learned absolute learned_absolute"},
        "position_embedding_type pos_embedding pos_emb position_embedding",
    ),
    (
        "trainer.precision",
        {
            "bf16": "bf16 bfloat16 bf16-mixed bf16-true torch.bfloat16",
            "fp16": "fp16 float16 half 16 16-mixed 16-true torch.float16",
            "fp32": "fp32 float32 float 32 32-true no torch.float32",
        },
        "dtype torch_dtype mixed_precision ptdtype compute_dtype",
    ),
    (
        "trainer.device",
        {"cuda": "gpu cuda", "cpu": "cpu", "mps": "mps"},
        "accelerator device_type device_map",
    ),
    (
        "finetune.method",
        {"lora": "lora", "qlora": "qlora", "full": "full"},
        "adapter finetuning_type peft_type",
    ),
    (
        "finetune.objective",
        {"sft": "sft nll", "dpo": "dpo sigmoid"},
        "stage rl loss_type pref_loss",
    ),
]

# Key here -> its values for true and for false -> names of the switch.
SWITCHES = [
    ("optimizer.name", "muon", "adamw", "use_muon"),
    ("optimizer.schedule", "cosine", "constant", "decay_lr"),
    ("trainer.precision", "bf16", "fp32", "bf16 use_bf16"),
    ("trainer.precision", "fp16", "fp32", "fp16 use_fp16 amp use_amp"),
    ("trainer.compile", "on", "off", "torch_compile use_compile compile_model compile"),
    ("trainer.device", "cpu", "auto", "use_cpu no_cuda"),
    ("trainer.strategy", "fsdp", "auto", "use_fsdp use_deepspeed"),
    ("data.rows", "packed", "document", "packing sample_packing pack pack_sequences packed"),
    ("finetune.method", "lora", "full", "use_lora use_peft"),
    ("finetune.method", "qlora", "lora", "load_in_4bit use_qlora"),
    (
        "data.source.mask_prompt",
        False,
        True,
        "train_on_inputs train_on_input train_on_prompt train_on_source",
    ),
]

# What a sentence says instead of a key.
WORDS = {
    "write --resume auto, or --resume CKPT, on the command line": "resume_from_checkpoint"
    " resume_from resume from_resume load_checkpoint auto_resume auto_resume_from_checkpoints",
    "write --init-from CKPT on the command line, or finetune.base for fine-tuning": "init_from"
    " from_weight init_checkpoint load_from",
    "write trainer.strategy: fsdp, which splits weights, gradients and optimiser state over all"
    " processes as ZeRO 3 does": "deepspeed deepspeed_config zero_stage ds_config",
    "write optimizer.lr: norms, biases and adapters have no rate of their own": "scalar_lr"
    " loraplus_lr_ratio",
    "write trainer.max_tokens: so many times the parameters that --plan says":
    "target_param_data_ratio tokens_per_parameter target_flops",
    "write trainer.max_steps": "limit_train_batches max_steps_per_epoch min_steps min_epochs",
    "write trainer.validation_rows: the tokens / the row's length": "eval_tokens val_tokens",
    "write data.sequence_length for prompt and answer together, and data.source.too_long for what"
    " is longer": "max_prompt_length max_completion_length max_target_length truncation_mode"
    " truncation reserved_label_len",
    "write model.d_ff, the width itself": "multiple_of ffn_dim_multiplier mlp_ratio ffn_mult",
    "write finetune.lora.targets: a list such as ['*.q_proj', '*.v_proj'] or ['layers.*']":
    "lora_attn_modules apply_lora_to_mlp apply_lora_to_output lora_target_linear lora_query"
    " lora_key lora_value lora_projection lora_mlp lora_head lora_target_layers",
    "write finetune.method: qlora, which holds the base in 4 bits": "load_in_8bit quantize"
    " quantization_bit quantization quantization_method quantization_config",
    "write trainer.on_nonfinite for what follows a NaN": "logging_nan_inf_filter skip_nan"
    " check_for_nan_in_loss_and_grad",
    "run tools.selfcheck, which learns one batch by heart": "fast_dev_run overfit_batches",
    "write it to infer.py on the command line": "top_p top_k do_sample num_beams"
    " repetition_penalty num_return_sequences predict_with_generate",
}  # fmt: skip

# Why nothing is written here.
REMOVE = {
    "the rate decays up to trainer.max_steps": "lr_decay_iters lr_decay_steps",
    "the keys of the section optimizer are all that it has": "lr_scheduler_kwargs optim_args"
    " lr_scheduler_args optim_target_modules use_galore use_badam use_apollo"
    " optimizer_in_bwd",
    "a head is model.d_model / model.n_heads wide": "head_dim head_size",
    "attention always uses torch's fused kernels, and trainer.compile fuses the rest":
    "flash_attention flash_attn use_flash_attention attn_implementation sdp_attention"
    " xformers_attention sdpa use_liger_kernel enable_liger_kernel liger_kernel_config use_unsloth"
    " torch_compile_backend torch_compile_mode fused_attention",
    "attention sees all earlier tokens of the row": "sliding_window window_pattern window_size"
    " attention_window use_sliding_window",
    "model.positions and model.rope_theta are all that positions have": "rope_scaling rope_type"
    " rotary_pct partial_rotary_factor rope_parameters rope_factor",
    "every token goes through the one MLP of a block": "use_moe num_experts n_experts n_expert"
    " num_local_experts num_experts_per_tok n_expert_per_token moe router_aux_loss_coef",
    "there is one kind of model, and the section model has its keys": "model_type architectures"
    " model_name model_config model_init_kwargs",
    "the keys of each section say what is built": "_component_ class_path init_args _target_"
    " callbacks plugins",
    "the tokenizer decides its special tokens": "pad_token eos_token bos_token unk_token"
    " special_tokens bos_token_id eos_token_id pad_token_id padding_side add_eos_token"
    " add_bos_token",
    "the answers of the model come from a cache without being asked": "use_cache use_kv_cache",
    "no noise is added to the embeddings; model.dropout and a smaller trainer.max_steps prevent"
    " overfitting": "neftune_noise_alpha noisy_embedding_alpha neftune_alpha",
    "the loss is the plain one of finetune.objective": "label_smoothing_factor label_smoothing"
    " loss loss_fn z_loss dpo_label_smoothing rpo_alpha pref_ftx loss_weights ld_alpha"
    " reference_free f_divergence_type use_weighting",
    "every answer of a conversation is learnt, with its end": "mask_history roles_to_train"
    " train_on_eos train_on_eot",
    "the base is the reference model": "ref_model ref_adapters precompute_ref_log_probs"
    " ref_model_path sync_ref_model ref_model_sync_steps ref_model_mixup_alpha",
    "data.rows: packed leaves no padding, whatever the lengths": "group_by_length"
    " pad_to_multiple_of length_column_name padding_free pad_to_sequence_len"
    " train_sampling_strategy packing_strategy eval_packing eval_sample_packing pad_to_max_length"
    " multipack",
    "trainer.seed decides the random order, and every row counts": "shuffle shuffle_dataset"
    " dataloader_drop_last drop_last ignore_data_skip use_distributed_sampler shuffle_seed",
    "data.workers is the loader's only setting": "dataloader_pin_memory pin_memory prefetch_factor"
    " dataloader_prefetch_factor dataloader_persistent_workers persistent_workers",
    "model.gradient_checkpointing is a switch without settings": "gradient_checkpointing_kwargs"
    " activation_checkpointing_kwargs activation_offloading enable_activation_offloading",
    "trainer.strategy: fsdp has no settings": "fsdp_config fsdp_version fsdp_cpu_offload"
    " cpu_offload fsdp_transformer_layer_cls_to_wrap fsdp_min_num_params fsdp_auto_wrap_policy"
    " accelerator_config parallelism_config fsdp_final_state_dict_type fsdp_sharding_strategy",
    "trainer.strategy: fsdp is the only way to split a model": "tensor_parallel_size"
    " tensor_parallel pipeline_parallel_size context_parallel_size sequence_parallel_degree"
    " tensor_parallel_dim",
    "the processes find each other without settings": "ddp_timeout backend ddp_backend local_rank"
    " ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph"
    " sync_batchnorm",
    "trainer.precision says in which numbers it computes": "tf32 allow_tf32"
    " float32_matmul_precision fp16_full_eval bf16_full_eval fp16_opt_level half_precision_backend",
    "best.ckpt is always the checkpoint with the lowest loss": "load_best_model_at_end"
    " metric_for_best_model greater_is_better early_stopping_threshold early_stopping_min_delta",
    "every checkpoint has safetensors and all that --resume needs": "save_safetensors save_last"
    " save_only_model save_weights_only enable_checkpointing save_on_each_node",
    "validation always runs at step 0 and at the end": "eval_on_start eval_delay final_validation"
    " initial_validation num_sanity_val_steps val_before_train",
    "a sample is written at each validation": "sample_every sample_interval",
    "metrics.csv is always written, and logging.tensorboard adds its files": "report_to wandb"
    " wandb_project wandb_log use_wandb wandb_run_name wandb_entity wandb_name wandb_watch"
    " wandb_log_model wandb_mode wandb_run_id run_name run project logger logger_name"
    " metric_logger swanlab use_swanlab swanlab_project use_mlflow mlflow_tracking_uri"
    " mlflow_experiment_name use_comet comet_project_name trackio_space_id plot_loss",
    "the log always has these figures": "disable_tqdm enable_progress_bar enable_model_summary"
    " log_level logging_first_step include_num_input_tokens_seen log_peak_memory_stats debug"
    " verbose include_tokens_per_second",
    "intervals count steps: trainer.validate_every and checkpoint.save_every": "eval_strategy"
    " evaluation_strategy save_strategy logging_strategy evals_per_epoch saves_per_epoch"
    " check_val_every_n_epoch always_save_checkpoint eval_epochs save_every_epoch",
    "adapters have a rank, alpha, dropout and targets (finetune.lora)": "use_dora use_rslora"
    " lora_bias init_lora_weights modules_to_save lora_modules_to_save fan_in_fan_out"
    " lora_fan_in_fan_out task_type layers_to_transform additional_target pissa_init lora_on_cpu"
    " peft_use_dora peft_use_rslora inference_mode",
    "qlora has no settings": "bnb_4bit_compute_dtype bnb_4bit_quant_type bnb_4bit_use_double_quant"
    " double_quantization",
    "the command and the configuration say what is done": "do_train do_eval do_predict eval_only"
    " overwrite_output_dir overwrite_cache remove_unused_columns trust_remote_code benchmark"
    " profiler per_device_eval_batch_size eval_batch_size eval_accumulation_steps detect_anomaly"
    " barebones prediction_loss_only auto_find_batch_size torch_empty_cache_steps"
    " low_cpu_mem_usage gradient_clip_algorithm average_tokens_across_devices",
    "nothing is uploaded": "push_to_hub hub_model_id hub_token hub_strategy hub_private_repo",
}  # fmt: skip

# What needs more than its value.
CONVERTED = [
    (to.micro_batch, " ".join(to.TRAINED_ROWS)),
    (to.accumulation, " ".join(to.ACCUMULATED)),
    (to.batch_in_tokens, "total_batch_size batch_size_tokens"),
    (to.warmup_ratio, "warmup_ratio warmup_fraction lr_warmup_fraction warmup_proportion"),
    (to.final_rate, "min_lr min_learning_rate lr_min end_lr cosine_min_lr"),
    (to.beta(0), "beta1 adam_beta1 beta_1"),
    (to.beta(1), "beta2 adam_beta2 beta_2"),
    (
        to.row_length,
        "max_length max_seq_length max_seq_len block_size seq_len seq_length sequence_len"
        " cutoff_len context_size ctx_len context_window max_context_length model_max_length",
    ),
    (to.sharding, "fsdp"),
    (
        to.validation_rows,
        "eval_iters eval_batches limit_val_batches val_batches max_val_batches",
    ),
    (
        to.files("data.source"),
        "train_file train_files train_data data_path data_file data_files text_file dataset_path"
        " data_dir dataset_dir train_path train_bin corpus input_file",
    ),
    (
        to.dataset("data.source"),
        "dataset dataset_name datasets train_dataset hf_dataset dataset_id",
    ),
    (
        to.files("data.validation"),
        "validation_file val_file valid_file eval_file val_data val_path test_file validation_data",
    ),
    (to.dataset("data.validation"), "eval_dataset val_dataset test_datasets"),
    (to.dataset_split, "split train_split"),
    (
        to.held_out,
        "val_set_size val_size validation_split_percentage test_size val_split eval_split"
        " val_split_fraction valid_fraction validation_split val_ratio",
    ),
    (to.adapter("finetune.lora.rank"), "lora_r lora_rank lora_dim r"),
    (to.adapter("finetune.lora.alpha"), "lora_alpha"),
    (to.adapter("finetune.lora.dropout"), "lora_dropout"),
    (to.adapter("finetune.lora.targets"), "lora_target_modules lora_target target_modules"),
    (to.preference, "beta pref_beta dpo_alpha"),
]

ROWS: list[tuple[Translate, str]] = [
    *((to.same(key), names) for key, names in SAME.items()),
    *((to.choice(key, choices), names) for key, choices, names in CHOICES),
    *((to.switch(key, on, off), names) for key, on, off, names in SWITCHES),
    *((to.words(text), names) for text, names in WORDS.items()),
    *((to.words(f"remove it: {reason}"), names) for reason, names in REMOVE.items()),
    *CONVERTED,
]
OTHER_NAMES: dict[str, Translate] = {
    name: translate for translate, names in ROWS for name in names.split()
}
