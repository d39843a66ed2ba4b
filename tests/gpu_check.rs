//! `rlhf gpu-check` without a GPU: refused, and rehearsed on the CPU from the first part to the last.

use std::fs;

use serde_json::Value;

use crate::support::{Outcome, rlhf, say, scratch};

/// Parts that need no Python.
const OURS: [&str; 10] = [
    "device",
    "cpu",
    "agree-f32",
    "agree-bf16",
    "twice",
    "models",
    "gpt2",
    "sample",
    "ppo",
    "llama",
];

#[test]
fn the_rehearsal_goes_through_every_part_and_says_what_it_is() -> Outcome {
    let folder = scratch()?;
    let (run, out) = (folder.path().join("run"), folder.path().join("out"));
    let mut command = rlhf();
    command.args(["gpu-check", "--device", "cpu", "--no-peers"]);
    // On a busy machine, too.
    command.args(["--budget-s", "3000", "--run-dir"]);
    command.arg(&run).arg("--out").arg(&out);
    let said = say(&mut command)?.ended(0);
    let lines = said.out.lines().take_while(|line| line.starts_with('{'));
    let mut num_lines = 0;
    for line in lines {
        let line: Value = serde_json::from_str(line)?;
        assert_eq!(line["note"], "rehearsal on the CPU: no GPU figure");
        num_lines += 1;
    }
    let json: Value = serde_json::from_str(&fs::read_to_string(out.join("gpu-check.json"))?)?;
    assert_eq!(json["rehearsal"], true);
    let of = |key: &str| json[key].as_array().cloned().unwrap_or_default();
    let done: Vec<Value> = of("parts")
        .into_iter()
        .filter(|part| part["state"] == "done")
        .map(|part| part["part"].clone())
        .collect();
    assert_eq!(done, OURS, "{json:#}");
    assert!(
        of("parts")
            .iter()
            .any(|part| part["state"] == "not run: --no-peers")
    );
    // Five stages, and then scores of two models and decoding; two sides that compute in one way would be equal.
    let of_part = |part: &str| {
        of("agreement")
            .into_iter()
            .filter(|it| it["part"] == part)
            .collect()
    };
    let [f32, bf16, twice]: [Vec<Value>; 3] = ["agree-f32", "agree-bf16", "twice"].map(of_part);
    assert_eq!((f32.len(), bf16.len(), twice.len()), (8, 6, 5), "{json:#}");
    // One of the device, of each comparison and speed, and of each part.
    let expected = 1 + (8 + 6 + 5) + 4 + of("parts").len();
    assert_eq!(num_lines, expected, "{}", said.out);
    for finding in [&f32, &bf16].into_iter().flatten() {
        let largest = finding["largest_difference"]
            .as_f64()
            .ok_or("no difference")?;
        let is_share = finding["compared"].to_string().contains("share");
        assert!(largest > 0.0 || is_share, "{finding}");
    }
    assert_eq!(of("speed").len(), 4);
    for row in of("speed") {
        assert_eq!(row["on_gpu"], false);
        assert!(
            row["median"].as_f64().is_some_and(|median| median > 0.0),
            "{row}"
        );
        assert!(
            row["shares"].as_object().is_some_and(|it| !it.is_empty()),
            "{row}"
        );
    }
    let table = fs::read_to_string(out.join("gpu-check.md"))?;
    assert!(
        table.contains("**rehearsal on the CPU: no GPU figure**"),
        "{table}"
    );
    Ok(())
}

#[test]
fn without_time_nothing_is_begun_and_another_folder_is_left_alone() -> Outcome {
    let folder = scratch()?;
    let check = |more: &[&str]| {
        let mut command = rlhf();
        command.args(["gpu-check", "--device", "cpu", "--no-peers", "--run-dir"]);
        command.arg(folder.path()).args(more);
        say(&mut command)
    };
    check(&[])?
        .ended(2)
        .names(&["not of a gpu-check", "hint: "]);
    fs::write(folder.path().join("gpu-check"), "")?;
    let said = check(&["--budget-s", "1", "--parts", "twice"])?;
    assert!(said.out.contains("not run: "), "{said:?}");
    assert!(!folder.path().join("twice").exists());
    Ok(())
}
