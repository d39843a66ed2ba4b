//! Pipelines as jobs of a cluster: one for each stage, in an order that the cluster keeps by itself.
//!
//! **In:** checked plans, of one run or of one for each seed. **Out:** scripts in the run folder, jobs in the queue, a
//! record of what was submitted, and a table of how far it is. Nothing of this process is needed once it has ended.
//!
//! Reading order: [`runs`] (what is submitted, and its checks), [`decide`] (which stages get a job), [`jobs`] (what each
//! waits for), [`script`] and [`slurm`] (Slurm's own), [`submission`] (in which order), [`record`] (what was submitted)
//! and [`view`] (how far it is). Kubernetes' own: [`names`] and [`manifests`] (what is applied), [`kubectl`] (what it is told and says) and
//! [`kubernetes`] (in which order).

pub mod decide;
pub mod jobs;
pub mod kubectl;
pub mod kubernetes;
pub mod manifests;
pub mod names;
pub mod record;
pub mod runs;
pub mod script;
pub mod slurm;
pub mod submission;
pub mod view;

/// The job before all stages: whether a node sees the run folder, and has what stages need. Its name is no stage's.
pub const CHECK: &str = "cluster";
