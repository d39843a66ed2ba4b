//! What `rlhf model` says of models' files: `show`, `diff`, `convert`.

use std::fs;

use crate::support::{Outcome, Said, copy_tree, finished_run, repository, rlhf, say, scratch};

fn model(arguments: &[&str]) -> Outcome<Said> {
    say(rlhf().arg("model").args(arguments))
}

#[test]
fn show_names_family_shape_files_tokenizer_and_parents() -> Outcome {
    let sft = finished_run().join("sft/final");
    let sft = sft.to_string_lossy();
    let said = model(&["show", &sft, "--tensors"])?.ended(0);
    for words in [
        "family",
        "layers",
        "model.safetensors: ",
        "F32",
        "replies end with",
        "made by     sft, step ",
        "made from   stage:pretrain",
        "model.embed_tokens.weight",
    ] {
        assert!(
            said.out.contains(words),
            "`{words}` is not in\n{}",
            said.out
        );
    }
    let gguf = repository().join("tests/golden/llama.gguf");
    let said = model(&["show", &gguf.to_string_lossy(), "--tensors"])?.ended(0);
    for words in ["llama.gguf: ", "Q8_0", "token_embd.weight"] {
        assert!(
            said.out.contains(words),
            "`{words}` is not in\n{}",
            said.out
        );
    }
    model(&["show", "nowhere"])?
        .ended(2)
        .names(&["nowhere", "does not exist", "hint: "]);
    model(&["show", &repository().join("Makefile").to_string_lossy()])?
        .ended(1)
        .names(&["Makefile"]);
    Ok(())
}

#[test]
fn show_says_that_a_config_is_broken() -> Outcome {
    let folder = scratch()?;
    let sft = folder.path().join("sft");
    copy_tree(&finished_run().join("sft/final"), &sft)?;
    fs::remove_file(sft.join("manifest.json"))?;
    fs::write(sft.join("config.json"), "{")?;
    let said = model(&["show", &sft.to_string_lossy()])?.ended(0);
    assert!(
        said.out.contains("config.json is not what it should be"),
        "{}",
        said.out
    );
    Ok(())
}

#[test]
fn rows_of_one_token_have_no_log_probabilities() -> Outcome {
    let folder = scratch()?;
    let data = folder.path().join("rows.jsonl");
    fs::write(&data, "{\"input_ids\":[3]}\n{\"input_ids\":[5]}\n")?;
    let mut score = rlhf();
    score.args(["score", "--model"]);
    score.arg(finished_run().join("sft/final"));
    score.arg("--data").arg(&data);
    let said = say(&mut score)?.ended(0);
    let expected = "{\"input_ids\":[3],\"logprobs\":[]}\n{\"input_ids\":[5],\"logprobs\":[]}\n";
    assert_eq!(said.out, expected);
    Ok(())
}

#[test]
fn diff_ends_with_0_for_equal_models_and_names_what_differs_in_others() -> Outcome {
    let folder = scratch()?;
    let (sft, ppo) = (
        finished_run().join("sft/final"),
        finished_run().join("ppo/final"),
    );
    let (sft, ppo) = (sft.to_string_lossy(), ppo.to_string_lossy());
    let sharded = folder.path().join("sharded");
    let half = folder.path().join("half");
    let (sharded, half) = (sharded.to_string_lossy(), half.to_string_lossy());
    model(&[
        "convert",
        "--model",
        &sft,
        "--out",
        &sharded,
        "--shard-size",
        "40KB",
    ])?
    .ended(0);
    let shown = model(&["show", &sharded])?.ended(0);
    assert!(shown.out.contains("model-00002-of-"), "{}", shown.out);
    let said = model(&["diff", &sft, &sharded])?.ended(0);
    assert!(said.out.starts_with("equal: "), "{}", said.out);

    let said = model(&["diff", &sft, &ppo])?.ended(1).names(&["differ"]);
    assert!(said.out.contains("numbers       model."), "{}", said.out);
    assert!(!said.out.contains("only in"), "{}", said.out);

    model(&[
        "convert", "--model", &sft, "--out", &half, "--dtype", "bf16",
    ])?
    .ended(0);
    let said = model(&["diff", &sft, &half])?.ended(1);
    assert!(
        said.out.contains("config.json   torch_dtype"),
        "{}",
        said.out
    );
    assert!(said.out.contains("numbers       "), "{}", said.out);
    model(&["diff", &sft, "nowhere"])?
        .ended(2)
        .names(&["nowhere"]);
    Ok(())
}

#[test]
fn diff_says_which_tensors_and_shapes_are_in_one_only() -> Outcome {
    let folder = scratch()?;
    let reward = folder.path().join("reward");
    copy_tree(&finished_run().join("reward/final"), &reward)?;
    let reward = reward.to_string_lossy();
    let sft = finished_run().join("sft/final");
    let said = model(&["diff", &sft.to_string_lossy(), &reward])?.ended(1);
    assert!(
        said.out.contains("only in 2nd  score.weight"),
        "{}",
        said.out
    );
    fs::remove_file(folder.path().join("reward/tokenizer.json"))?;
    let said = model(&[
        "diff",
        &finished_run().join("reward/final").to_string_lossy(),
        &reward,
    ])?;
    assert!(said.ended(1).out.contains("tokenizer     differs"));
    Ok(())
}
