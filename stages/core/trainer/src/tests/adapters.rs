//! Training of adapters: what is stepped, saved, continued and handed on, and what stays as it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use model::{Model, weights};
use recipe::plan::{LoraPlan, Quantization, Source};
use runtime::manifest::{Manifest, files_below};
use runtime::run_folder::{RunFolder, StageFolder};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::stage::{context, train};
use super::{Outcome, batch, bytes, input, options, plan, targets, tiny_model, tiny_tokenizer};
use crate::{
    Contents, Ema, Ranks, RestorePart, SnapshotPart, StageContext, Stepper, finish, lm_micro_step,
    restore_snapshot, save_snapshot,
};

fn lora() -> LoraPlan {
    LoraPlan {
        r: 2,
        alpha: 4.0,
        dropout: 0.0,
        rslora: false,
        target_modules: vec!["mlp.down_proj".to_owned(), "self_attn.q_proj".to_owned()],
    }
}

fn bits(tensors: &BTreeMap<String, Tensor>) -> Vec<Vec<u8>> {
    tensors.values().map(bytes).collect()
}

fn names(root: &Path) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let inside = |path: PathBuf| Some(path.strip_prefix(root).ok()?.display().to_string());
    let mut names: Vec<String> = files_below(root)?.into_iter().filter_map(inside).collect();
    names.sort();
    Ok(names)
}

/// The tiny model in a folder, as tensors and as codes.
fn bases(dir: &Path, kind: Kind) -> Result<[Model; 3], Box<dyn std::error::Error>> {
    tiny_model(1, kind).save(dir)?;
    let load = |quantize| Model::load_frozen(dir, Device::Cpu, kind, quantize);
    let codes = [Quantization::Int8, Quantization::Int4].map(|quantize| load(Some(quantize)));
    let [int8, int4] = codes;
    Ok([load(None)?, int8?, int4?])
}

/// What must stay as it is: the tensors, and the numbers that codes stand for.
fn frozen_bits(base: &Model) -> Vec<Vec<u8>> {
    bits(base.dequantized().params())
}

#[test]
fn a_session_of_adapters_that_died_ends_with_the_same_bytes() -> Outcome {
    let dir = tempfile::tempdir()?;
    for base in bases(dir.path(), Kind::Float)? {
        session_that_died(&base)?;
    }
    Ok(())
}

fn session_that_died(base: &Model) -> Outcome {
    let frozen = frozen_bits(base);
    // A session starts from other adapters each time: only the snapshot can bring the right ones back.
    let adapted = |seed| base.share().with_new_adapter(&lora(), "base", seed);
    let (whole, broken) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (whole, broken) = (context(whole.path())?, context(broken.path())?);
    train(&whole, adapted(1), u64::MAX)?;
    for (until, seed) in [(1, 1), (3, 1), (5, 2), (6, 3), (u64::MAX, 4)] {
        train(&broken, adapted(seed), until)?;
    }
    assert!(frozen_bits(base) == frozen, "frozen weights have changed");
    let final_files = names(&whole.stage.final_dir())?;
    for file in &final_files {
        let read = |ctx: &StageContext| fs::read(ctx.stage.final_dir().join(file));
        // The manifests name parents by the folders' own hashes, which are equal.
        assert!(read(&whole)? == read(&broken)?, "{file} is another");
    }
    for file in ["model.safetensors", "adapter/adapter_model.safetensors"] {
        assert!(
            final_files.iter().any(|name| name == file),
            "{final_files:?}"
        );
    }
    // A snapshot holds adapters, and the training state of nothing else.
    let snapshot = broken.stage.snapshot_dir(6);
    let files = names(&snapshot)?;
    assert!(
        files.contains(&"adapter_model.safetensors".to_owned()),
        "{files:?}"
    );
    assert!(
        !files.contains(&"model.safetensors".to_owned()),
        "{files:?}"
    );
    let state = weights::read(&snapshot.join("training/model.safetensors"))?;
    assert_eq!(state.len(), 4 * 2 * 2 * 2);
    assert!(
        state.keys().all(|name| name.contains(".lora_")),
        "{:?}",
        state.keys()
    );
    Ok(())
}

#[test]
fn final_is_merged_and_names_its_adapters() -> Outcome {
    let dir = tempfile::tempdir()?;
    let ctx = context(dir.path())?;
    let base = tiny_model(1, Kind::Float);
    let source = Source::Stage {
        name: "pretrain".to_owned(),
    };
    let start = ctx.adapt(base.share(), Some(&lora()), &source, "adapters");
    let other = ctx.adapt(base.share(), Some(&lora()), &source, "other adapters");
    assert!(bits(&start.trainable()) != bits(&other.trainable()));
    assert!(
        !ctx.adapt(base.share(), None, &source, "adapters")
            .has_adapter()
    );
    train(&ctx, start, u64::MAX)?;
    let root = ctx.stage.final_dir();
    let manifest = Manifest::verify(&root)?.ok_or("no manifest")?;
    assert_eq!(manifest.notes["adapter"], "adapter");
    let config: serde_json::Value =
        runtime::files::read_json(&root.join("adapter/adapter_config.json"))?;
    assert_eq!(config["base_model_name_or_path"], "pretrain/final");
    let merged = Model::load(&root, Device::Cpu, Kind::Float)?;
    let adapted = base.with_adapter(&root.join("adapter"))?;
    assert!(bits(adapted.merged()?.params()) == bits(merged.params()));
    assert!(
        bits(base.params()) != bits(merged.params()),
        "nothing was learned"
    );
    Ok(())
}

/// A policy with an average, and a value model, on one backbone.
struct Run {
    models: [Model; 2],
    steppers: [Stepper; 2],
    ema: Ema,
}

impl Run {
    fn new(backbone: &Model, seed: u64) -> Self {
        let policy = backbone.share().with_new_adapter(&lora(), "base", seed);
        let value = backbone.fork().with_new_adapter(&lora(), "base", seed + 1);
        let steppers = [&policy, &value].map(|model| Stepper::new(model, &plan(), 6));
        Self {
            ema: Ema::new(&steppers[0], 0.9),
            models: [policy, value],
            steppers,
        }
    }

    fn train(&mut self, steps: std::ops::Range<u64>) -> Outcome {
        for step in steps {
            for (model, stepper) in self.models.iter().zip(&mut self.steppers) {
                let (ids_bt, mask_bt) = batch(4, 8, step as i64);
                let targets = targets(&ids_bt, &mask_bt);
                let scale = 1.0 / targets.len() as f64;
                lm_micro_step(model, &input(&ids_bt), &targets, scale, &options(), |_| {
                    Ok(())
                })?;
                stepper.accumulate()?;
                stepper.update(step)?;
            }
            self.ema.update(&self.steppers[0]);
        }
        Ok(())
    }

    fn save(&self, stage: &StageFolder, step: u64) -> Outcome {
        let part = |index: usize, name, ema| SnapshotPart {
            name,
            model: &self.models[index],
            stepper: &self.steppers[index],
            ema,
        };
        let parts = [part(0, "policy", Some(&self.ema)), part(1, "value", None)];
        let manifest = Manifest::new("checkpoint", "ppo", step);
        let tokenizer = tiny_tokenizer()?;
        let contents = Contents {
            parts: &parts,
            tokenizer: &tokenizer,
            state: json!(null),
        };
        save_snapshot(&Ranks::alone(), stage, step, &contents, manifest)?;
        Ok(())
    }

    fn restore(&mut self, dir: &Path) -> Outcome {
        let [policy, value] = &mut self.steppers;
        let mut parts = [
            RestorePart {
                name: "policy",
                stepper: policy,
                ema: Some(&mut self.ema),
            },
            RestorePart {
                name: "value",
                stepper: value,
                ema: None,
            },
        ];
        restore_snapshot(dir, &mut parts)?;
        Ok(())
    }

    fn all_bits(&self) -> Vec<Vec<u8>> {
        let of_model = |model: &Model| bits(&model.trainable());
        let of_stepper = |stepper: &Stepper| bits(&stepper.optimizer().state());
        let models = self.models.iter().flat_map(of_model);
        let steppers = self.steppers.iter().flat_map(of_stepper);
        models
            .chain(steppers)
            .chain(bits(&self.ema.state()))
            .collect()
    }
}

#[test]
fn models_on_one_backbone_continue_to_the_bit_and_leave_it_as_it_is() -> Outcome {
    for kind in [Kind::Float, Kind::BFloat16] {
        let dir = tempfile::tempdir()?;
        let bases = bases(dir.path(), kind)?;
        for backbone in &bases {
            on_one_backbone(backbone, &bases[0])?;
        }
    }
    Ok(())
}

/// `dense` is what the backbone was read from, as tensors.
fn on_one_backbone(backbone: &Model, dense: &Model) -> Outcome {
    let dir = tempfile::tempdir()?;
    let stage = RunFolder::open_or_create(dir.path())?.stage("ppo");
    fs::create_dir_all(stage.root())?;
    let kind = backbone.kind();
    let frozen = frozen_bits(backbone);
    let mut whole = Run::new(backbone, 1);
    whole.train(0..2)?;
    whole.save(&stage, 2)?;
    whole.train(2..4)?;
    let mut resumed = Run::new(backbone, 50);
    assert!(resumed.all_bits() != whole.all_bits());
    resumed.restore(&stage.snapshot_dir(2))?;
    resumed.train(2..4)?;
    assert!(resumed.all_bits() == whole.all_bits(), "{kind:?}");
    assert!(frozen_bits(backbone) == frozen, "{kind:?}");
    assert!(!backbone.params().values().any(Tensor::requires_grad));

    // The average of the adapters is what is handed on, on the weights as they were.
    whole.ema.apply(&mut whole.steppers[0])?;
    let [policy, _] = &whole.models;
    let manifest = Manifest::new("checkpoint", "ppo", 4);
    let (ranks, dir) = (Ranks::alone(), stage.final_dir());
    finish(&ranks, &dir, &[("", policy)], &tiny_tokenizer()?, manifest)?;
    let read = dense.with_adapter(&stage.final_dir().join("adapter"))?;
    let merged = Model::load(&stage.final_dir(), Device::Cpu, kind)?;
    assert!(bits(merged.params()) == bits(read.merged()?.params()));
    for (name, average) in whole.ema.state() {
        let name = name.trim_end_matches(".ema");
        assert_eq!(
            bytes(&read.trainable()[name]),
            bytes(&average.to_kind(kind)),
            "{name}"
        );
    }
    Ok(())
}
