"""The names that other tools give to what a study file calls otherwise: of Transformers' Trainer, TRL, PEFT, Axolotl,
Lightning, vLLM, lm-evaluation-harness, and of papers.

Spelling apart: capitals, hyphens and underscores do not tell names apart (:func:`normalised`).
"""

from collections.abc import Mapping

_KEYS = {
    "training.learning_rate": "lr, learn_rate, peak_lr, max_lr, base_lr, initial_lr, init_lr, eta, step_size",
    "training.batch_size": "bs, batch, per_device_train_batch_size, per_gpu_train_batch_size, train_batch_size, "
    "micro_batch_size, global_batch_size, effective_batch_size, mini_batch_size, minibatch_size, "
    "per_gpu_batch_size, per_device_batch_size",
    "training.epochs": "num_train_epochs, num_epochs, n_epochs, max_epochs, train_epochs, nb_epochs, epoch",
    "training.block_size": "max_length, max_seq_length, max_seq_len, seq_length, seq_len, sequence_length, "
    "sequence_len, context_length, ctx_len, n_ctx, cutoff_len, chunk_size, block_length, model_max_length",
    "training.optimizer": "optim, optimiser, opt, optimizer_name, optim_type, optimizer_type",
    "training.schedule": "lr_scheduler_type, lr_scheduler, scheduler, lr_schedule, lr_decay_style, scheduler_type, "
    "learning_rate_scheduler",
    "training.warmup_ratio": "warmup, warmup_fraction, warmup_proportion, warmup_percentage",
    "training.weight_decay": "wd, l2, decay, weight_decay_rate",
    "training.max_grad_norm": "gradient_clip_val, grad_clip, clip_grad, gradient_clipping, clip_grad_norm, "
    "max_norm, grad_norm_clip, clip_norm, gradient_clip, grad_clip_norm",
    "training.precision": "fp16, bf16, mixed_precision, half, tf32, amp, autocast, fp32, dtype, torch_dtype",
    "training.init": "initialisation, initialization, init_from, start_from, from_scratch, reinit",
    "training.gradient_accumulation": "gradient_accumulation_steps, grad_accum, grad_accumulation, "
    "accumulate_grad_batches, grad_accum_steps, accumulation_steps",
    "training.gradient_checkpointing": "activation_checkpointing, use_gradient_checkpointing, grad_checkpointing, "
    "recompute, checkpoint_activations",
    "training.parallel": "strategy, fsdp, ddp, distributed, parallelism, sharding",
    "training.document_mask": "packing, sample_packing, document_masking, intra_document_masking",
    "training.lora": "peft, use_lora, use_peft, adapter, peft_config, lora_config, qlora",
    "training.lora.rank": "r, lora_r, lora_rank, peft_r, rank_r",
    "training.lora.alpha": "lora_alpha, peft_alpha, adapter_alpha",
    "training.lora.dropout": "lora_dropout, peft_dropout",
    "training.lora.targets": "target_modules, lora_target_modules, lora_targets, modules, target_layers",
    "decoding.temperature": "temp, sampling_temperature, t, tau",
    "decoding.max_new_tokens": "max_tokens, max_gen_toks, max_gen_len, max_generated_tokens, gen_length, "
    "generation_length, num_tokens, n_tokens, new_tokens, max_output_tokens, max_completion_tokens, "
    "gen_len",
    "decoding.min_new_tokens": "min_tokens, min_length, min_gen_len, min_output_tokens",
    "decoding.context_tokens": "prompt_length, prompt_len, prompt_tokens, context_len, prefix_length, "
    "max_prompt_length, max_prompt_len",
    "decoding.top_p": "nucleus, p, typical_p, nucleus_p",
    "decoding.top_k": "k, topk_tokens",
    "decoding.repetition_penalty": "rep_penalty, penalty, repeat_penalty, frequency_penalty, presence_penalty",
    "decoding.num_beams": "beams, n_beams, beam_size, beam_width, use_beam_search, num_beam",
    "decoding.ignore_eos": "skip_eos, stop_at_eos",
    "evaluation.batch_size": "per_device_eval_batch_size, eval_batch_size, per_gpu_eval_batch_size, test_batch_size",
    "evaluation.benchmarks": "tasks, eval_tasks, benchmark, lm_eval, lm_eval_tasks",
    "evaluation.benchmarks.path": "include_path",
    "evaluation.benchmarks.num_fewshot": "fewshot, n_shot, n_shots, num_shots, shots, fewshot_examples",
    "evaluation.sample_texts": "num_samples, n_samples, sample, text_samples",
    "engine.kind": "backend, inference_engine, engine_kind, generator, use_vllm, vllm",
    "engine.max_num_seqs": "max_batch_size, max_num_sequences, max_concurrency, max_num_batched_tokens",
    "engine.max_model_len": "max_context_len, max_context_length",
    "engine.kv_cache_bytes": "kv_cache_memory_bytes, kv_cache_size, gpu_memory_utilization, kv_cache",
    "engine.prefix_caching": "enable_prefix_caching, prefix_cache",
    "family.model": "model, network, base_model, architecture",
    "family.model.hub": "model_name_or_path, pretrained_model_name_or_path, model_name, model_id, hf_model, repo_id, "
    "base_model_name_or_path, hub_model_id, pretrained",
    "family.model.path": "model_path, checkpoint, checkpoint_path, ckpt, ckpt_path, model_dir, resume_from_checkpoint, "
    "pretrained_model, local_path",
    "family.model.vocab_size": "vocabulary_size, n_vocab, vocab, tokenizer_vocab_size",
    "family.model.hidden_size": "width, n_embd, d_model, embed_dim, hidden_dim, dim, embedding_size",
    "family.model.layers": "num_hidden_layers, n_layer, n_layers, num_layers, depth",
    "family.dim": "dimension, dimensions, d, n_dim, ndim, dims",
    "family.components": "n_components, num_components, k_components, mixtures",
    "family.bandwidth": "bw, h, bw_method",
    "family.std": "sigma, scale, stdev, standard_deviation, σ",
    "family.mean": "mu, loc, μ",
    "corpus": "data, dataset_config, text, train_data, training_data",
    "corpus.dataset": "dataset_name, dataset_name_or_path, hf_dataset, dataset_id, datasets, dataset_path",
    "corpus.name": "dataset_config_name, config_name, subset, subset_name, dataset_subset",
    "corpus.path": "train_file, data_path, data_files, text_file, file, data_dir, train_path, training_file, "
    "corpus_path",
    "corpus.split": "dataset_split, train_split",
    "corpus.text_column": "text_field, dataset_text_field, column, text_key, content_column, text_column_name, field",
    "corpus.held_out": "test_size, validation_split, eval_split, val_size, holdout, validation_split_percentage, "
    "test_split, val_set_size, heldout",
    "corpus.train_tokens": "max_train_tokens, max_train_samples, n_train, train_size, num_train_tokens, total_tokens, "
    "token_budget",
    "samples_per_generation": "n, n_samples, num_samples, sample_size, samples",
    "regime.synthetic_ratio": "ratio, synthetic_fraction, synthetic_share, p_synthetic, synth_ratio, mix_ratio, "
    "lambda, mixing_ratio, alpha_synthetic, synthetic_proportion",
    "regime": "workflow, data_workflow, mixing, mix, data_regime",
    "regime.kind": "regime_kind, regime_type",
    "loss": "objective, criterion, loss_fn, loss_function, loss_name, loss_type",
    "loss.gamma": "γ, clip_gamma, clipped_gamma, tce_gamma, focal_gamma, tce_threshold, g",
    "loss.alpha": "α, focal_alpha",
    "loss.kind": "loss_kind",
    "generations": "n_generations, num_generations, generation, max_generations, iterations, n_iterations, "
    "num_iterations, stages, n_stages, rounds, steps_of_recursion, n_gens, gens, n_iter",
    "seed": "random_seed, random_state, rng_seed, manual_seed, torch_seed, data_seed",
    "vary": "grid, sweep, hyperparameters, parameters, matrix, param_grid, search_space, params, sweep_parameters",
    "vary.seed": "seeds, n_seeds, num_seeds, repeats, n_repeats, replicates, num_repeats",
    "collapse": "collapse_criterion, criteria, stop_criterion, collapse_criteria, collapse_threshold",
    "name": "study, study_name, experiment, experiment_name, run_name, title, project, wandb_project",
    "baseline": "base, reference, control, baseline_loss",
    "early_stopping": "early_stop, stop_early, early_stopping_patience",
    "claims": "claim, expect, assertions, tests, expectations",
    "resources.num_cpus": "cpus, n_cpus, num_workers_cpu, cpu, ncpu, num_cpu, n_jobs, cpu_count",
    "resources.chains_at_once": "max_concurrent_trials, concurrency, parallel_chains, max_concurrent, max_parallel",
    "resources.train.workers": "num_workers, n_workers, world_size, nproc_per_node, num_processes, devices, num_nodes",
    "resources.train.gpus_per_worker": "num_gpus, gpus, n_gpus, use_gpu, gpu, gpus_per_trial, ngpu, device, "
    "accelerator, cuda",
    "resources.engines.gpus": "tensor_parallel_size, tensor_parallel, tp, tp_size, gpus_per_engine, num_gpus, gpus",
    "resources.engines.count": "num_engines, n_engines, data_parallel_size, engines_count",
    "claims.statistic.at": "generation, at_generation",
    "collapse.metric": "measure, metric_name, monitor",
    "collapse.threshold": "limit, cutoff, cut_off, factor, thresh",
    "collapse.direction": "mode, greater_is_better",
    "collapse.confirm": "patience, confirmations",
}

REMARKS = {
    "warmup_steps": "training.warmup_ratio is the share of the steps that warm up",
    "num_warmup_steps": "training.warmup_ratio is the share of the steps that warm up",
    "max_steps": "training.epochs says how long a generation trains, corpus.train_tokens on how much",
    "num_steps": "training.epochs says how long a generation trains, corpus.train_tokens on how much",
    "logging_steps": "every generation is logged: leave it out",
    "save_steps": "every generation is stored: leave it out",
    "eval_steps": "every generation is evaluated: leave it out",
    "output_dir": "the folder of results is given on the command line: --storage FOLDER",
    "storage": "the folder of results is given on the command line: --storage FOLDER",
    "out_dir": "the folder of results is given on the command line: --storage FOLDER",
    "save_dir": "the folder of results is given on the command line: --storage FOLDER",
    "address": "a cluster is given on the command line: --address ADDRESS",
    "report_to": "runs go to MLflow by themselves (MLFLOW_TRACKING_URI names a server): leave it out",
    "bias": "biases are as the model has them, and an adapter adds none; that of a detector is curation.bias",
    "trust_remote_code": "code that comes with a model never runs: leave it out",
    "load_in_8bit": "quantised training is not served: leave it out",
    "load_in_4bit": "quantised training is not served: leave it out",
    "tokenizer": "a model's own tokenizer is used: leave it out",
    "tokenizer_name": "a model's own tokenizer is used: leave it out",
    "label_smoothing": "a loss of your own is named module:function under loss.kind",
    "label_smoothing_factor": "a loss of your own is named module:function under loss.kind",
    "adam_beta1": "Adam runs with PyTorch's own betas: leave it out",
    "adam_beta2": "Adam runs with PyTorch's own betas: leave it out",
    "adam_epsilon": "Adam runs with PyTorch's own epsilon: leave it out",
    "betas": "Adam runs with PyTorch's own betas: leave it out",
    "do_sample": "decoding.temperature: 0 is greedy, above 0 it samples",
    "greedy": "decoding.temperature: 0 is greedy",
    "stop": "rows have decoding.max_new_tokens tokens; decoding.ignore_eos: false ends them at the end-of-text token",
    "stop_sequences": "rows have decoding.max_new_tokens tokens; decoding.ignore_eos: false ends them at the "
    "end-of-text token",
}
"""What to say of names to which no key corresponds."""

_WORDS = {
    "cross_entropy": "ce, xent, nll, log_loss, cross_entropy_loss, softmax_cross_entropy, crossentropyloss",
    "tce": "truncated_cross_entropy, truncated_ce, truncated, clipped_ce, clipped_cross_entropy, forti_fai",
    "dynamic_tce": "dynamic_truncated_cross_entropy, dynamic, adaptive_tce",
    "focal": "focal_loss",
    "clipped_focal": "truncated_focal, clipped_focal_loss",
    "lovasz": "lovasz_softmax, lovasz_loss, lovász",
    "language": "llm, lm, causal_lm, causal_language_model, gpt, transformer, language_model, text",
    "gaussian": "normal, gauss, multivariate_normal, single_gaussian",
    "gmm": "gaussian_mixture, mixture, mixture_of_gaussians",
    "kde": "kernel_density, kernel_density_estimation, kernel_density_estimator, parzen",
    "discrete": "categorical, multinomial, zipf",
    "linear_regression": "regression, linear, ols, least_squares",
    "vae": "variational_autoencoder, autoencoder",
    "diffusion": "ddpm, ddim, denoising_diffusion",
    "replace": "fully_synthetic, discard, replacement, synthetic_only",
    "accumulate": "augment, accumulation, accumulating, cumulative",
    "accumulate_subsample": "subsample, augment_subsample, accumulate_fixed, subsampled",
    "mixed": "mix, mixture, mixing",
    "adamw": "adamw_torch, adamw_hf, adamw_torch_fused, adam_w",
    "huggingface": "hf, transformers, hugging_face",
}


def normalised(name: str) -> str:
    """A name as far as it tells keys apart: ``learningRate``, ``Learning-Rate`` and ``learning_rate`` are one."""
    return "".join(character for character in name.casefold() if character not in "-_ .")


def _inverse(table: Mapping[str, str]) -> dict[str, list[str]]:
    inverse: dict[str, list[str]] = {}
    for ours, theirs in table.items():
        for name in theirs.split(","):
            inverse.setdefault(normalised(name.strip()), []).append(ours)
    return inverse


KEYS = _inverse(_KEYS)
"""Dotted keys of a study file, by the normalised names that others give them; which of them a study has, its family
decides."""

WORDS = _inverse(_WORDS)
"""Kinds and other values, by the normalised names that others give them."""

REMARKS_BY_NAME = {normalised(name): remark for name, remark in REMARKS.items()}
