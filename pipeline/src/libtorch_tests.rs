use super::*;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A folder that looks like an installed torch.
fn install(root: &Path, version_file: &str, content: &str) -> std::io::Result<PathBuf> {
    fs::create_dir_all(root.join("lib"))?;
    fs::write(root.join("lib").join(LIBRARY), "")?;
    let file = root.join(version_file);
    fs::create_dir_all(file.parent().unwrap_or(root))?;
    fs::write(file, content)?;
    Ok(root.join("lib"))
}

fn wheel(root: &Path, version: &str) -> std::io::Result<PathBuf> {
    install(
        root,
        "version.py",
        &format!("debug = False\n__version__ = '{version}'\n"),
    )
}

fn nowhere(dir: &Path) -> Places {
    Places {
        working_dir: dir.join("work/deep"),
        program_dir: dir.join("repo/target/release"),
        ..Places::default()
    }
}

#[test]
fn each_place_is_found_and_the_earlier_wins() -> Outcome {
    let dir = tempfile::tempdir()?;
    let root = dir.path();
    let mut places = nowhere(root);
    let found = |places: &Places| find(places).map(|found| (found.found_by, found.lib_dir));

    let by_python = wheel(&root.join("py/torch"), "2.11.0+cu130")?;
    let python = root.join("python3");
    fs::write(
        &python,
        format!("#!/bin/sh\necho {}\n", root.join("py/torch").display()),
    )?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&python, mode)?;
    places.python = Some(python);
    assert_eq!(found(&places)?, ("python3".into(), by_python));

    let repo = wheel(
        &root.join("repo/.venv/lib/python3.11/site-packages/torch"),
        "2.11.0",
    )?;
    assert_eq!(found(&places)?, (".venv".into(), repo));
    let work = wheel(
        &root.join("work/.venv/lib/python3.12/site-packages/torch"),
        "2.11.1",
    )?;
    assert_eq!(found(&places)?, (".venv".into(), work));
    let listed = wheel(&root.join("listed"), "2.11.0")?;
    places.library_path = vec![root.join("empty"), listed.clone()];
    assert_eq!(found(&places)?, ("LD_LIBRARY_PATH".into(), listed));
    fs::create_dir_all(&places.program_dir)?;
    wheel(&root.join("repo/target"), "2.11.0")?;
    assert_eq!(found(&places)?.0, "../lib");
    let named = wheel(&root.join("named"), "2.11.0")?;
    places.libtorch = Some(root.join("named"));
    assert_eq!(found(&places)?, ("LIBTORCH".into(), named.clone()));
    places.libtorch = Some(named.clone());
    assert_eq!(found(&places)?, ("LIBTORCH".into(), named));
    Ok(())
}

#[test]
fn versions_are_read_from_wheels_archives_and_headers() -> Outcome {
    let header = "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n\
                  #define TORCH_VERSION_PATCH 0\n#define TORCH_VERSION \\\n  \"2.11.0\"\n";
    let forms = [
        ("version.py", "__version__ = '2.11.0+cpu'\n", "2.11.0+cpu"),
        ("build-version", "2.11.0+cu130\n", "2.11.0+cu130"),
        (
            "include/torch/csrc/api/include/torch/version.h",
            header,
            "2.11.0",
        ),
    ];
    for (file, content, version) in forms {
        let dir = tempfile::tempdir()?;
        install(dir.path(), file, content)?;
        let places = Places {
            libtorch: Some(dir.path().into()),
            ..nowhere(dir.path())
        };
        assert_eq!(find(&places)?.version, version);
    }
    Ok(())
}

#[test]
fn another_version_is_refused_where_named_and_passed_over_where_not() -> Outcome {
    for version in ["2.10.0", "2.1.1", "2.110.0", "3.2.11"] {
        let dir = tempfile::tempdir()?;
        let other = wheel(&dir.path().join("other"), version)?;
        let mut places = Places {
            libtorch: Some(other.clone()),
            ..nowhere(dir.path())
        };
        let message = find(&places).err().ok_or("must fail")?.to_string();
        for part in [version, "needs 2.11", "hint:", &other.display().to_string()] {
            assert!(message.contains(part), "{message}");
        }
        places = Places {
            library_path: vec![other],
            ..nowhere(dir.path())
        };
        assert!(matches!(find(&places), Err(LibtorchError::Version { .. })));
        wheel(
            &dir.path()
                .join("repo/.venv/lib/python3.11/site-packages/torch"),
            "2.11.0",
        )?;
        assert_eq!(find(&places)?.found_by, ".venv");
    }
    Ok(())
}

#[test]
fn a_missing_one_is_an_error_that_says_where_it_was_looked_for() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut places = nowhere(dir.path());
    let message = find(&places).err().ok_or("must fail")?.to_string();
    assert!(
        message.contains("LD_LIBRARY_PATH") && message.contains("make setup"),
        "{message}"
    );
    places.libtorch = Some(dir.path().join("gone"));
    let message = find(&places).err().ok_or("must fail")?.to_string();
    assert!(
        message.contains("gone holds no libtorch_cpu.so"),
        "{message}"
    );
    Ok(())
}
