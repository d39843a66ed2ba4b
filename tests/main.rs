//! Tests across crates: what the two programs do together, as a user sees it.
//!
//! They run `rlhf` as a process, which starts the `rlhf-worker` beside it: `make test` builds both.
//! One uninterrupted run of `experiments/tiny` is shared by all tests that need a finished pipeline.
//!
//! Reading order: `support`, then any of the others.

mod bad_data;
mod bad_input;
mod cli;
mod cluster;
mod damage;
mod documents;
mod evaluation;
mod gpu_check;
mod hub;
mod hub_faults;
mod hub_models;
mod hub_server;
mod kubectl;
mod kubernetes;
mod long_context;
mod lora;
mod model_files;
mod objectives;
mod one_trunk;
mod own_tokenizer;
mod plain;
mod pods;
mod process;
mod quantized;
mod rank_faults;
mod ranks;
mod resume;
mod rollouts;
mod rules;
mod slurm;
mod stand_ins;
mod submit;
mod support;
