//! A small pipeline for tests: `corpus` (import) -> `tokenizer` -> `pretrain` -> `sft`.

use std::error::Error;
use std::fs;

use recipe::families::Sizes;
use recipe::plan::{
    Dtype, Duration, Execution, ImportPlan, Objective, OptimizerPlan, Overlong, Plan, PretrainPlan,
    Schedule, SftPlan, Sharding, Source, StagePlan, Task, TokenizerPlan, TrainPlan,
};
use recipe::shape::{Family, ModelShape};
use runtime::files::write_json;
use runtime::{Manifest, RunFolder};

use crate::fingerprint::Fingerprints;
use crate::graph::Record;

/// A plan and a run folder in a temporary place.
pub struct Pipeline {
    pub dir: tempfile::TempDir,
    pub plan: Plan,
    pub run: RunFolder,
}

pub fn pipeline() -> Result<Pipeline, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("dialogues.json");
    fs::write(&data, "data")?;
    let run = RunFolder::open_or_create(&dir.path().join("run"))?;
    let import = ImportPlan {
        sentences: None,
        format: "chitchat".into(),
        path: Some(data),
        heldout: 0.1,
        prompt_turns: 1,
        conversations: 0,
    };
    let tokenizer = TokenizerPlan {
        data: from_stage("corpus"),
        vocab_size: 300,
        special_tokens: Vec::new(),
    };
    let pretrain = PretrainPlan {
        start: None,
        data: from_stage("corpus"),
        tokenizer: from_stage("tokenizer"),
        model: shape(),
        objective: Objective::Causal,
        context: 16,
        train: train(),
    };
    let sft = SftPlan {
        lora: None,
        quantize: None,
        model: from_stage("pretrain"),
        shape: shape(),
        data: from_stage("corpus"),
        context: 16,
        overlong: Overlong::Error,
        pretrain: None,
        train: train(),
    };
    let plan = Plan {
        format_version: Plan::FORMAT_VERSION,
        name: "test".into(),
        seed: 1,
        preset: None,
        source: dir.path().join("pipeline.toml"),
        stages: vec![
            stage("corpus", Task::Import(import)),
            stage("tokenizer", Task::Tokenizer(tokenizer)),
            stage("pretrain", Task::Pretrain(pretrain)),
            stage("sft", Task::Sft(sft)),
        ],
        cluster: None,
    };
    Ok(Pipeline { dir, plan, run })
}

impl Pipeline {
    /// Makes a stage look done; gives its manifest's id.
    pub fn finish(&self, name: &str) -> Result<String, Box<dyn Error>> {
        let folder = self.run.stage(name);
        fs::create_dir_all(folder.final_dir())?;
        let manifest = Manifest::new("checkpoint", name, 1).seal(&folder.final_dir())?;
        write_json(&folder.done_path(), &self.record(name)?)?;
        Ok(manifest.id())
    }

    /// Makes a stage look interrupted after some updates.
    pub fn interrupt(&self, name: &str, step: u64) -> Result<(), Box<dyn Error>> {
        let folder = self.run.stage(name);
        fs::create_dir_all(folder.snapshot_dir(step))?;
        write_json(&folder.state_path(), &self.record(name)?)?;
        Ok(())
    }

    fn record(&self, name: &str) -> Result<Record, Box<dyn Error>> {
        let stage = self.plan.stage(name).ok_or("no such stage")?;
        let fingerprint = Fingerprints::new(&self.plan, &self.run).of(stage, &[].into())?;
        Ok(Record::of(&fingerprint))
    }
}

fn stage(name: &str, task: Task) -> StagePlan {
    let execution = Execution {
        dtype: Dtype::F32,
        micro_batch: 1,
        sample_batch: 1,
        checkpointing: false,
        sharding: Sharding::None,
        save_every: 1,
        keep: 1,
    };
    StagePlan {
        name: name.into(),
        task,
        execution,
    }
}

fn from_stage(name: &str) -> Source {
    Source::Stage { name: name.into() }
}

fn shape() -> ModelShape {
    ModelShape {
        mlp_width: 16,
        tie_embeddings: true,
        ..Family::Llama.shape(&Sizes {
            vocab_size: 300,
            max_positions: 16,
            layers: 1,
            width: 8,
            heads: 1,
        })
    }
}

fn train() -> TrainPlan {
    TrainPlan {
        batch: 2,
        duration: Duration::Steps(10),
        optimizer: OptimizerPlan {
            lr: 1e-3,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.0,
            schedule: Schedule::Constant,
            floor: 0.1,
            warmup: 0,
            warmup_from: 0.0,
            clip: 1.0,
        },
        eval_every: 5,
        eval_examples: 4,
        dropout: 0.0,
        nonfinite_skip: 0,
    }
}
