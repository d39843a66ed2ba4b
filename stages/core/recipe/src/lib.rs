//! What will be done: a pipeline's configuration, resolved into a plan.
//!
//! In goes a `pipeline.toml` with overrides; out comes a [`plan::Plan`] in which every number is
//! resolved, or a [`ConfigError`] that names each mistake with file, line, value, bound and remedy.
//! What finds models on the hub comes from outside ([`hub`]).
//! Where the file is silent, a preset of a published system speaks ([`presets`]), and after it our
//! own defaults ([`defaults`]); both carry their sources. [`numbers`] says what a stage will cost.
//!
//! **Architecture invariant.** This crate knows no tensors, no device and nothing of what a run folder
//! holds (only where it lies): it reads a configuration and the headers of what that names, and
//! computes nothing that depends on the machine. Nothing else in the workspace interprets a configuration.
//!
//! Reading order: [`plan`] and [`shape`] (the result), `load` (the way there), `tree` (values that
//! remember their origin), `schema` (which keys there are), `reader` (typed access), `references`
//! and `order` (the graph), `training`, `model_table`, `objective`, `lengthen`, `pretraining`, `data_stages` and `ppo` (one
//! reader per kind), `jobs` (of a cluster), [`lora`], [`presets`], [`families`] and [`tensors`] (what models are made of), [`arithmetic`], [`memory`] and
//! [`shares`] (what a rank has in memory), [`cluster`] (what a cluster would take).

pub mod arithmetic;
mod artefacts;
mod check;
pub mod cluster;
mod data_stages;
pub mod defaults;
mod error;
pub mod families;
mod graph;
pub mod hub;
mod job_plan;
mod jobs;
mod lengthen;
mod load;
pub mod lora;
pub mod memory;
mod model_table;
mod nearest;
pub mod numbers;
mod objective;
mod order;
pub mod plan;
mod plan_sampled;
mod plan_supervised;
mod ppo;
mod ppo_memory;
mod ppo_numbers;
pub mod presets;
mod pretraining;
mod reader;
mod references;
pub mod request;
mod request_gpu;
mod request_retrieval;
mod schema;
pub mod shape;
pub mod shares;
pub mod sizes;
mod supervised_numbers;
pub mod tensors;
mod training;
mod tree;

#[cfg(test)]
mod tests;

pub use error::{ConfigError, PlanError, Problem, ShapeError};
pub use load::load;
pub use numbers::{peak_bytes, stage_numbers};
pub use objective::trained_objective;
