//! What can go wrong between the processes of a job.

use torch_ext::TorchError;

/// Why ranks do not find each other, or lose each other.
#[derive(Debug, thiserror::Error)]
pub enum RankError {
    /// The other processes of the job cannot be reached.
    #[error(
        "rank {rank} of {size}: cannot meet the others at {host}:{port} within {seconds} s: {source}\n  hint: is rank 0 \
         running on {host}, and its port free and open to this machine? (MASTER_ADDR, MASTER_PORT)"
    )]
    Join {
        /// This rank.
        rank: usize,
        /// Ranks of the job.
        size: usize,
        /// Where rank 0 should be.
        host: String,
        /// Where it should listen.
        port: u16,
        /// How long this rank has waited.
        seconds: u64,
        /// libtorch's words.
        source: TorchError,
    },
    /// Another process did not come.
    #[error(
        "rank {rank}: rank {other} did not come within {seconds} s: {source}\n  hint: look at that rank's log"
    )]
    Absent {
        /// This rank.
        rank: usize,
        /// The one that is missing.
        other: usize,
        /// How long this rank has waited.
        seconds: u64,
        /// libtorch's words.
        source: TorchError,
    },
    /// Another process runs another program, or another configuration.
    #[error(
        "rank {rank} runs {identity}, and rank {other} runs {found}\n  hint: start all ranks from the same program and \
         configuration"
    )]
    Identity {
        /// This rank.
        rank: usize,
        /// What it runs.
        identity: String,
        /// The other rank.
        other: usize,
        /// What that one runs.
        found: String,
    },
    /// Communication with the other processes failed.
    #[error("rank {rank} of {size} at {doing}: {message}{others}")]
    Communication {
        /// This rank.
        rank: usize,
        /// Ranks of the job.
        size: usize,
        /// What it was doing.
        doing: String,
        /// What failed.
        message: String,
        /// What is known of the others, a line each.
        others: String,
    },
}
