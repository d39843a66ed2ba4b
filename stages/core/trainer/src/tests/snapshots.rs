//! Snapshots: exact continuation, damage, a full disk, retention, and the final checkpoint.

use std::fs;
use std::path::Path;

use model::Model;
use runtime::files::FileError;
use runtime::manifest::Manifest;
use runtime::run_folder::{RunFolder, StageFolder};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::{Outcome, batch, bytes, input, options, plan, targets, tiny_model, tiny_tokenizer};
use crate::snapshot::snapshot_bytes;
use crate::{
    Contents, Ema, Ranks, RestorePart, SnapshotPart, Stepper, TrainerError, finish,
    latest_valid_snapshot, lm_micro_step, restore_snapshot, retain, save_snapshot,
};

/// A policy with an average, and a value model without: both trained on the next token here.
struct Run {
    policy: Model,
    policy_stepper: Stepper,
    ema: Ema,
    value: Model,
    value_stepper: Stepper,
}

impl Run {
    fn new(seed: u64, kind: Kind) -> Self {
        let (policy, value) = (tiny_model(seed, kind), tiny_model(seed + 1, kind));
        let policy_stepper = Stepper::new(&policy, &plan(), 6).with_nonfinite_skip(1);
        let value_stepper = Stepper::new(&value, &plan(), 6);
        let ema = Ema::new(&policy_stepper, 0.9);
        Self {
            policy,
            policy_stepper,
            ema,
            value,
            value_stepper,
        }
    }

    fn train(&mut self, steps: std::ops::Range<u64>) -> Outcome {
        for step in steps {
            let models = [
                (&self.policy, &mut self.policy_stepper),
                (&self.value, &mut self.value_stepper),
            ];
            for (model, stepper) in models {
                let (ids_bt, mask_bt) = batch(4, 8, step as i64);
                let scale = 1.0 / targets(&ids_bt, &mask_bt).len() as f64;
                for row in 0..4 {
                    let [ids_bt, mask_bt] = [&ids_bt, &mask_bt].map(|all| all.narrow(0, row, 1));
                    let targets = targets(&ids_bt, &mask_bt);
                    lm_micro_step(model, &input(&ids_bt), &targets, scale, &options(), |_| {
                        Ok(())
                    })?;
                    stepper.accumulate()?;
                }
                stepper.update(step)?;
            }
            self.ema.update(&self.policy_stepper);
        }
        Ok(())
    }

    fn parts(&self) -> [SnapshotPart<'_>; 2] {
        let (policy, value) = (&self.policy_stepper, &self.value_stepper);
        [
            SnapshotPart {
                name: "policy",
                model: &self.policy,
                stepper: policy,
                ema: Some(&self.ema),
            },
            SnapshotPart {
                name: "value",
                model: &self.value,
                stepper: value,
                ema: None,
            },
        ]
    }

    fn save(&self, stage: &StageFolder, step: u64) -> Result<(), Box<dyn std::error::Error>> {
        let manifest = Manifest::new("checkpoint", "ppo", step);
        let contents = Contents {
            parts: &self.parts(),
            tokenizer: &tiny_tokenizer()?,
            state: json!({"cursor": step, "kl_coef": 0.1}),
        };
        save_snapshot(&Ranks::alone(), stage, step, &contents, manifest)?;
        Ok(())
    }

    fn restore(&mut self, dir: &Path) -> Result<serde_json::Value, TrainerError> {
        let (policy, value) = (&mut self.policy_stepper, &mut self.value_stepper);
        let ema = Some(&mut self.ema);
        let mut parts = [
            RestorePart {
                name: "policy",
                stepper: policy,
                ema,
            },
            RestorePart {
                name: "value",
                stepper: value,
                ema: None,
            },
        ];
        restore_snapshot(dir, &mut parts)
    }

    /// Every tensor that matters, as bytes.
    fn all_bytes(&self) -> Vec<(String, Vec<u8>)> {
        let parameters = self.policy.params().iter();
        let parameters = parameters.map(|(name, param)| (name.clone(), param.shallow_clone()));
        let policy = self.policy_stepper.optimizer().state().into_iter();
        let value = self.value_stepper.optimizer().state().into_iter();
        let all = parameters
            .chain(policy)
            .chain(value)
            .chain(self.ema.state());
        all.map(|(name, tensor)| (name, bytes(&tensor))).collect()
    }
}

fn stage(dir: &Path) -> Result<StageFolder, Box<dyn std::error::Error>> {
    let stage = RunFolder::open_or_create(dir)?.stage("ppo");
    fs::create_dir(stage.root())?;
    Ok(stage)
}

fn steps_of(stage: &StageFolder) -> Result<Vec<u64>, std::io::Error> {
    Ok(stage
        .snapshots()?
        .into_iter()
        .map(|(step, _)| step)
        .collect())
}

#[test]
fn a_restored_run_continues_to_the_bit() -> Outcome {
    for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
        let dir = tempfile::tempdir()?;
        let stage = stage(dir.path())?;
        let mut run = Run::new(1, kind);
        run.train(0..3)?;
        run.policy_stepper.observe_loss(f64::NAN);
        assert!(run.policy_stepper.update(3)?.was_skipped);
        run.save(&stage, 3)?;
        run.train(3..6)?;

        let (step, path) = latest_valid_snapshot(&stage)?.ok_or("no snapshot")?;
        assert_eq!(step, 3);
        let mut other = Run::new(50, kind);
        assert_eq!(other.restore(&path)?, json!({"cursor": 3, "kl_coef": 0.1}));
        assert_eq!(other.policy_stepper.skipped(), 1);
        assert_ne!(other.all_bytes(), run.all_bytes());
        other.train(3..6)?;
        for (found, expected) in other.all_bytes().into_iter().zip(run.all_bytes()) {
            assert!(found == expected, "{} differs in {kind:?}", expected.0);
        }
    }
    Ok(())
}

#[test]
fn a_snapshot_holds_models_that_can_be_loaded() -> Outcome {
    let dir = tempfile::tempdir()?;
    let stage = stage(dir.path())?;
    let mut run = Run::new(1, Kind::Float);
    run.train(0..2)?;
    run.save(&stage, 2)?;
    let root = stage.snapshot_dir(2);
    for (model, dir) in [
        (&run.policy, root.clone()),
        (&run.value, root.join("value")),
    ] {
        let loaded = Model::load(&dir, Device::Cpu, Kind::Float)?;
        for (name, param) in model.params() {
            assert_eq!(bytes(param), bytes(&loaded.params()[name]), "{name}");
        }
    }
    let size = |path: &Path| fs::metadata(path).map(|metadata| metadata.len());
    let files = runtime::manifest::files_below(&root)?;
    let written = files
        .iter()
        .map(|path| size(path))
        .sum::<Result<u64, _>>()?;
    let estimate = snapshot_bytes(&Contents {
        parts: &run.parts(),
        tokenizer: &tiny_tokenizer()?,
        state: json!(null),
    });
    assert!(
        written <= estimate,
        "{written} bytes written, {estimate} foreseen"
    );
    Ok(())
}

#[test]
fn damage_is_named_and_never_skipped() -> Outcome {
    let dir = tempfile::tempdir()?;
    let stage = stage(dir.path())?;
    assert!(latest_valid_snapshot(&stage)?.is_none());
    let run = Run::new(1, Kind::Float);
    run.save(&stage, 1)?;
    run.save(&stage, 2)?;
    let victim = stage.snapshot_dir(2).join("training/value.safetensors");
    let mut content = fs::read(&victim)?;
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&victim, &content)?;
    let message = latest_valid_snapshot(&stage)
        .err()
        .ok_or("must fail")?
        .to_string();
    assert!(
        message.contains("training/value.safetensors") && message.contains("hint:"),
        "{message}"
    );
    fs::remove_file(stage.snapshot_dir(2).join("manifest.json"))?;
    let error = latest_valid_snapshot(&stage).err().ok_or("must fail")?;
    assert!(matches!(error, TrainerError::NoManifest { .. }), "{error}");
    fs::remove_dir_all(stage.snapshot_dir(2))?;
    assert_eq!(
        latest_valid_snapshot(&stage)?.map(|(step, _)| step),
        Some(1)
    );
    Ok(())
}

#[test]
fn a_snapshot_of_another_run_is_refused_before_anything_changes() -> Outcome {
    let dir = tempfile::tempdir()?;
    let stage = stage(dir.path())?;
    Run::new(1, Kind::Float).save(&stage, 1)?;
    let path = stage.snapshot_dir(1);
    let mut other = Run::new(2, Kind::Double);
    let before = other.all_bytes();
    let error = other.restore(&path).err().ok_or("must fail")?;
    assert!(matches!(error, TrainerError::TensorShape { .. }), "{error}");
    assert!(before == other.all_bytes());

    let mut other = Run::new(2, Kind::Float);
    let stepper = &mut other.policy_stepper;
    let mut parts = [RestorePart {
        name: "policy",
        stepper,
        ema: None,
    }];
    let error = restore_snapshot(&path, &mut parts)
        .err()
        .ok_or("must fail")?;
    assert!(matches!(error, TrainerError::State { .. }), "{error}");
    let value = &mut other.value_stepper;
    let stepper = &mut other.policy_stepper;
    let mut parts = [
        RestorePart {
            name: "policy",
            stepper,
            ema: None,
        },
        RestorePart {
            name: "value",
            stepper: value,
            ema: None,
        },
    ];
    let error = restore_snapshot(&path, &mut parts)
        .err()
        .ok_or("must fail")?;
    assert!(
        matches!(
            error,
            TrainerError::TensorName {
                problem: "unexpected",
                ..
            }
        ),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_full_disk_leaves_the_previous_snapshot() -> Outcome {
    let dir = tempfile::tempdir()?;
    let stage = stage(dir.path())?;
    let mut run = Run::new(1, Kind::Float);
    run.save(&stage, 1)?;
    // A tensor that claims four pebibytes and occupies four bytes: no disk has room for it.
    let huge = Tensor::zeros([1], (Kind::Float, Device::Cpu)).expand([1 << 50], false);
    run.ema.averages.insert("huge".into(), huge);
    let tokenizer = tiny_tokenizer()?;
    let save = |step, parts: &[SnapshotPart]| {
        let manifest = Manifest::new("checkpoint", "ppo", step);
        let contents = Contents {
            parts,
            tokenizer: &tokenizer,
            state: json!(null),
        };
        save_snapshot(&Ranks::alone(), &stage, step, &contents, manifest)
    };
    let error = save(2, &run.parts()).err().ok_or("must fail")?;
    assert!(
        matches!(error, TrainerError::File(FileError::NoSpace { .. })),
        "{error}"
    );
    run.ema.averages.remove("huge");
    // The system refuses in the middle, after the first model was written.
    let mut parts = run.parts();
    let name = "x".repeat(300);
    parts[1].name = &name;
    let error = save(2, &parts).err().ok_or("must fail")?;
    assert!(
        matches!(error, TrainerError::File(FileError::Io { .. })),
        "{error}"
    );

    assert_eq!(
        latest_valid_snapshot(&stage)?.map(|(step, _)| step),
        Some(1)
    );
    assert_eq!(
        fs::read_dir(stage.root())?.count(),
        1,
        "something was left behind"
    );
    Run::new(9, Kind::Float).restore(&stage.snapshot_dir(1))?;
    Ok(())
}

#[test]
fn retention_keeps_the_newest_and_the_best() -> Outcome {
    let dir = tempfile::tempdir()?;
    let stage = stage(dir.path())?;
    for step in [10, 20, 30, 40, 1_000_000] {
        fs::create_dir(stage.snapshot_dir(step))?;
    }
    retain(&stage, 2, Some(20))?;
    assert_eq!(steps_of(&stage)?, [20, 40, 1_000_000]);
    retain(&stage, 5, None)?;
    assert_eq!(steps_of(&stage)?, [20, 40, 1_000_000]);
    retain(&stage, 0, None)?;
    assert_eq!(steps_of(&stage)?, [1_000_000]);
    assert_eq!(fs::read_dir(stage.root())?.count(), 1);
    Ok(())
}

#[test]
fn the_final_checkpoint_is_sealed_and_loads() -> Outcome {
    let dir = tempfile::tempdir()?;
    let stage = stage(dir.path())?;
    let run = Run::new(1, Kind::Float);
    let mut run = run;
    run.ema.apply(&mut run.policy_stepper)?;
    let mut manifest = Manifest::new("checkpoint", "ppo", 6);
    manifest.notes.insert("selected_step".into(), json!(4));
    let models = [("", &run.policy), ("value", &run.value)];
    let (ranks, dir) = (Ranks::alone(), stage.final_dir());
    finish(&ranks, &dir, &models, &tiny_tokenizer()?, manifest)?;
    let read = Manifest::verify(&dir)?.ok_or("no manifest")?;
    assert_eq!(read.notes["selected_step"], json!(4));
    assert!(read.files.contains_key("value/model.safetensors"));
    assert!(read.files.contains_key("tokenizer.json"));
    let loaded = Model::load(&stage.final_dir(), Device::Cpu, Kind::Float)?;
    for (name, param) in run.policy.params() {
        assert_eq!(bytes(param), bytes(&loaded.params()[name]), "{name}");
    }
    Ok(())
}
