//! A stage's frame: micro-batches of unequal rows, the session's exact resume, the context's books.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use recipe::plan::{
    Dtype, Duration, Execution, Overlong, SftPlan, Sharding, Source, StagePlan, Task, TrainPlan,
};
use runtime::hash::{hash_bytes, hash_file};
use runtime::manifest::Manifest;
use runtime::metrics::{Metrics, read_metrics};
use runtime::run_folder::RunFolder;
use tch::{Device, Kind};

use super::{Outcome, grads_of, norm, plan, shape, tiny_model, tiny_tokenizer};
use crate::{
    LmOptions, LmRow, Ranks, Session, StageContext, Stepper, TrainerError, lm_backward,
    lm_evaluate, num_steps,
};

pub(super) fn rows(step: u64) -> Vec<LmRow> {
    let row = |i: u64| {
        let len = 3 + (i * 5 + step) % 9;
        let ids = (0..len)
            .map(|t| ((i * 131 + t * 17 + step * 7) % 260) as u32)
            .collect();
        let loss: Vec<bool> = (0..len).map(|t| !(t + i).is_multiple_of(3)).collect();
        LmRow::next_tokens(ids, &loss)
    };
    (0..8).map(row).collect()
}

pub(super) fn options(micro_batch: usize) -> LmOptions {
    LmOptions {
        micro_batch,
        pad_id: 1,
        coef: 0.5,
        checkpointing: false,
        dropout: 0.0,
        dropout_key: 0,
    }
}

#[test]
fn micro_batches_of_unequal_rows_give_the_gradients_of_the_whole() -> Outcome {
    let model = tiny_model(1, Kind::Double);
    let mut reference: Option<(f64, BTreeMap<_, _>)> = None;
    for micro_batch in [8, 3, 1] {
        let mut stepper = Stepper::new(&model, &plan(), 1);
        model.zero_grad();
        let loss = lm_backward(&model, &mut stepper, &rows(0), &options(micro_batch))?;
        let evaluated = lm_evaluate(&model, &rows(0), 1, micro_batch, &Ranks::alone())?;
        assert!((evaluated.mean() - loss.mean()).abs() < 1e-9);
        let grads = grads_of(&model);
        let (mean, expected) = reference.get_or_insert_with(|| (loss.mean(), grads_of(&model)));
        assert!((loss.mean() - *mean).abs() < 1e-9);
        for (name, grad) in &grads {
            let gap = norm(&(grad - &expected[name]));
            assert!(gap < 1e-9, "micro-batches of {micro_batch}, {name}: {gap}");
        }
    }
    Ok(())
}

#[test]
fn durations_become_updates() {
    assert_eq!(num_steps(Duration::Steps(7), 100, 8), 7);
    assert_eq!(num_steps(Duration::Epochs(2.0), 100, 8), 25);
    assert_eq!(num_steps(Duration::Epochs(1.0), 100, 8), 13);
    assert_eq!(num_steps(Duration::Epochs(0.01), 100, 8), 1);
}

fn train_plan() -> TrainPlan {
    TrainPlan {
        batch: 8,
        duration: Duration::Steps(7),
        optimizer: plan(),
        eval_every: 3,
        eval_examples: 8,
        dropout: 0.0,
        nonfinite_skip: 0,
    }
}

/// A run folder whose only stage fine-tunes on a file that is there.
pub(super) fn context(dir: &Path) -> Result<StageContext, Box<dyn std::error::Error>> {
    let (data, model) = (dir.join("data.parquet"), dir.join("base"));
    fs::write(&data, "data")?;
    fs::create_dir_all(&model)?;
    fs::write(model.join("config.json"), "{}")?;
    let stage = StagePlan {
        name: "sft".to_owned(),
        task: Task::Sft(SftPlan {
            lora: None,
            quantize: None,
            model: Source::Path { path: model },
            shape: shape(),
            data: Source::Path { path: data },
            context: 16,
            overlong: Overlong::Error,
            pretrain: None,
            train: train_plan(),
        }),
        execution: Execution {
            dtype: Dtype::F32,
            micro_batch: 3,
            sample_batch: 1,
            checkpointing: false,
            sharding: Sharding::None,
            save_every: 2,
            keep: 1,
        },
    };
    let run = RunFolder::open_or_create(&dir.join("run"))?;
    Ok(StageContext::new(
        run,
        stage,
        1,
        Device::Cpu,
        Ranks::alone(),
    )?)
}

/// The loop of a stage; "dies" after `until` updates. Every model it starts with is another one, so
/// that only the snapshot can bring the right weights back.
pub(super) fn train(ctx: &StageContext, model: model::Model, until: u64) -> Outcome {
    let plan = train_plan();
    let mut session = Session::open(ctx, &plan, model, tiny_tokenizer()?, 100)?;
    while session.is_running() {
        if session.step == until {
            return Ok(());
        }
        let (batch, mut metrics) = (rows(session.step), Metrics::new());
        let loss = lm_backward(&session.model, &mut session.stepper, &batch, &options(3))?;
        session.update(&batch, &mut metrics)?;
        metrics.insert("loss/train", loss.mean());
        if session.evaluation_is_due() {
            // The evaluation after update 3 is the best, whatever the model says.
            session.select((session.step as f64 - 3.0).abs());
        }
        session.end_step(metrics, 2, 8)?;
    }
    let selected = session.restore_best()?;
    assert_eq!(selected, 3);
    session.finish(selected)?;
    Ok(())
}

#[test]
fn a_session_that_died_ends_with_the_same_bytes() -> Outcome {
    let start = tiny_model(1, Kind::Float);
    let (whole, broken) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (whole, broken) = (context(whole.path())?, context(broken.path())?);
    train(&whole, start.deep_copy(), u64::MAX)?;
    // Dies before any snapshot, after one, in the middle between two, and after the best.
    for (until, model) in [(1, start.deep_copy()), (3, start.deep_copy())] {
        train(&broken, model, until)?;
    }
    for until in [5, 6, u64::MAX] {
        train(&broken, tiny_model(100 + until % 7, Kind::Float), until)?;
    }
    let weights = |ctx: &StageContext| fs::read(ctx.stage.final_dir().join("model.safetensors"));
    assert!(weights(&whole)? == weights(&broken)?, "the weights differ");
    let losses = |ctx: &StageContext| -> Result<Vec<f64>, Box<dyn std::error::Error>> {
        let rows = read_metrics(&ctx.stage.metrics_path())?;
        Ok(rows.iter().map(|row| row.values["loss/train"]).collect())
    };
    assert_eq!(losses(&whole)?, losses(&broken)?);
    assert_eq!(losses(&whole)?.len(), 7);
    // The best and the newest are kept.
    let steps: Vec<u64> = broken
        .stage
        .snapshots()?
        .into_iter()
        .map(|(step, _)| step)
        .collect();
    assert_eq!(steps, [3, 6]);
    Ok(())
}

#[test]
fn a_context_knows_its_parents_and_dumps_bad_batches() -> Outcome {
    let dir = tempfile::tempdir()?;
    let ctx = context(dir.path())?;
    assert_eq!(ctx.parents().len(), 2);
    assert_eq!(ctx.parents()["data"], hash_bytes(b"data"));
    let foreign = ctx.parents()["model"].clone();
    let sealed = Manifest::new("checkpoint", "elsewhere", 1).seal(&dir.path().join("base"))?;
    let again = context(dir.path())?;
    assert_eq!(again.parents()["model"], sealed.id());
    assert_ne!(foreign, sealed.id());
    let manifest = again.manifest("checkpoint", 4);
    assert_eq!((manifest.stage.as_str(), manifest.step), ("sft", 4));
    assert_eq!(manifest.config["context"], 16);
    assert_eq!(manifest.config["data"]["content"], hash_bytes(b"data"));
    assert_eq!(manifest.config["data"].get("path"), None);
    let from_stage = Source::Stage {
        name: "base".to_owned(),
    };
    assert_eq!(ctx.path(&from_stage), ctx.run.root().join("base/final"));

    let nonfinite = || TrainerError::NonFinite {
        step: 12,
        loss: f64::NAN,
        grad_norm: 1.0,
        tensor: None,
        skipped: 0,
        allowed: 0,
    };
    let dumped = ctx.dump_if_nonfinite::<()>(Err(nonfinite()), || rows(0).len().into());
    assert!(dumped.is_err());
    let path = ctx.stage.root().join("nonfinite-000012.json");
    assert_eq!(hash_file(&path)?, hash_bytes(b"8\n"));
    Ok(())
}
