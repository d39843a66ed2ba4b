//! Finds libtorch for the worker, and checks that it is the version that the worker was built for.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The only minor version that the worker can be loaded with.
pub const WANTED: &str = "2.11";

const LIBRARY: &str = "libtorch_cpu.so";

/// Headers that hold the version, newest place first.
const HEADERS: [&str; 2] = [
    "include/torch/headeronly/version.h",
    "include/torch/csrc/api/include/torch/version.h",
];

/// A libtorch that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libtorch {
    /// The folder of `libtorch_cpu.so`.
    pub lib_dir: PathBuf,
    /// Its version, as `2.11.0+cu130`.
    pub version: String,
    /// How it was found, in words.
    pub found_by: String,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibtorchError {
    /// Nowhere.
    #[error(
        "libtorch {WANTED} is not found; looked in: {}\n  hint: `make setup` installs it into \
         ./.venv; or set LIBTORCH to the folder of an installed torch {WANTED} (the one with lib/)",
        looked_in.join(", ")
    )]
    Missing {
        /// Where it was looked for.
        looked_in: Vec<String>,
    },
    /// `LIBTORCH` does not lead to it.
    #[error(
        "LIBTORCH={} holds no {LIBRARY}, neither itself nor in lib/\n  \
         hint: set it to the folder of an installed torch {WANTED}, or unset it",
        path.display()
    )]
    NotThere {
        /// The variable's value.
        path: PathBuf,
    },
    /// Another version, or one that does not say which it is.
    #[error(
        "the libtorch in {} ({found_by}) is version {found}, and this program needs {WANTED}\n  \
         hint: `make setup` installs the right one into ./.venv (pip install torch==2.11.0 in \
         another environment); or set LIBTORCH to it",
        lib_dir.display()
    )]
    Version {
        /// The folder of the library.
        lib_dir: PathBuf,
        /// How it was found.
        found_by: String,
        /// The version found.
        found: String,
    },
}

/// Where to look; taken from the process, or made up by a test.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The variable `LIBTORCH`.
    pub libtorch: Option<PathBuf>,
    /// The folders of `LD_LIBRARY_PATH`.
    pub library_path: Vec<PathBuf>,
    /// The working directory.
    pub working_dir: PathBuf,
    /// The folder of the program.
    pub program_dir: PathBuf,
    /// The interpreter that is asked for its torch.
    pub python: Option<PathBuf>,
}

impl Places {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        let program = env::current_exe()
            .and_then(fs::canonicalize)
            .unwrap_or_default();
        Self {
            libtorch: env::var_os("LIBTORCH")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from),
            library_path: env::var_os("LD_LIBRARY_PATH")
                .map(|list| {
                    env::split_paths(&list)
                        .filter(|p| p.is_absolute())
                        .collect()
                })
                .unwrap_or_default(),
            working_dir: env::current_dir().unwrap_or_default(),
            program_dir: program.parent().map(Path::to_path_buf).unwrap_or_default(),
            python: Some("python3".into()),
        }
    }
}

/// Finds libtorch. `LIBTORCH` is the user's word and decides alone where it is set. Otherwise the
/// first that fits of: `../lib` beside the program, `LD_LIBRARY_PATH`, a `.venv` in the working
/// directory, beside the program, or in a parent of either, and what `python3` would import.
///
/// # Errors
/// Nothing is found, or nothing of the right version.
pub fn find(places: &Places) -> Result<Libtorch, LibtorchError> {
    if let Some(path) = &places.libtorch {
        let lib_dir =
            library_dir(path).ok_or_else(|| LibtorchError::NotThere { path: path.clone() })?;
        return check(lib_dir, "LIBTORCH".into());
    }
    let mut other_version = None;
    for (found_by, lib_dir) in candidates(places) {
        match check(lib_dir, found_by) {
            Ok(found) => return Ok(found),
            Err(error) => other_version = other_version.or(Some(error)),
        }
    }
    Err(other_version.unwrap_or_else(|| LibtorchError::Missing {
        looked_in: vec![
            "LIBTORCH (not set)".into(),
            places.program_dir.join("../lib").display().to_string(),
            "LD_LIBRARY_PATH".into(),
            format!(".venv in {} and its parents", places.working_dir.display()),
            format!(".venv in {} and its parents", places.program_dir.display()),
            "python3's torch".into(),
        ],
    }))
}

/// Lazily, since the last one starts an interpreter.
fn candidates(places: &Places) -> impl Iterator<Item = (String, PathBuf)> {
    let beside = library_dir(&places.program_dir.join("../lib")).map(|d| ("../lib".to_owned(), d));
    let listed = places
        .library_path
        .iter()
        .filter(|dir| dir.join(LIBRARY).exists())
        .map(|dir| ("LD_LIBRARY_PATH".to_owned(), dir.clone()));
    let environments = places
        .working_dir
        .ancestors()
        .chain(places.program_dir.ancestors())
        .filter_map(|dir| torch_of_environment(&dir.join(".venv")))
        .map(|lib_dir| (".venv".to_owned(), lib_dir));
    let python = std::iter::once_with(|| places.python.as_deref().and_then(torch_of_python))
        .flatten()
        .map(|lib_dir| ("python3".to_owned(), lib_dir));
    beside
        .into_iter()
        .chain(listed)
        .chain(environments)
        .chain(python)
}

/// `dir` or `dir/lib`, whichever holds the library.
fn library_dir(dir: &Path) -> Option<PathBuf> {
    [dir.to_path_buf(), dir.join("lib")]
        .into_iter()
        .find(|dir| dir.join(LIBRARY).exists())
}

fn torch_of_environment(venv: &Path) -> Option<PathBuf> {
    let mut pythons: Vec<PathBuf> = fs::read_dir(venv.join("lib"))
        .ok()?
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("site-packages/torch"))
        .filter(|torch| torch.exists())
        .collect();
    pythons.sort();
    pythons.iter().find_map(|torch| library_dir(torch))
}

/// Asks where torch lies without importing it: an import takes seconds.
fn torch_of_python(python: &Path) -> Option<PathBuf> {
    const QUESTION: &str = "import importlib.util as u; s = u.find_spec('torch'); \
                            print(s.submodule_search_locations[0] if s else '')";
    let answer = Command::new(python)
        .args(["-c", QUESTION])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let dir = String::from_utf8(answer.stdout).ok()?;
    let dir = dir.trim();
    if dir.is_empty() {
        None
    } else {
        library_dir(Path::new(dir))
    }
}

fn check(lib_dir: PathBuf, found_by: String) -> Result<Libtorch, LibtorchError> {
    let root = lib_dir.parent().unwrap_or(&lib_dir);
    match version_of(root) {
        Some(version) if is_wanted(&version) => Ok(Libtorch {
            lib_dir,
            version,
            found_by,
        }),
        found => {
            let found = found.unwrap_or_else(|| "unknown (it has no version file)".into());
            Err(LibtorchError::Version {
                lib_dir,
                found_by,
                found,
            })
        }
    }
}

fn is_wanted(version: &str) -> bool {
    version
        .strip_prefix(WANTED)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// A wheel says it in `version.py`, the C++ archive in `build-version`, a header in both.
fn version_of(root: &Path) -> Option<String> {
    let read = |file: &str| fs::read_to_string(root.join(file)).ok();
    let python = read("version.py").and_then(|text| quoted_after(&text, "__version__ ="));
    let archive = || {
        read("build-version")
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
    };
    let header = || {
        HEADERS
            .into_iter()
            .filter_map(read)
            .find_map(|text| defined_in(&text))
    };
    python.or_else(archive).or_else(header)
}

fn quoted_after(text: &str, marker: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(marker))?;
    let version = line.trim().trim_matches(['\'', '"']);
    (!version.is_empty()).then(|| version.to_owned())
}

fn defined_in(header: &str) -> Option<String> {
    let number = |part: &str| quoted_after(header, &format!("#define TORCH_VERSION_{part} "));
    Some(format!(
        "{}.{}.{}",
        number("MAJOR")?,
        number("MINOR")?,
        number("PATCH")?
    ))
}

#[cfg(test)]
#[path = "libtorch_tests.rs"]
mod tests;
