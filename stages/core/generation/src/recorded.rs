//! Steps of decoding without the host: on a GPU a step of hundreds of kernels is recorded once, and queued again in
//! one go, as often as there are tokens to make.
//!
//! Shapes: `b` rows, `s` steps, `d` width, `v` vocabulary.

use model::{CachedRow, KvCache, Model, StepTables};
use tch::{Kind, Tensor};
use torch_ext::{Graph, TorchError, wide_kind};

use crate::options::SamplingOptions;
use crate::sampler::choose_rows;

/// Steps between two copies of tokens to the host on a GPU, each of which waits for the device. Rows
/// that end in between run on to the next copy, and what they made is dropped.
const GPU_STEPS_PER_LOOK: usize = 8;

/// How steps are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stepping {
    /// Steps between two looks at the tokens.
    pub(crate) per_look: usize,
    /// Whether steps in which no row begins have tables that stay in their places.
    pub(crate) in_tables: bool,
    /// Whether those are recorded.
    pub(crate) recorded: bool,
}

impl Stepping {
    /// As the model's device and its heads allow.
    pub(crate) fn of(model: &Model) -> Self {
        let (on_gpu, in_tables) = (model.device().is_cuda(), StepTables::serve(model));
        Self {
            per_look: if on_gpu || in_tables {
                GPU_STEPS_PER_LOOK
            } else {
                1
            },
            in_tables,
            recorded: on_gpu && in_tables,
        }
    }
}

/// Steps of up to `rows` rows. All tensors keep their places.
pub(crate) struct RecordedSteps<'a> {
    model: &'a Model,
    /// Whose head says the values.
    value: Option<&'a Model>,
    options: &'a SamplingOptions,
    tables: StepTables,
    /// The step to make, int64 `[1]`.
    step_1: Tensor,
    /// What has been made, and of random numbers what it is made with (f64), `[s, b]` each.
    ids_sb: Tensor,
    logprobs_sb: Tensor,
    values_sb: Option<Tensor>,
    uniform_sb: Option<Tensor>,
    /// Whether steps are recorded, and the one that is.
    records: bool,
    graph: Option<Graph>,
    /// Whether a step has been made: what libraries set up at their first call cannot be recorded.
    warm: bool,
}

/// What steps made, `[b, s]` each, on the device.
pub(crate) struct Made {
    pub(crate) ids: Tensor,
    pub(crate) logprobs: Tensor,
    /// What a scalar head says before each token.
    pub(crate) values: Option<Tensor>,
}

/// The rows of some steps.
pub(crate) struct Stretch<'r> {
    /// Their last tokens, int64 `[..]`.
    pub(crate) ids_b: &'r Tensor,
    pub(crate) rows: Vec<&'r mut CachedRow>,
    /// A random number of each row for each step, in [0, 1); none where sampling is greedy.
    pub(crate) uniforms: Option<Vec<Vec<f64>>>,
    pub(crate) steps: usize,
}

impl<'a> RecordedSteps<'a> {
    /// For up to `rows` rows of up to `positions` tokens, and up to `steps` steps at a time, which are recorded where `records`
    /// says so, on a GPU.
    pub(crate) fn new(
        (model, value): (&'a Model, Option<&'a Model>),
        options: &'a SamplingOptions,
        cache: &mut KvCache,
        [rows, positions, steps]: [usize; 3],
        records: bool,
    ) -> Self {
        let device = model.device();
        let places = |kind| Tensor::zeros([steps as i64, rows as i64], (kind, device));
        Self {
            model,
            value,
            options,
            tables: StepTables::new(model, cache, rows, positions),
            step_1: Tensor::zeros([1], (Kind::Int64, device)),
            ids_sb: places(Kind::Int64),
            logprobs_sb: places(Kind::Double),
            values_sb: value.map(|value| places(wide_kind(value.kind()))),
            uniform_sb: (!options.greedy).then(|| places(Kind::Double)),
            records,
            graph: None,
            warm: false,
        }
    }

    /// Makes the steps.
    ///
    /// # Errors
    /// CUDA's, as for a step that cannot be recorded.
    pub(crate) fn run(
        &mut self,
        mut stretch: Stretch,
        cache: &mut KvCache,
    ) -> Result<Made, TorchError> {
        let (rows, steps) = (stretch.rows.len() as i64, stretch.steps as i64);
        self.tables
            .load(stretch.ids_b, &mut stretch.rows, stretch.steps, cache);
        if let (Some(uniform_sb), Some(uniforms)) = (&self.uniform_sb, stretch.uniforms) {
            let given = Tensor::from_slice(&uniforms.concat()).view([steps, rows]);
            let given = given.to_device(self.model.device());
            let place = uniform_sb.narrow(0, 0, steps);
            place.narrow(1, 0, rows).copy_(&given);
        }
        let _ = self.step_1.zero_();
        for _ in 0..steps {
            self.make(cache)?;
        }
        let made = |of: &Tensor| of.narrow(0, 0, steps).narrow(1, 0, rows).tr().copy();
        Ok(Made {
            ids: made(&self.ids_sb),
            logprobs: made(&self.logprobs_sb),
            values: self.values_sb.as_ref().map(made),
        })
    }

    /// One step: the first runs as it is, the second is recorded, and from then on it is queued as a whole.
    fn make(&mut self, cache: &KvCache) -> Result<(), TorchError> {
        if !self.warm || !self.records {
            self.warm = true;
            self.step(cache);
            return Ok(());
        }
        let graph = match self.graph.take() {
            Some(graph) => graph,
            None => Graph::record(self.model.device(), || self.step(cache))?,
        };
        self.graph.insert(graph).replay()
    }

    fn step(&mut self, cache: &KvCache) {
        let hidden_bd = self.model.step(&self.tables, cache);
        let of_step = |of_sb: &Tensor| of_sb.index_select(0, &self.step_1).squeeze_dim(0);
        let uniform_b = self.uniform_sb.as_ref().map(of_step);
        let (ids_b, logprobs_b) =
            choose_rows(self.model, &hidden_bd, uniform_b.as_ref(), self.options);
        put(&mut self.ids_sb, &self.step_1, &ids_b);
        put(&mut self.logprobs_sb, &self.step_1, &logprobs_b);
        if let (Some(values_sb), Some(value)) = (&mut self.values_sb, self.value) {
            put(values_sb, &self.step_1, &value.scalar(&hidden_bd));
        }
        self.tables.advance(&ids_b);
        let _ = self.step_1.g_add_scalar_(1);
    }
}

/// Writes what a step made to its place, in the place's type: a sampler of tensors says log-probabilities in f32.
fn put(to_sb: &mut Tensor, step_1: &Tensor, from_b: &Tensor) {
    let from_1b = from_b.to_kind(to_sb.kind()).unsqueeze(0);
    let _ = to_sb.index_copy_(0, step_1, &from_1b);
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn what_a_step_made_takes_the_type_of_its_place() {
        let mut to_sb = Tensor::zeros([3, 2], (Kind::Double, Device::Cpu));
        let made_b = Tensor::from_slice(&[-0.5_f32, -2.0]);
        put(&mut to_sb, &Tensor::from_slice(&[1_i64]), &made_b);
        let numbers = Vec::<f64>::try_from(to_sb.view(-1)).expect("f64");
        assert_eq!(numbers, [0.0, 0.0, -0.5, -2.0, 0.0, 0.0]);
    }
}
