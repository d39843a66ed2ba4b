//! `rlhf doctor`: what is found on this machine, what is wrong, and the command that mends it.
//! Needs no libtorch itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::anyhow;
use recipe::request::ProbeReport;

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

/// Prints the findings.
///
/// # Errors
/// Something is wrong; it is on standard output, with the remedy.
pub fn run() -> Outcome {
    let findings = examine();
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

fn examine() -> Vec<Finding> {
    let mut findings = vec![platform()];
    let libtorch = libtorch::find(&Places::of_this_process());
    let program = worker::program();
    findings.push(libtorch_finding(&libtorch));
    findings.push(worker_finding(&program));
    if let (Ok(libtorch), Ok(_)) = (&libtorch, &program) {
        match probe(libtorch) {
            Ok(report) => findings.extend(probe_findings(&report, libtorch)),
            Err(error) => findings.push(Finding::error("probe", &error)),
        }
    }
    findings
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
