//! A stage's place in its run: where it reads and writes, on what device, from which seed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use datasets::Tokenizer;
use model::Model;
use recipe::plan::{Dtype, Source, StagePlan};
use runtime::files::write_json;
use runtime::hash::{hash_file, hash_json};
use runtime::manifest::{Manifest, files_below};
use runtime::run_folder::{RunFolder, StageFolder};
use tch::{Device, Kind};

use crate::error::TrainerError;

/// What every stage is given.
#[derive(Debug)]
pub struct StageContext {
    /// The run's folder.
    pub run: RunFolder,
    /// The stage's own folder in it.
    pub stage: StageFolder,
    /// What the stage does.
    pub plan: StagePlan,
    /// The pipeline's seed.
    pub seed: u64,
    /// Where tensors live.
    pub device: Device,
    /// Storage format of weights and activations.
    pub kind: Kind,
    parents: BTreeMap<String, String>,
}

impl StageContext {
    /// The context of the stage `plan` of the run in `run`. Everything that the stage is made from is
    /// identified now, so it must be there.
    ///
    /// # Errors
    /// An input that cannot be read.
    pub fn new(
        run: RunFolder,
        plan: StagePlan,
        seed: u64,
        device: Device,
    ) -> Result<Self, TrainerError> {
        let mut parents = BTreeMap::new();
        for (reference, path) in inputs(&plan, &run) {
            parents.insert(reference, identity(&path)?);
        }
        let (stage, kind) = (run.stage(&plan.name), kind_of(plan.execution.dtype));
        Ok(Self {
            run,
            stage,
            plan,
            seed,
            device,
            kind,
            parents,
        })
    }

    /// The file or folder that a source stands for: a stage's `final/`, or the path itself.
    pub fn path(&self, source: &Source) -> PathBuf {
        path_of(source, &self.run)
    }

    /// The tokenizer in the source's folder.
    ///
    /// # Errors
    /// A tokenizer that is missing or malformed.
    pub fn load_tokenizer(&self, source: &Source) -> Result<Tokenizer, TrainerError> {
        Ok(Tokenizer::load(&self.path(source))?)
    }

    /// The model in the source's folder, on the stage's device in its storage format.
    ///
    /// # Errors
    /// A model that is missing, malformed or damaged.
    pub fn load_model(&self, source: &Source) -> Result<Model, TrainerError> {
        Ok(Model::load(&self.path(source), self.device, self.kind)?)
    }

    /// What the stage is made from: reference (`stage:sft`, `path:/data/x.parquet`) -> manifest id (where
    /// there is no manifest: a hash of the contents).
    pub fn parents(&self) -> &BTreeMap<String, String> {
        &self.parents
    }

    /// A manifest of something that this stage makes (`checkpoint`, `dataset` or `tokenizer`), with
    /// parents and configuration filled in.
    pub fn manifest(&self, kind: &str, step: u64) -> Manifest {
        let mut manifest = Manifest::new(kind, &self.plan.name, step);
        manifest.parents.clone_from(&self.parents);
        manifest.config = serde_json::json!(self.plan.task);
        manifest
    }

    /// Passes on the result of an update; where it stopped on non-finite numbers, first writes `batch()`
    /// to `nonfinite-NNNNNN.json` in the stage's folder (the number is the step).
    ///
    /// # Errors
    /// That of `result`, or that of writing.
    pub fn dump_if_nonfinite<T>(
        &self,
        result: Result<T, TrainerError>,
        batch: impl FnOnce() -> serde_json::Value,
    ) -> Result<T, TrainerError> {
        if let Err(TrainerError::NonFinite { step, .. }) = &result {
            let path = self.stage.root().join(format!("nonfinite-{step:06}.json"));
            write_json(&path, &batch())?;
            tracing::error!("the batch of step {step} is in {}", path.display());
        }
        result
    }
}

/// The tensor format of a plan's dtype.
pub fn kind_of(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::F64 => Kind::Double,
    }
}

fn path_of(source: &Source, run: &RunFolder) -> PathBuf {
    match source {
        Source::Stage { name } => run.stage(name).final_dir(),
        Source::Path { path } => path.clone(),
    }
}

/// Reference and path of everything that a stage reads.
fn inputs(plan: &StagePlan, run: &RunFolder) -> Vec<(String, PathBuf)> {
    let named = |(_, source): (String, Source)| {
        let reference = match &source {
            Source::Stage { name } => format!("stage:{name}"),
            Source::Path { path } => format!("path:{}", path.display()),
        };
        (reference, path_of(&source, run))
    };
    plan.inputs().into_iter().map(named).collect()
}

/// What a file or folder is: its manifest's id, or a hash of its contents.
fn identity(path: &Path) -> Result<String, TrainerError> {
    if !path.is_dir() {
        return Ok(hash_file(path)?);
    }
    if let Some(manifest) = Manifest::read(path)? {
        return Ok(manifest.id());
    }
    let mut hashes = BTreeMap::new();
    for file in files_below(path)? {
        let name = file
            .strip_prefix(path)
            .unwrap_or(&file)
            .to_string_lossy()
            .into_owned();
        hashes.insert(name, hash_file(&file)?);
    }
    Ok(hash_json(&hashes))
}
