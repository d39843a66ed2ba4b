//! What the tests share: commands, scratch folders, and one finished run of the tiny pipeline.

use std::error::Error;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// The result of a test.
pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The stages that train, in order.
pub const TRAINED: [&str; 4] = ["pretrain", "sft", "reward", "ppo"];

/// The root of the repository.
pub fn repository() -> PathBuf {
    let pipeline = Path::new(env!("CARGO_MANIFEST_DIR"));
    pipeline.parent().unwrap_or(pipeline).to_path_buf()
}

/// The tests' pipeline.
pub fn tiny() -> PathBuf {
    repository().join("experiments/tiny/pipeline.toml")
}

/// A number in a stage of the tests' pipeline.
pub fn tiny_number(stage: &str, key: &str) -> Outcome<usize> {
    let table: toml::Table = fs::read_to_string(tiny())?.parse()?;
    let number = table["stages"][stage][key].as_integer();
    Ok(usize::try_from(
        number.ok_or(format!("{stage}.{key} is no number"))?,
    )?)
}

/// A folder of a test's own, on the disk of the build.
pub fn scratch() -> Outcome<TempDir> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(root)?;
    Ok(tempfile::tempdir_in(root)?)
}

/// `rlhf`, in the root of the repository. One thread: the models are small, and tests that run side
/// by side with threads that wait for each other take ten times as long.
pub fn rlhf() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rlhf"));
    command.env("OMP_NUM_THREADS", "1");
    command.current_dir(repository()).stdin(Stdio::null());
    command
}

/// `rlhf run CONFIG --run-dir DIR`, on the CPU: bits are compared.
pub fn rlhf_run(config: &Path, run_dir: &Path) -> Command {
    let mut command = rlhf();
    command
        .arg("run")
        .arg(config)
        .arg("--run-dir")
        .arg(run_dir)
        .args(["--device", "cpu"]);
    command
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    /// What killed it.
    pub signal: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs a command to its end.
pub fn say(command: &mut Command) -> Outcome<Said> {
    let output = command.output()?;
    Ok(Said {
        code: output.status.code(),
        signal: output.status.signal(),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

impl Said {
    /// Checks the exit code.
    #[track_caller]
    pub fn ended(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "signal: {:?}\nout: {}\nerr: {}",
            self.signal,
            self.out,
            self.err
        );
        self
    }

    /// Checks that standard error names all of this.
    #[track_caller]
    pub fn names(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.err.contains(word), "`{word}` is not in:\n{}", self.err);
        }
        self
    }
}

/// The run folder of a whole uninterrupted run of the tiny pipeline, with all its snapshots. Nobody
/// changes it.
pub fn finished_run() -> &'static Path {
    static RUN: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match RUN.get_or_init(|| make_finished_run().map_err(|error| error.to_string())) {
        Ok(root) => root,
        Err(error) => panic!("the tiny pipeline does not run: {error}"),
    }
}

fn make_finished_run() -> Outcome<PathBuf> {
    let worker = Path::new(env!("CARGO_BIN_EXE_rlhf")).with_file_name("rlhf-worker");
    if !worker.exists() {
        return Err(format!("{} is missing: `make build` makes it", worker.display()).into());
    }
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("finished-run");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let mut command = rlhf_run(&tiny(), &root);
    for stage in TRAINED {
        command.arg("--set").arg(format!("stages.{stage}.keep=99"));
    }
    let said = say(&mut command)?;
    if said.code == Some(0) {
        Ok(root)
    } else {
        Err(said.err.into())
    }
}

/// `rlhf` with the programs of a folder before all else; where there is no such folder, nothing is found at all.
pub fn rlhf_beside(bin: &Path) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = if bin.exists() {
        format!("{}:{path}", bin.display())
    } else {
        bin.display().to_string()
    };
    let mut command = rlhf();
    command.env("PATH", path);
    command
}

/// A copy of the finished run, to be changed.
pub fn copy_of_finished_run(folder: &Path) -> Outcome<PathBuf> {
    let copy = folder.join("run");
    copy_tree(finished_run(), &copy)?;
    Ok(copy)
}

/// Copies a folder with all that is in it.
pub fn copy_tree(from: &Path, to: &Path) -> Outcome {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Every file below a folder, relative to it, sorted.
pub fn files_below(root: &Path) -> Outcome<Vec<PathBuf>> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) -> Outcome {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                walk(root, &entry.path(), found)?;
            } else {
                found.push(entry.path().strip_prefix(root)?.to_path_buf());
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(root, root, &mut found)?;
    found.sort();
    Ok(found)
}

/// Checks that nothing was trained in a run folder (which need not exist): no metrics, no snapshot.
#[track_caller]
pub fn assert_nothing_trained(run_dir: &Path) {
    let files = if run_dir.exists() {
        files_below(run_dir)
    } else {
        Ok(Vec::new())
    };
    let trained = |file: &&PathBuf| {
        file.ends_with("metrics.jsonl")
            || file
                .iter()
                .any(|part| part.to_string_lossy().starts_with("step-"))
            || TRAINED
                .iter()
                .any(|stage| file.starts_with(format!("{stage}/final")))
    };
    let files = files.expect("a readable run folder");
    let found: Vec<&PathBuf> = files.iter().filter(trained).collect();
    assert!(found.is_empty(), "something was trained: {found:?}");
}
