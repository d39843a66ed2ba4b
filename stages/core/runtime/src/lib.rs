//! What every program of the pipeline stands on: files that are whole or absent, hashes and
//! manifests, the layout of a run folder, metrics, counter-based randomness, interruption, the
//! worker's event stream and logging.
//!
//! **In:** paths, bytes, numbers. **Out:** files that survive a `kill -9` at any moment, and
//! errors that name the path and say what to do.
//!
//! **Architecture invariant:** this crate knows no tensor, no model, no dataset and no
//! configuration. It depends on no other crate of the workspace.
//!
//! **Reading order:** [`files`] (how anything is written) and
//! [`leftovers`] (what a kill leaves), [`hash`] and [`manifest`] (how it is
//! trusted), [`run_folder`] and [`run_lock`] (where it lies, who uses it), [`metrics`] and [`events`] (how a run is seen),
//! [`seeds`] (where randomness comes from), [`ranks`] (which of several processes this is), [`statistics`], [`interrupt`] and [`logging`].

pub mod events;
pub mod files;
pub mod hash;
pub mod interrupt;
pub mod leftovers;
pub mod logging;
pub mod manifest;
mod metric_names;
pub mod metrics;
pub mod ranks;
pub mod run_folder;
pub mod run_lock;
pub mod seeds;
pub mod statistics;

pub use events::Event;
pub use files::{FileError, WholeFolder};
pub use manifest::{Manifest, ManifestError};
pub use metrics::{MetricRow, Metrics, MetricsWriter};
pub use run_folder::{RunFolder, StageFolder};
pub use run_lock::{RunFolderError, RunLock};
