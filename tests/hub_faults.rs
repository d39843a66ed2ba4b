//! Downloads that break, fall silent or lie, refusals, and what is said of each.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use runtime::hash::hash_bytes;

use crate::hub::{NEEDED, REPO, WEIGHTS, assert_holds, assert_no_weights, files, hub, is_store};
use crate::hub_server::{Cache, Reply, Seen};
use crate::support::{Outcome, Said, say};

#[test]
fn a_connection_that_ends_in_the_middle_is_made_again_from_there() -> Outcome {
    let (server, cache, commit) = hub()?;
    // Each time a third comes.
    server.twist(|seen, mut reply| {
        if is_store(seen) {
            reply.cut = Some(150_000);
        }
        reply
    });
    say(&mut cache.pull(&[REPO]))?
        .ended(0)
        .names(&["the connection ended after 150000 of 400000 bytes"]);
    assert_holds(&cache.path(REPO, &format!("snapshots/{commit}")), &NEEDED);
    let ranges: Vec<_> = server
        .seen()
        .into_iter()
        .filter(is_store)
        .map(|seen| seen.range)
        .collect();
    assert_eq!(
        ranges,
        [
            None,
            Some("bytes=150000-".into()),
            Some("bytes=300000-".into())
        ]
    );

    // A server that knows no ranges sends all of it again.
    let cache = Cache::of(&server)?;
    let mut whole = false;
    server.twist(move |seen, reply| {
        if !is_store(seen) {
            return reply;
        }
        let cut = (!whole).then_some(150_000);
        whole = true;
        Reply {
            cut,
            ..Reply::new(200, files()[WEIGHTS].clone())
        }
    });
    say(&mut cache.pull(&[REPO]))?.ended(0);
    assert_holds(&cache.path(REPO, &format!("snapshots/{commit}")), &NEEDED);
    Ok(())
}

#[test]
fn what_came_before_a_failure_is_kept_and_never_taken_for_the_whole() -> Outcome {
    let (server, cache, commit) = hub()?;
    let mut first = true;
    server.twist(move |seen, mut reply| {
        if is_store(seen) {
            reply.cut = Some(if first { 1000 } else { 0 });
            first = false;
        }
        reply
    });
    let said = say(&mut cache.pull(&[REPO]))?.ended(1);
    said.names(&[
        "the connection ended after 1000 of 400000 bytes",
        "hint: try again",
    ]);
    assert_eq!(assert_no_weights(&cache, &commit), Some(1000));
    server.mend();
    server.seen();
    say(&mut cache.pull(&[REPO]))?.ended(0);
    let ranges: Vec<_> = server
        .seen()
        .into_iter()
        .filter(is_store)
        .map(|seen| seen.range)
        .collect();
    assert_eq!(ranges, [Some("bytes=1000-".into())]);
    assert_holds(&cache.path(REPO, &format!("snapshots/{commit}")), &NEEDED);

    // Something else's part: found by the hash, and fetched anew.
    let hash = hash_bytes(&files()[WEIGHTS]);
    for length in [1000, 400_000, 500_000] {
        let cache = Cache::of(&server)?;
        fs::create_dir_all(cache.path(REPO, "blobs"))?;
        fs::write(
            cache.path(REPO, &format!("blobs/{hash}.incomplete")),
            vec![7; length],
        )?;
        say(&mut cache.pull(&[REPO]))?.ended(0);
        assert_holds(&cache.path(REPO, &format!("snapshots/{commit}")), &NEEDED);
    }
    Ok(())
}

#[test]
fn a_silence_is_bounded_by_the_variables() -> Outcome {
    let (server, cache, commit) = hub()?;
    let mut left = Some(500);
    server.twist(move |seen, mut reply| {
        if is_store(seen) {
            reply.cut = Some(left.take().unwrap_or(0));
            reply.silence = Duration::from_secs(60);
        }
        reply
    });
    let begun = Instant::now();
    let said = say(&mut cache.pull(&[REPO]))?.ended(1);
    said.names(&[
        "nothing came for 1 s",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "it goes on where it stopped",
    ]);
    assert!(
        begun.elapsed() < Duration::from_secs(50),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(assert_no_weights(&cache, &commit), Some(500));

    let cache = Cache::of(&server)?;
    server.twist(|_, mut reply| {
        reply.cut = Some(0);
        reply.silence = Duration::from_secs(60);
        reply
    });
    let mut pull = cache.pull(&[REPO]);
    let said = say(pull.env("HF_HUB_ETAG_TIMEOUT", "1"))?.ended(1);
    said.names(&["nothing came for 1 s", "HF_HUB_ETAG_TIMEOUT"]);
    for value in ["0", "soon"] {
        let said = say(cache.pull(&[REPO]).env("HF_HUB_DOWNLOAD_TIMEOUT", value))?.ended(2);
        said.names(&[
            "HF_HUB_DOWNLOAD_TIMEOUT must be a whole number of seconds",
            value,
            "hint: ",
        ]);
    }
    Ok(())
}

/// A fault, what it makes of an answer, and what must be said of it.
type Lie = (fn(&Seen, Reply) -> Reply, &'static [&'static str]);

/// Checks that a lie is found out, leaves nothing behind, and harms no later download.
#[track_caller]
fn assert_found_out((lie, words): Lie) -> Outcome {
    let (server, cache, commit) = hub()?;
    server.twist(lie);
    let said = say(&mut cache.pull(&[REPO]))?.ended(1);
    said.names(words).names(&["hint: "]);
    assert_eq!(assert_no_weights(&cache, &commit), None, "{words:?}");
    server.mend();
    say(&mut cache.pull(&[REPO]))?.ended(0);
    assert_holds(&cache.path(REPO, &format!("snapshots/{commit}")), &NEEDED);
    Ok(())
}

fn is_file(seen: &Seen, name: &str) -> bool {
    seen.line.contains("/resolve/") && seen.line.ends_with(name)
}

#[test]
fn bytes_that_are_not_those_announced_are_found_out() -> Outcome {
    let flipped: Lie = (
        |seen, mut reply| {
            if is_store(seen) {
                reply.body[17] ^= 1;
            }
            reply
        },
        &["its sha256 is ", "was announced", "what came is removed"],
    );
    let longer: Lie = (
        |seen, mut reply| {
            if is_store(seen) {
                reply.body.extend([0; 9]);
            }
            reply
        },
        &["has 400009 bytes, 400000 were announced"],
    );
    let listed_otherwise: Lie = (
        |seen, reply| {
            if is_file(seen, WEIGHTS) {
                return reply.with("X-Linked-Size", "399999");
            }
            reply
        },
        &["has 399999 bytes, 400000 were announced"],
    );
    let absent: Lie = (
        |seen, reply| {
            if is_file(seen, WEIGHTS) {
                return Reply::new(404, "");
            }
            reply
        },
        &[WEIGHTS, "is listed and is not there"],
    );
    for lie in [flipped, longer, listed_otherwise, absent] {
        assert_found_out(lie)?;
    }
    Ok(())
}

fn log_in_page() -> Reply {
    Reply::new(200, "<html>Log in</html>").with("Content-Type", "text/html")
}

#[test]
fn answers_that_no_hub_gives_are_found_out() -> Outcome {
    let page_for_the_list: Lie = (
        |_, _| log_in_page(),
        &["/api/models/org/tiny", "is no list of files", "log-in page"],
    );
    let page_for_a_file: Lie = (
        |seen, reply| {
            if is_file(seen, "/config.json") {
                return log_in_page();
            }
            reply
        },
        &["/config.json", "has no ETag", "text/html", "log-in page"],
    );
    let other_commit: Lie = (
        |seen, reply| {
            if is_file(seen, "") {
                return reply.with("X-Repo-Commit", "f".repeat(40));
            }
            reply
        },
        &["is of commit ffff", "was asked for"],
    );
    let identity_that_is_a_path: Lie = (
        |seen, reply| {
            if is_file(seen, "") {
                return reply.with("X-Linked-Etag", "\"../../../evil\"");
            }
            reply
        },
        &["has no ETag that a hub gives", "evil"],
    );
    let circle: Lie = (
        |seen, reply| {
            if is_file(seen, "/config.json") {
                return Reply::new(302, "").with("Location", "/org/tiny/resolve/x/config.json");
            }
            reply
        },
        &["leads from one address to the next"],
    );
    for lie in [
        page_for_the_list,
        page_for_a_file,
        other_commit,
        identity_that_is_a_path,
        circle,
    ] {
        assert_found_out(lie)?;
    }
    Ok(())
}

/// What is said of a download with a token, or without.
fn refused(cache: &Cache, words: &str, token: Option<&str>, code: i32) -> Outcome<Said> {
    let mut pull = cache.pull(&[words]);
    if let Some(token) = token {
        pull.env("HF_TOKEN", token);
    }
    Ok(say(&mut pull)?.ended(code).names(&["hint: "]))
}

#[test]
fn a_name_or_a_token_that_is_wrong_is_told_with_what_to_do() -> Outcome {
    let (server, cache, _) = hub()?;
    let usage = |words: &str, token| refused(&cache, words, token, 2);
    usage("org/tyni", None)?.names(&[
        "org/tyni",
        "no such model, or it is private",
        "needs HF_TOKEN",
    ]);
    usage("org/tyni", Some("hf_t"))?.names(&["check the name", "the token may read it"]);
    usage("org/tiny@v9", None)?.names(&["org/tiny has no revision \"v9\""]);
    server.twist(|seen, reply| {
        if is_file(seen, "") {
            let status = if seen.authorization.is_some() {
                403
            } else {
                401
            };
            return Reply::new(status, "").with("X-Error-Code", "GatedRepo");
        }
        reply
    });
    usage(REPO, None)?.names(&[
        "org/tiny is gated",
        "ask for access at http",
        "then set HF_TOKEN",
    ]);
    usage(REPO, Some("hf_t"))?
        .names(&["org/tiny is gated", "the token that was sent has none yet"]);
    server.twist(|_, _| {
        Reply::new(307, "").with(
            "Location",
            "/api/models/new-org/tiny/revision/main?blobs=true",
        )
    });
    usage(REPO, None)?.names(&[
        "org/tiny is called new-org/tiny now",
        "hint: write hub:new-org/tiny",
    ]);
    Ok(())
}

#[test]
fn a_server_that_does_not_serve_is_told_with_what_to_do() -> Outcome {
    let (server, cache, _) = hub()?;
    let fails = || refused(&cache, REPO, None, 1);
    server.twist(|_, _| Reply::new(503, "").with("X-Error-Message", "back soon"));
    fails()?.names(&["answers 503: back soon", "hint: the server is at fault"]);
    server.twist(|_, _| Reply::new(429, ""));
    fails()?.names(&["answers 429", "hint: wait a few minutes"]);
    server.seen();
    server.twist(|seen, reply| {
        if is_file(seen, "") {
            return Reply::new(403, "").with("X-Error-Message", "not from this country");
        }
        reply
    });
    fails()?.names(&["answers 403: not from this country"]);
    assert_eq!(
        server.seen().len(),
        2,
        "what will not pass is not asked again"
    );
    let mut pull = cache.pull(&[REPO]);
    pull.env("HF_ENDPOINT", "http://127.0.0.1:1");
    say(&mut pull)?
        .ended(1)
        .names(&["cannot reach http://127.0.0.1:1/", "HF_HUB_OFFLINE=1"]);
    say(pull.env("HF_ENDPOINT", "huggingface.co"))?
        .ended(2)
        .names(&["HF_ENDPOINT", "huggingface.co"]);
    Ok(())
}

#[test]
fn a_passing_fault_is_overcome() -> Outcome {
    let (server, cache, commit) = hub()?;
    let mut asked = BTreeSet::new();
    server.twist(move |seen, reply| {
        if asked.insert(seen.line.clone()) {
            Reply::new(502, "")
        } else {
            reply
        }
    });
    say(&mut cache.pull(&[REPO]))?.ended(0);
    assert_holds(&cache.path(REPO, &format!("snapshots/{commit}")), &NEEDED);
    Ok(())
}
