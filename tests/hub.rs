//! `rlhf model pull` against a hub on the loopback: what is fetched, where it lies, and who is told what.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use runtime::Manifest;
use runtime::hash::hash_bytes;

use crate::hub_server::{Cache, Files, Reply, Seen, Server};
use crate::support::{Outcome, files_below, say};

pub const REPO: &str = "org/tiny";
pub const WEIGHTS: &str = "model.safetensors";

/// What lies in a model's repository; its weights are bytes that no one reads here.
pub fn files() -> Files {
    let weights: Vec<u8> = (0..100_000_u32)
        .flat_map(|i| i.wrapping_mul(i).to_le_bytes())
        .collect();
    let texts = [
        ("README.md", "# tiny"),
        ("config.json", r#"{"model_type": "llama"}"#),
        ("generation_config.json", "{}"),
        ("tokenizer.json", r#"{"version": "1.0"}"#),
        ("tokenizer_config.json", "{ }"),
        ("onnx/model.onnx", "another format"),
        ("pytorch_model.bin", "the same weights in another format"),
    ];
    let texts = texts.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()));
    texts
        .into_iter()
        .chain([(WEIGHTS.to_owned(), weights)])
        .collect()
}

pub const NEEDED: [&str; 5] = [
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
];

/// A server with one model at one commit, and an empty cache.
pub fn hub() -> Outcome<(Server, Cache, String)> {
    let server = Server::start()?;
    let commit = server.push(REPO, files());
    let cache = Cache::of(&server)?;
    Ok((server, cache, commit))
}

/// Checks that a folder holds what was served, and nothing else.
#[track_caller]
pub fn assert_holds(folder: &Path, names: &[&str]) {
    let found = files_below(folder).expect("a folder");
    assert_eq!(found, names.iter().map(PathBuf::from).collect::<Vec<_>>());
    for name in names {
        let content = fs::read(folder.join(name)).expect("a file");
        assert!(content == files()[*name], "{name} differs");
    }
}

/// Checks that no name stands for the weights, and gives what is kept of them.
#[track_caller]
pub fn assert_no_weights(cache: &Cache, commit: &str) -> Option<u64> {
    let hash = hash_bytes(&files()[WEIGHTS]);
    assert!(
        !cache
            .path(REPO, &format!("snapshots/{commit}/{WEIGHTS}"))
            .exists()
    );
    assert!(!cache.path(REPO, &format!("blobs/{hash}")).exists());
    let part = fs::metadata(cache.path(REPO, &format!("blobs/{hash}.incomplete")));
    part.ok().map(|part| part.len())
}

pub fn is_store(seen: &Seen) -> bool {
    seen.line.contains(" /store/")
}

#[test]
fn a_model_comes_whole_into_the_cache_that_others_use_too() -> Outcome {
    let (server, cache, commit) = hub()?;
    let said = say(&mut cache.pull(&[REPO]))?.ended(0);
    let folder = cache.path(REPO, &format!("snapshots/{commit}"));
    assert_eq!(said.out, format!("{}\n", folder.display()));
    said.names(&[
        &format!("hub:{REPO}@{commit}: 5 files"),
        "org/tiny model.safetensors: ",
    ]);
    assert_holds(&folder, &NEEDED);
    assert_eq!(fs::read_to_string(cache.path(REPO, "refs/main"))?, commit);
    let hash = hash_bytes(&files()[WEIGHTS]);
    let link = fs::read_link(folder.join(WEIGHTS))?;
    assert_eq!(link, Path::new("../../blobs").join(hash));
    let lines = server.lines();
    for other in ["README.md", "pytorch_model.bin", "model.onnx"] {
        assert!(
            !lines.iter().any(|line| line.contains(other)),
            "{other} in {lines:?}"
        );
    }
    Ok(())
}

#[test]
fn what_is_in_the_cache_is_not_asked_for_again_and_serves_without_a_network() -> Outcome {
    let (server, cache, commit) = hub()?;
    let first = say(&mut cache.pull(&[REPO]))?.ended(0);
    server.seen();
    assert_eq!(say(&mut cache.pull(&[REPO]))?.ended(0).out, first.out);
    let listing = format!("GET /api/models/{REPO}/revision/main?blobs=true");
    assert_eq!(server.lines(), [listing]);

    let offline = |arguments: &[&str]| say(cache.pull(arguments).env("HF_HUB_OFFLINE", "1"));
    assert_eq!(offline(&[REPO])?.ended(0).out, first.out);
    assert_eq!(
        offline(&[REPO, "--revision", &commit])?.ended(0).out,
        first.out
    );
    for (arguments, what) in [
        (
            &[REPO, "--revision", "v2"][..],
            "hub:org/tiny@v2 is not in ",
        ),
        (&["org/other"], "hub:org/other@main is not in "),
    ] {
        offline(arguments)?.ended(2).names(&[
            what,
            "HF_HUB_OFFLINE is set",
            "hint: unset",
            "model pull org/",
        ]);
    }
    fs::remove_file(cache.path(REPO, &format!("blobs/{}", hash_bytes(&files()[WEIGHTS]))))?;
    offline(&[REPO])?
        .ended(2)
        .names(&["model.safetensors", "of org/tiny is not in ", "hint: "]);
    assert!(server.seen().is_empty(), "offline nothing is asked");
    say(&mut cache.pull(&[REPO]))?.ended(0);
    assert_holds(&cache.path(REPO, &format!("snapshots/{commit}")), &NEEDED);
    Ok(())
}

#[test]
fn a_revision_pins_and_a_copy_names_its_commit() -> Outcome {
    let (server, cache, first) = hub()?;
    let mut changed = files();
    changed.insert("config.json".into(), b"{}".to_vec());
    let second = server.push(REPO, changed);
    server.tag("v1.0", &first);
    server.tag("refs/pr/1", &first);
    let said = |arguments: &[&str]| say(&mut cache.pull(arguments));
    assert!(said(&[REPO])?.ended(0).out.contains(&second));
    for pinned in [
        &["org/tiny@v1.0"][..],
        &[REPO, "--revision", "refs/pr/1"],
        &["hub:org/tiny", "--revision", &first],
    ] {
        assert!(said(pinned)?.ended(0).out.contains(&first), "{pinned:?}");
    }
    assert_eq!(
        fs::read_to_string(cache.path(REPO, "refs/refs/pr/1"))?,
        first
    );
    let out = cache.folder.path().join("copy");
    let arguments = [REPO, "--revision", "v1.0", "--out", &out.to_string_lossy()];
    let printed = said(&arguments)?.ended(0).out;
    assert_eq!(printed, format!("{}\n", out.display()));
    let manifest = Manifest::verify(&out)?.ok_or("no manifest")?;
    assert_eq!(
        manifest.parents,
        [(format!("hub:{REPO}@{first}"), first)].into()
    );
    assert!(
        fs::symlink_metadata(out.join(WEIGHTS))?.is_file(),
        "a copy is no link"
    );
    fs::remove_file(out.join("manifest.json"))?;
    assert_holds(&out, &NEEDED);
    said(&arguments)?
        .ended(2)
        .names(&["is there already", "hint: "]);
    Ok(())
}

#[test]
fn weights_in_several_files_and_in_the_old_format() -> Outcome {
    let server = Server::start()?;
    let mut sharded = files();
    let weights = sharded.remove(WEIGHTS).ok_or("no weights")?;
    let (one, two) = weights.split_at(1000);
    let index = r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}}"#;
    sharded.insert("model.safetensors.index.json".into(), index.into());
    sharded.insert("m-1.safetensors".into(), one.to_vec());
    sharded.insert("m-2.safetensors".into(), two.to_vec());
    let mut half = sharded.clone();
    half.remove("m-2.safetensors");
    let mut old = files();
    old.remove(WEIGHTS);
    let mut none = old.clone();
    none.remove("pytorch_model.bin");
    let cache = Cache::of(&server)?;
    let commit = server.push("org/sharded", sharded);
    say(&mut cache.pull(&["org/sharded"]))?
        .ended(0)
        .names(&["7 files"]);
    let folder = cache.path("org/sharded", &format!("snapshots/{commit}"));
    let joined = [
        fs::read(folder.join("m-1.safetensors"))?,
        fs::read(folder.join("m-2.safetensors"))?,
    ]
    .concat();
    assert!(joined == weights);
    let commit = server.push("org/old", old);
    say(&mut cache.pull(&["org/old"]))?
        .ended(0)
        .names(&["5 files"]);
    assert!(
        cache
            .path("org/old", &format!("snapshots/{commit}/pytorch_model.bin"))
            .exists()
    );
    for (repo, files, what) in [
        ("org/half", half, "org/half has no m-2.safetensors"),
        ("org/none", none, "org/none has no model.safetensors"),
    ] {
        server.push(repo, files);
        say(&mut cache.pull(&[repo]))?
            .ended(2)
            .names(&[what, "hint: "]);
    }
    Ok(())
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() -> Outcome {
    let (server, cache, _) = hub()?;
    server.require("hf_secret");
    let said = say(&mut cache.pull(&[REPO]))?.ended(2);
    said.names(&["no such model, or it is private", "HF_TOKEN"]);
    let said = say(cache.pull(&[REPO]).env("HF_TOKEN", "hf_wrong"))?.ended(2);
    let said = said.names(&["does not accept the token", "/settings/tokens"]);
    assert!(!said.err.contains("hf_wrong"), "{}", said.err);
    server.seen();
    fs::write(cache.folder.path().join("token"), "hf_secret\n")?;
    say(&mut cache.pull(&[REPO]))?.ended(0);
    let (store, hub): (Vec<Seen>, Vec<Seen>) = server.seen().into_iter().partition(is_store);
    assert!(!store.is_empty() && store.iter().all(|seen| seen.authorization.is_none()));
    assert!(
        hub.iter()
            .all(|seen| seen.authorization.as_deref() == Some("Bearer hf_secret"))
    );
    Ok(())
}

#[test]
fn what_another_process_fetches_is_waited_for_and_not_fetched_again() -> Outcome {
    let (server, cache, commit) = hub()?;
    let content = &files()[WEIGHTS];
    let hash = hash_bytes(content);
    let locks = cache.folder.path().join("hub/.locks/models--org--tiny");
    fs::create_dir_all(&locks)?;
    let lock = File::create(locks.join(format!("{hash}.lock")))?;
    lock.lock()?;
    let mut pull = cache
        .pull(&[REPO])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(pull.stderr.take().ok_or("no stderr")?).lines();
    let waits = lines.find(|line| {
        line.as_ref()
            .map_or(true, |line| line.contains("waits for another"))
    });
    assert!(waits.ok_or("it does not wait")??.contains(WEIGHTS));
    fs::write(cache.path(REPO, &format!("blobs/{hash}")), content)?;
    drop(lock);
    lines.try_for_each(|line| line.map(drop))?;
    assert!(pull.wait()?.success());
    assert!(!server.seen().iter().any(is_store));
    assert_holds(&cache.path(REPO, &format!("snapshots/{commit}")), &NEEDED);
    Ok(())
}

#[test]
fn a_disk_that_is_too_small_is_told_before_the_download() -> Outcome {
    let (server, cache, commit) = hub()?;
    server.twist(|seen, reply| {
        if !seen.line.contains("/api/") {
            return reply;
        }
        let body = String::from_utf8_lossy(&reply.body).replace("400000", "4000000000000000000");
        Reply::new(200, body)
    });
    let said = say(&mut cache.pull(&[REPO]))?.ended(1);
    said.names(&[
        "bytes are needed",
        "are free",
        "hint: free some space, or set HF_HUB_CACHE",
    ]);
    assert_eq!(assert_no_weights(&cache, &commit), None);
    let blocked = cache.folder.path().join("blocked");
    fs::write(&blocked, "a file")?;
    let mut pull = cache.pull(&[REPO]);
    let said = say(pull.env("HF_HUB_CACHE", blocked.join("cache")))?.ended(1);
    said.names(&["cannot ", "blocked", "hint: "]);
    Ok(())
}

#[test]
fn names_that_leave_the_folder_are_refused() -> Outcome {
    let (server, cache, _) = hub()?;
    for name in ["../x", "/etc/x", "a/../../config.json"] {
        let mut evil = files();
        evil.insert(name.into(), b"evil".to_vec());
        server.push("org/evil", evil);
        let said = say(&mut cache.pull(&["org/evil"]))?.ended(2);
        said.names(&["org/evil names a file", name, "hint: "]);
    }
    let mut evil = files();
    evil.remove(WEIGHTS);
    evil.insert(
        "model.safetensors.index.json".into(),
        br#"{"weight_map": {"a": "../../x"}}"#.to_vec(),
    );
    server.push("org/evil", evil);
    say(&mut cache.pull(&["org/evil"]))?
        .ended(2)
        .names(&["org/evil names a file", "../../x"]);
    for words in [
        &["../evil"][..],
        &["org/tiny", "--revision", "../x"],
        &["a/b/c"],
    ] {
        server.seen();
        say(&mut cache.pull(words))?.ended(2).names(&["hint: "]);
        assert!(server.seen().is_empty(), "{words:?}");
    }
    Ok(())
}
