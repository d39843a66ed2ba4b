//! `rlhf doctor`: what is found on this machine, what is wrong, and the command that mends it.
//! Needs no libtorch itself.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::anyhow;
use clap::Args;
use recipe::request::ProbeReport;
use runtime::RunFolder;
use runtime::files::write_bytes;
use runtime::run_lock::host_name;

use super::{last_line, print};
use crate::failure::{Failure, Outcome};
use crate::libtorch::{self, Libtorch, LibtorchError, Places, WANTED};
use crate::worker::{self, Worker, WorkerError};

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    subject: &'static str,
    text: String,
    /// `None` if all is well; otherwise what to do.
    remedy: Option<String>,
}

impl Finding {
    fn good(subject: &'static str, text: impl Into<String>) -> Self {
        Self {
            subject,
            text: text.into(),
            remedy: None,
        }
    }

    fn bad(subject: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            subject,
            text: text.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// An error, whose hint is the remedy.
    fn error(subject: &'static str, error: &impl std::error::Error) -> Self {
        let text = error.to_string();
        match text.split_once("\n  hint: ") {
            Some((text, hint)) => Self::bad(subject, text, hint),
            None => Self::bad(subject, text, "see above"),
        }
    }
}

/// Say what libtorch and devices are found, and what is wrong otherwise
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  rlhf doctor
  rlhf doctor --gpus 8

Needs no libtorch itself. Exit code 1 if something is wrong. `rlhf submit` runs it on a node of the cluster first,
which then must see the run folder and its token.")]
pub struct DoctorArgs {
    /// GPUs that must be there.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub gpus: usize,
    /// A run folder that must be seen and written to.
    #[arg(long, value_name = "DIR", requires = "token")]
    pub run_dir: Option<PathBuf>,
    /// What `cluster/token` in it must say: the version of rlhf that submits, and more.
    #[arg(long, value_name = "TOKEN", requires = "run_dir")]
    pub token: Option<String>,
}

/// Prints the findings.
///
/// # Errors
/// Something is wrong; it is on standard output, with the remedy.
pub fn run(args: &DoctorArgs) -> Outcome {
    let mut findings = examine(args.gpus);
    if let (Some(run), Some(token)) = (&args.run_dir, &args.token) {
        findings.push(run_folder_finding(&RunFolder::at(run), token));
    }
    // A reader that has seen enough (`| head`) is no failure.
    let _ = print(report(&findings).trim_end());
    let wrong = findings
        .iter()
        .filter(|finding| finding.remedy.is_some())
        .count();
    match wrong {
        0 => Ok(()),
        1 => Err(Failure::Run(anyhow!("1 thing is wrong; see above"))),
        _ => Err(Failure::Run(anyhow!("{wrong} things are wrong; see above"))),
    }
}

fn examine(gpus: usize) -> Vec<Finding> {
    let mut findings = vec![platform()];
    let libtorch = libtorch::find(&Places::of_this_process());
    let program = worker::program();
    findings.push(libtorch_finding(&libtorch));
    findings.push(worker_finding(&program));
    if let (Ok(libtorch), Ok(_)) = (&libtorch, &program) {
        match probe(libtorch) {
            Ok(report) => {
                findings.extend(probe_findings(&report, libtorch));
                findings.extend(gpus_finding(report.gpus.len(), gpus));
            }
            Err(error) => findings.push(Finding::error("probe", &error)),
        }
    }
    findings
}

/// Whether as many GPUs are there as are wanted, if any are.
fn gpus_finding(found: usize, wanted: usize) -> Option<Finding> {
    if wanted == 0 {
        return None;
    }
    let text = format!("{found}, and {wanted} are wanted");
    Some(if found >= wanted {
        Finding::good("gpus", text)
    } else {
        let remedy =
            "ask for nodes that have them: gpus_per_node, partition, constraint in [cluster.slurm]";
        Finding::bad("gpus", text, remedy)
    })
}

/// Whether this machine sees the run folder as the one that submits does, with the same program.
fn run_folder_finding(run: &RunFolder, token: &str) -> Finding {
    let path = run.cluster_dir().join("token");
    let remedy = "name a --run-dir on a file system that all nodes share";
    let shown = run.root().display();
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == token => {}
        Ok(_) => return Finding::bad("run folder", format!("{shown} is another one here"), remedy),
        Err(error) => {
            let text = format!("cannot read {}: {error}", path.display());
            return Finding::bad("run folder", text, remedy);
        }
    }
    let here = env!("CARGO_PKG_VERSION");
    let there = token.split('-').next().unwrap_or_default();
    if there != here {
        let text = format!("this is rlhf {here}, and {there} submits");
        return Finding::bad("version", text, "the same program on all machines");
    }
    let trial = run.cluster_dir().join(format!("trial-{}", host_name()));
    let written = write_bytes(&trial, token.as_bytes());
    match written.map(|()| fs::remove_file(&trial)) {
        Ok(Ok(())) => Finding::good("run folder", format!("{shown} is seen and written to")),
        Ok(Err(error)) => Finding::bad("run folder", error.to_string(), remedy),
        Err(error) => Finding::error("run folder", &error),
    }
}

fn platform() -> Finding {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let gpu = if Path::new("/proc/driver/nvidia/version").exists() {
        "an NVIDIA driver"
    } else {
        "no NVIDIA driver"
    };
    let memory = memory_gib()
        .map(|gib| format!(", {gib:.1} GiB of memory"))
        .unwrap_or_default();
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let text = format!("{os} {arch}, {threads} cores{memory}, {gpu}");
    if os == "linux" && arch == "x86_64" {
        Finding::good("platform", text)
    } else {
        Finding::bad(
            "platform",
            text,
            "built and tested on linux x86_64 only; use such a machine",
        )
    }
}

fn memory_gib() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib / 1024.0 / 1024.0)
}

fn libtorch_finding(libtorch: &Result<Libtorch, LibtorchError>) -> Finding {
    match libtorch {
        Ok(Libtorch {
            lib_dir,
            version,
            found_by,
        }) => {
            let place = lib_dir.display();
            Finding::good(
                "libtorch",
                format!("{version} in {place} (found by {found_by})"),
            )
        }
        Err(error) => Finding::error("libtorch", error),
    }
}

fn worker_finding(program: &Result<PathBuf, WorkerError>) -> Finding {
    match program {
        Ok(path) => Finding::good("worker", path.display().to_string()),
        Err(error) => Finding::error("worker", error),
    }
}

fn probe(libtorch: &Libtorch) -> Result<ProbeReport, WorkerError> {
    let answer = last_line(Worker::start(libtorch, &["probe"], None)?)?;
    serde_json::from_str(&answer).map_err(|_| {
        let words = "rlhf and rlhf-worker are of different versions\n  hint: `make build`";
        WorkerError::Failed(words.to_owned())
    })
}

fn probe_findings(report: &ProbeReport, libtorch: &Libtorch) -> Vec<Finding> {
    let mut findings = Vec::new();
    if report.libtorch_version.starts_with(WANTED) {
        let threads = report.num_threads;
        findings.push(Finding::good(
            "cpu",
            format!("libtorch computes with {threads} threads"),
        ));
    } else {
        let text = format!(
            "the worker loaded version {} from {}, not {}",
            report.libtorch_version,
            report.libtorch_dir.display(),
            libtorch.lib_dir.display()
        );
        findings.push(Finding::bad(
            "loaded",
            text,
            "`make build` links it against the right one",
        ));
    }
    for (index, gpu) in report.gpus.iter().enumerate() {
        let gib = gpu.memory_bytes as f64 / f64::from(1 << 30);
        let text = format!(
            "cuda:{index} {}, capability {}, {gib:.0} GiB",
            gpu.name, gpu.capability
        );
        findings.push(Finding::good("gpu", text));
    }
    match (&report.cuda_problem, report.gpu_expected) {
        (None, _) => findings.push(Finding::good("cuda", "usable")),
        (Some(problem), false) => {
            findings.push(Finding::good("cuda", format!("not used here: {problem}")));
        }
        (Some(problem), true) => findings.push(Finding::bad(
            "cuda",
            format!("this machine has a GPU that cannot be used: {problem}"),
            "`nvidia-smi` shows the driver, which must be 580 or newer for CUDA 13; --device cpu \
             does without it",
        )),
    }
    if let Some(problem) = &report.extension_problem {
        let remedy = "`make build` makes librlhf_cuda.so beside the worker; keep the two together";
        findings.push(Finding::bad("librlhf_cuda", problem, remedy));
    }
    findings
}

fn report(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding {
        subject,
        text: words,
        remedy,
    } in findings
    {
        let mark = if remedy.is_some() { "WRONG" } else { "ok" };
        let _ = writeln!(text, "{mark:<5}  {subject:<12}  {words}");
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "{:21}-> {remedy}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use recipe::request::GpuReport;

    fn healthy() -> ProbeReport {
        ProbeReport {
            libtorch_version: "2.11.0".into(),
            libtorch_dir: "/torch/lib".into(),
            num_threads: 2,
            gpus: vec![GpuReport {
                name: "H200".into(),
                capability: "9.0".into(),
                memory_bytes: 141 << 30,
            }],
            cuda_problem: None,
            gpu_expected: true,
            extension_problem: None,
        }
    }

    fn wrong(report: &ProbeReport) -> Vec<&'static str> {
        let libtorch = Libtorch {
            lib_dir: "/torch/lib".into(),
            version: "2.11.0".into(),
            found_by: "LIBTORCH".into(),
        };
        let findings = probe_findings(report, &libtorch);
        findings
            .iter()
            .filter(|f| f.remedy.is_some())
            .map(|f| f.subject)
            .collect()
    }

    #[test]
    fn an_unusable_gpu_is_wrong_and_a_missing_one_is_not() {
        assert!(wrong(&healthy()).is_empty());
        let no_cuda = ProbeReport {
            gpus: vec![],
            cuda_problem: Some("no".into()),
            ..healthy()
        };
        assert_eq!(wrong(&no_cuda), ["cuda"]);
        assert!(
            wrong(&ProbeReport {
                gpu_expected: false,
                ..no_cuda
            })
            .is_empty()
        );
        let extension_problem = Some("missing".into());
        assert_eq!(
            wrong(&ProbeReport {
                extension_problem,
                ..healthy()
            }),
            ["librlhf_cuda"]
        );
        let libtorch_version = "2.10.0".into();
        assert_eq!(
            wrong(&ProbeReport {
                libtorch_version,
                ..healthy()
            }),
            ["loaded"]
        );
    }

    #[test]
    fn gpus_and_the_run_folder_are_looked_at_where_they_are_asked_for() {
        assert_eq!(gpus_finding(0, 0), None);
        let wrong = |finding: Option<Finding>| finding.is_some_and(|f| f.remedy.is_some());
        assert!(wrong(gpus_finding(7, 8)) && !wrong(gpus_finding(8, 8)));
        let dir = tempfile::tempdir().expect("a folder");
        let run = RunFolder::at(dir.path());
        let token = concat!(env!("CARGO_PKG_VERSION"), "-7");
        let finding = |token: &str| run_folder_finding(&run, token);
        assert!(finding(token).text.contains("cannot read"));
        fs::create_dir(run.cluster_dir()).expect("a folder");
        fs::write(run.cluster_dir().join("token"), token).expect("a file");
        assert_eq!(finding(token).remedy, None);
        assert!(finding("0.0.1-9").text.contains("is another one here"));
        fs::write(run.cluster_dir().join("token"), "0.0.1-9").expect("a file");
        assert!(finding("0.0.1-9").text.contains("0.0.1 submits"));
        let files = fs::read_dir(run.cluster_dir()).expect("a folder").count();
        assert_eq!(files, 1, "the trial is gone");
    }

    #[test]
    fn every_fault_is_shown_with_its_remedy() {
        let missing = LibtorchError::NotThere {
            path: "/gone".into(),
        };
        let text = report(&[
            Finding::good("platform", "fine"),
            Finding::error("libtorch", &missing),
        ]);
        assert!(text.starts_with("ok     platform      fine\nWRONG  libtorch      LIBTORCH=/gone"));
        assert!(
            text.contains("\n                     -> set it to the folder"),
            "{text}"
        );
    }
}
