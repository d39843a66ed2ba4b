//! PPO against a reward model that was trained with another tokenizer than the policy's.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use datasets::{Message, Prompt, Split};
use serde_json::{Value, json};

use crate::rollouts::{Rollouts, assert_close, score};
use crate::support::{Outcome, finished_run, rlhf, rlhf_run, say, scratch, tiny};

/// A reward model, hardly trained, of the tests' pipeline with a tokenizer of 400 tokens. (Its policy must say
/// something: replies that are all empty are ties.)
fn train_judge(run_dir: &Path) -> Outcome {
    let mut command = rlhf_run(&tiny(), run_dir);
    command.args(["--until", "reward"]);
    for setting in [
        "tokenizer.vocab_size=400",
        "stages.pretrain.steps=60",
        "stages.sft.steps=30",
        "stages.comparisons.num_prompts=48",
        "stages.comparisons.num_heldout=16",
        "stages.reward.steps=6",
    ] {
        command.args(["--set", setting]);
    }
    say(&mut command)?.ended(0);
    Ok(())
}

fn pipeline(judge: &Path) -> String {
    let finished = finished_run().display();
    format!(
        r#"name = "own"
seed = 3

[stages.ppo]
kind = "ppo"
model = "path:{finished}/sft/final"
reward = [{{ model = "path:{judge}" }}]
prompts = "path:{finished}/corpus/final"
iterations = 2
batch = 16
minibatch = 8
max_prompt_tokens = 46
max_new_tokens = 16
overlong = "drop"
no_eos_score = false
optimizer = {{ lr = 1e-4 }}
value_optimizer = {{ lr = 1e-3 }}
eval_prompts = 8
"#,
        judge = judge.display()
    )
}

/// Prompt and response of each episode as a dialogue, which the reward model's own template writes: the
/// response's turn is closed also where it was cut off.
fn score_rows(rollouts: &Rollouts, prompts: &HashMap<String, Vec<Message>>) -> Outcome<String> {
    let mut rows = String::new();
    let (ids, replies) = (rollouts.texts("id"), rollouts.texts("response_text"));
    for (id, reply) in ids.iter().zip(replies) {
        let mut messages = prompts.get(*id).ok_or("an unknown prompt")?.clone();
        messages.push(Message::new("assistant", reply));
        writeln!(rows, "{}", json!({ "messages": messages }))?;
    }
    Ok(rows)
}

/// The messages of the training prompts, by id.
fn prompts() -> Outcome<HashMap<String, Vec<Message>>> {
    let prompts: Vec<Prompt> =
        datasets::load_split(&finished_run().join("corpus/final"), Split::Train)?;
    let prompts = prompts.into_iter();
    Ok(prompts.map(|prompt| (prompt.id, prompt.messages)).collect())
}

/// What the file says of the scores is what `rlhf score` says of the dialogues.
fn check_scores(rollouts: &Rollouts, judge: &Path) -> Outcome {
    let folder = scratch()?;
    let data = folder.path().join("rows.jsonl");
    fs::write(&data, score_rows(rollouts, &prompts()?)?)?;
    let answers = score(judge, &data)?;
    for (column, key) in [("score_raw", "reward"), ("score", "reward_normalized")] {
        let of_answer = |answer: &Value| answer[key].as_f64();
        let expected: Vec<f64> = answers.iter().filter_map(of_answer).collect();
        assert_close(column, &rollouts.numbers(column), &expected);
    }
    Ok(())
}

#[test]
fn ppo_shows_the_text_to_a_reward_model_of_another_tokenizer() -> Outcome {
    let folder = scratch()?;
    let judge_run = folder.path().join("judge");
    train_judge(&judge_run)?;
    let judge = judge_run.join("reward/final");
    let config = folder.path().join("pipeline.toml");
    fs::write(&config, pipeline(&judge))?;
    let plan = say(rlhf().arg("plan").arg(&config))?.ended(0);
    for line in [
        "the policy, with a head of zeros",
        "reward[0].own_tokenizer",
    ] {
        assert!(plan.out.contains(line), "{line} is not in\n{}", plan.out);
    }
    let adapters = ["--set", "stages.ppo.lora.r=4"];
    for (name, settings) in [("weights", &[][..]), ("adapters", &adapters[..])] {
        let run = folder.path().join(name);
        say(rlhf_run(&config, &run).args(settings))?.ended(0);
        let mut endings = BTreeSet::new();
        for iteration in 1..=2 {
            let path = run.join(format!("ppo/rollouts/iteration-{iteration:06}.parquet"));
            let rollouts = Rollouts::read(&path)?;
            check_scores(&rollouts, &judge)?;
            // Untrained, a value model with a head of zeros says nothing.
            let values = rollouts.lists("values").concat();
            let is_zero = values.iter().all(|value| *value == 0.0);
            assert_eq!(is_zero, iteration == 1, "{name}: values of {iteration}");
            let reasons = rollouts.texts("finish_reason");
            endings.extend(reasons.iter().map(|reason| (*reason).to_owned()));
        }
        let both = BTreeSet::from(["length", "stop"].map(str::to_owned));
        assert_eq!(endings, both, "{name}: both endings occur");

        let read = |file: &str| fs::read(run.join("ppo/final").join(file));
        let value: Value = serde_json::from_slice(&read("value/config.json")?)?;
        assert_eq!(value["vocab_size"], 384, "it reads the policy's ids");
        assert_eq!(read("value/tokenizer.json")?, read("tokenizer.json")?);
    }
    Ok(())
}
