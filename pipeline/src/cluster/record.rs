//! `cluster/slurm.json`: what was submitted from a run folder.

use std::path::{Path, PathBuf};

use runtime::RunFolder;
use runtime::files::{FileError, read_json, write_json};
use serde::{Deserialize, Serialize};

/// The version of the record.
const VERSION: u32 = 1;

/// The jobs of a run folder, the last of each stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The version of this record.
    pub version: u32,
    /// The cluster, where there are several.
    pub cluster: Option<String>,
    /// The seeds, each of which has a folder `seed-N`; none where the run folder is the only one.
    pub seeds: Vec<u64>,
    /// The jobs in the order in which they were submitted.
    pub jobs: Vec<Job>,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its stage, or [`super::CHECK`].
    pub stage: String,
    /// Of which run.
    pub seed: Option<u64>,
    /// Its number; of an array, with its place: `12_3`.
    pub id: String,
    /// The stages that it waits for.
    pub after: Vec<String>,
    /// The script, an absolute path.
    pub script: PathBuf,
    /// What it says, an absolute path.
    pub log: PathBuf,
    /// Seconds since the epoch.
    pub submitted: u64,
}

impl Default for Submission {
    fn default() -> Self {
        Self {
            version: VERSION,
            cluster: None,
            seeds: Vec::new(),
            jobs: Vec::new(),
        }
    }
}

impl Submission {
    fn path(root: &Path) -> PathBuf {
        RunFolder::at(root).cluster_dir().join("slurm.json")
    }

    /// What was submitted from a run folder, if anything was.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub fn read(root: &Path) -> Result<Option<Self>, FileError> {
        let path = Self::path(root);
        path.exists().then(|| read_json(&path)).transpose()
    }

    /// Writes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, root: &Path) -> Result<(), FileError> {
        write_json(&Self::path(root), self)
    }

    /// The job of a stage.
    pub fn job(&self, stage: &str, seed: Option<u64>) -> Option<&Job> {
        self.jobs
            .iter()
            .find(|job| job.stage == stage && job.seed == seed)
    }

    /// Takes a job in place of the stage's last one.
    pub fn put(&mut self, job: Job) {
        self.jobs
            .retain(|other| (&other.stage, other.seed) != (&job.stage, job.seed));
        self.jobs.push(job);
    }

    /// The numbers of all jobs.
    pub fn ids(&self) -> Vec<&str> {
        self.jobs.iter().map(|job| job.id.as_str()).collect()
    }
}

impl Job {
    /// The number of the array, or of the job where it is alone.
    pub fn array(&self) -> &str {
        self.id.split('_').next().unwrap_or_default()
    }
}

/// The folder of one seed's run.
pub fn seed_folder(root: &Path, seed: Option<u64>) -> PathBuf {
    seed.map_or_else(|| root.to_owned(), |seed| root.join(format!("seed-{seed}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_has_one_job_its_last() -> Result<(), FileError> {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(Submission::read(dir.path())?, None);
        let job = |id: &str, seed| Job {
            stage: "sft".to_owned(),
            seed,
            id: id.to_owned(),
            after: vec!["pretrain".to_owned()],
            script: "/run/cluster/sft.sbatch".into(),
            log: "/run/logs/sft.log".into(),
            submitted: 7,
        };
        let mut submission = Submission::default();
        for (id, seed) in [("1_1", Some(1)), ("1_2", Some(2)), ("5_2", Some(2))] {
            submission.put(job(id, seed));
        }
        submission.write(dir.path())?;
        let found = Submission::read(dir.path())?.expect("written");
        assert_eq!(found, submission);
        assert_eq!(found.ids(), ["1_1", "5_2"]);
        assert_eq!(found.job("sft", Some(2)).map(Job::array), Some("5"));
        assert_eq!(found.job("sft", None), None);
        Ok(())
    }
}
