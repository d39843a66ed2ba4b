//! A stage's place in its run: where it reads and writes, on what device, from which seed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use datasets::Tokenizer;
use model::{Checkpoint, Model};
use recipe::plan::{Dtype, LoraPlan, Quantization, Sharding, Source, StagePlan};
use recipe::shape::{ModelShape, Positions};
use runtime::files::write_json;
use runtime::manifest::Manifest;
use runtime::run_folder::{RunFolder, StageFolder};
use runtime::seeds;
use tch::{Device, Kind};

use crate::error::TrainerError;
use crate::exchange::Division;
use crate::memory::begin_peak;
use crate::ranks::Ranks;
use crate::utilisation::Peak;

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
    /// This process among those that run the stage.
    pub ranks: Rc<Ranks>,
    /// What the devices of all ranks can do at most.
    pub peak: Peak,
    /// Bytes in memory before there was a model (metric `memory/start`).
    pub memory_at_start: Option<u64>,
    inputs: Vec<Input>,
}

/// Something that the stage is made from.
#[derive(Debug)]
struct Input {
    key: String,
    source: Source,
    id: String,
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
        ranks: Ranks,
    ) -> Result<Self, TrainerError> {
        let mut inputs = Vec::new();
        for (key, source) in plan.inputs() {
            let id = source.content_id(&run, Manifest::read)?;
            inputs.push(Input { key, source, id });
        }
        let (stage, kind) = (run.stage(&plan.name), kind_of(plan.execution.dtype));
        // A first large product loads what libtorch brings for it.
        let mut peak = Peak::measure(device, kind);
        peak.flops_per_second *= ranks.size() as f64;
        let memory_at_start = begin_peak(device)?;
        Ok(Self {
            run,
            stage,
            plan,
            seed,
            device,
            kind,
            ranks: Rc::new(ranks),
            peak,
            memory_at_start,
            inputs,
        })
    }

    /// How the training of a model is divided among the ranks.
    pub fn division(&self) -> Division {
        Division {
            ranks: Rc::clone(&self.ranks),
            sharding: self.plan.execution.sharding,
        }
    }

    /// `model` as this rank keeps it: a part of it, where the plan divides weights.
    pub fn divide(&self, model: Model) -> Model {
        match self.ranks.group() {
            Some(group) if self.plan.execution.sharding == Sharding::Parameters => {
                model.sharded(Rc::clone(group))
            }
            _ => model,
        }
    }

    /// The file or folder that a source stands for: a stage's `final/`, or the path itself.
    pub fn path(&self, source: &Source) -> PathBuf {
        source.path(&self.run)
    }

    /// The tokenizer in the source's folder.
    ///
    /// # Errors
    /// A tokenizer that is missing or malformed, or has no EOS token.
    pub fn load_tokenizer(&self, source: &Source) -> Result<Tokenizer, TrainerError> {
        let tokenizer = Tokenizer::load(&self.path(source))?;
        tokenizer.require_eos()?;
        Ok(tokenizer)
    }

    /// The model in the source's folder as a causal stage takes it over
    /// ([`model::Model::without_places`]), on the stage's device in its storage format, and its
    /// tokenizer.
    ///
    /// # Errors
    /// A model or tokenizer that is missing, malformed or damaged, or that do not belong together; a
    /// tokenizer without an EOS token.
    pub fn load_checkpoint(&self, source: &Source) -> Result<Checkpoint, TrainerError> {
        self.load_frozen(source, None)
    }

    /// The same for a model whose weights will not be trained; `quantize` as in [`Checkpoint::load_frozen`].
    ///
    /// # Errors
    /// As [`Self::load_checkpoint`].
    pub fn load_frozen(
        &self,
        source: &Source,
        quantize: Option<Quantization>,
    ) -> Result<Checkpoint, TrainerError> {
        let loaded = self.load(source, quantize)?;
        Ok(Checkpoint {
            model: self.divide(loaded.model.without_places()),
            ..loaded
        })
    }

    /// The model in the source's folder, to be pretrained on as one of `shape`: with its positions, and with its
    /// places within spans, if any ([`model::Model::with_places`]).
    ///
    /// # Errors
    /// As [`Self::load_checkpoint`].
    pub fn load_to_continue(
        &self,
        source: &Source,
        shape: &ModelShape,
    ) -> Result<Model, TrainerError> {
        let model = self.load(source, None)?.model;
        let model = match shape.positions {
            Positions::Learned {
                places: places @ 1..,
                ..
            } => model.with_places(places, self.seed),
            _ => model.without_places(),
        };
        Ok(self.divide(model.with_positions(shape)))
    }

    fn load(
        &self,
        source: &Source,
        quantize: Option<Quantization>,
    ) -> Result<Checkpoint, TrainerError> {
        let (path, device, kind) = (self.path(source), self.device, self.kind);
        let loaded = Checkpoint::load_frozen(&path, device, kind, quantize)?;
        loaded.tokenizer.require_eos()?;
        Ok(loaded)
    }

    /// `model`, whose weights are those of `source`, with new adapters where the plan has some. `purpose` is
    /// what their numbers depend on beside the seed. The adapters' files name the weights by their place in
    /// the run, by their folder, or by their name on the hub: equal runs give equal bytes.
    pub fn adapt(
        &self,
        model: Model,
        lora: Option<&LoraPlan>,
        source: &Source,
        purpose: &str,
    ) -> Model {
        let Some(lora) = lora else {
            return model;
        };
        let base = match source {
            Source::Stage { name } => format!("{name}/final"),
            Source::Path { path } => path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            Source::Hub { repo, .. } => repo.clone(),
        };
        model.with_new_adapter(lora, &base, seeds::key(self.seed, purpose, 0, 0))
    }

    /// What the stage is made from: its reference (`stage:sft`; the key, as `data`, where it is a path)
    /// -> manifest id, or a hash of the contents where there is no manifest; the commit of a model on the hub.
    pub fn parents(&self) -> BTreeMap<String, String> {
        let named = |input: &Input| (input.source.as_parent(&input.key), input.id.clone());
        self.inputs.iter().map(named).collect()
    }

    /// A manifest of something that this stage makes (`checkpoint`, `dataset` or `tokenizer`), with
    /// parents and configuration filled in. No path is in it: what is made of equal contents is equal.
    pub fn manifest(&self, kind: &str, step: u64) -> Manifest {
        let id_of = |source: &Source| {
            let input = self.inputs.iter().find(|input| input.source == *source);
            input.map(|input| input.id.clone())
        };
        let mut manifest = Manifest::new(kind, &self.plan.name, step);
        manifest.parents = self.parents();
        manifest.config = self.plan.portable_config(id_of);
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
        if let (Err(TrainerError::NonFinite { step, .. }), true) = (&result, self.ranks.is_first())
        {
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
