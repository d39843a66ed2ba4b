//! A model: parameters by name, and the forward pass over its blocks.
//!
//! Shape suffixes: b rows, t positions, d width, v vocabulary; `...` stands for any leading sizes.

use std::collections::BTreeMap;

use recipe::arithmetic::PACKED_BYTES;
use recipe::shape::{ModelShape, Positions};
use recipe::tensors::{Head, SCALAR_HEAD, tensors};
use tch::{Device, Kind, Tensor};
use torch_ext::{PackedMatrix, wide_kind};

use crate::block::{Block, Norm, Params};
use crate::draw::draw;
use crate::input::Input;
use crate::linear::Linear;
use crate::parameters::Parameters;
use crate::positions::sinusoidal;

/// A decoder-only transformer.
#[derive(Debug)]
pub struct Model {
    /// Its shape.
    pub shape: ModelShape,
    /// What it computes from hidden states.
    pub head: Head,
    /// Added to a raw reward to normalise it (scalar heads; see [`Model::normalized`]).
    pub reward_shift: f64,
    pub(crate) parameters: Parameters,
    // The same tensors as in `parameters`, by their roles.
    embedding_vd: Tensor,
    /// What is added to the embedding for each position, learned or sinusoidal.
    positions_td: Option<Tensor>,
    /// What is added for each place within a span, from 1 on.
    places_td: Option<Tensor>,
    /// From the embedding's width to the model's, and back, where they differ.
    project: Option<[Linear; 2]>,
    blocks: Vec<Block>,
    norm: Option<Norm>,
    output_vd: Tensor,
    packed_output: Option<PackedMatrix>,
}

impl Model {
    /// A new model. Each tensor's numbers depend on the seed and its own name alone, and are drawn on
    /// the CPU in f32, so that they are the same on every device.
    pub fn init(shape: &ModelShape, head: Head, seed: u64, device: Device, kind: Kind) -> Self {
        let specs = tensors(shape, head).into_iter();
        let params: BTreeMap<String, Tensor> = specs
            .map(|spec| {
                let tensor = draw(&spec, seed).to_kind(kind).to_device(device);
                (spec.name, tensor)
            })
            .collect();
        Self::from_parameters(shape.clone(), head, 0.0, params.into())
    }

    /// A model of given parameters, which must be those of [`tensors`].
    pub(crate) fn from_parameters(
        shape: ModelShape,
        head: Head,
        reward_shift: f64,
        parameters: Parameters,
    ) -> Self {
        Self::build(shape, head, reward_shift, parameters, None)
    }

    /// The same model for passes over about `rows` tokens under `no_grad`. On a CPU the matrices are copied into
    /// an order in which products are fast, where the model is no larger than [`PACKED_BYTES`]; all else is shared. Changes of the
    /// original do not show in the copies.
    ///
    /// # Panics
    /// When the model is divided and not [whole](Self::whole).
    #[must_use]
    pub fn for_inference(&self, rows: usize) -> Self {
        self.assert_whole();
        let bytes = self.num_params() * self.kind().elt_size_in_bytes();
        let pays = self.device() == Device::Cpu && bytes <= PACKED_BYTES;
        Self::build(
            self.shape.clone(),
            self.head,
            self.reward_shift,
            self.parameters.map(Tensor::shallow_clone),
            pays.then_some(rows),
        )
    }

    /// What the model is made of, alone.
    pub(crate) fn into_parameters(self) -> Parameters {
        self.parameters
    }

    fn build(
        shape: ModelShape,
        head: Head,
        reward_shift: f64,
        parameters: Parameters,
        packed: Option<usize>,
    ) -> Self {
        let by_name = Params {
            all: &parameters,
            shape: &shape,
            packed,
        };
        let names = shape.names();
        let embedding_vd = by_name.weight(names.embedding);
        let positions_td = match shape.positions {
            Positions::Learned { .. } => Some(by_name.weight(names.positions)),
            Positions::Sinusoidal => {
                let table_td = sinusoidal(shape.max_positions, shape.width);
                let table_td = table_td.to_kind(embedding_vd.kind());
                Some(table_td.to_device(embedding_vd.device()))
            }
            Positions::Rotary(_) | Positions::Alibi => None,
        };
        let places_td = match shape.positions {
            Positions::Learned { places: 1.., .. } => Some(by_name.weight(&names.places())),
            _ => None,
        };
        let output_vd = match head {
            Head::Scalar => by_name.get(SCALAR_HEAD),
            Head::Token if shape.tie_embeddings => embedding_vd.shallow_clone(),
            Head::Token => by_name.weight(names.head),
        };
        let narrow = shape.embedding_width != shape.width;
        let project = narrow.then(|| names.project.map(|name| by_name.linear(name, false)));
        let blocks = (0..shape.layers).map(|i| Block::new(&by_name, i)).collect();
        let norm = shape.final_norm().then(|| by_name.norm(names.final_norm));
        let packed_output = packed
            .filter(|_| head == Head::Token)
            .and_then(|rows| PackedMatrix::new(&output_vd, rows));
        Self {
            shape,
            head,
            reward_shift,
            parameters,
            embedding_vd,
            positions_td,
            places_td,
            project,
            blocks,
            norm,
            output_vd,
            packed_output,
        }
    }

    /// All parameters that are tensors, by Hugging Face name: neither codes nor adapters are among them.
    pub fn params(&self) -> &BTreeMap<String, Tensor> {
        &self.parameters.dense
    }

    /// Whether what is [trained](Self::trainable) collects gradients. New and loaded models do not.
    ///
    /// # Panics
    /// As [`Self::trainable`].
    pub fn set_trainable(&self, trainable: bool) {
        for tensor in self.trainable().values() {
            let _ = tensor.set_requires_grad(trainable);
        }
    }

    /// Forgets all gradients.
    pub fn zero_grad(&self) {
        for tensor in self.trainable().values_mut() {
            tensor.zero_grad();
        }
    }

    /// Where the parameters lie.
    pub fn device(&self) -> Device {
        self.embedding_vd.device()
    }

    /// Their type.
    pub fn kind(&self) -> Kind {
        self.embedding_vd.kind()
    }

    /// Number of parameters, those of adapters not among them.
    pub fn num_params(&self) -> usize {
        self.parameters.num_numbers()
    }

    /// Hidden states after the final norm, `[b, t, d]` (`d`: the embedding's width), as one autograd graph where gradients are
    /// on (training goes through [`Model::record`] instead). Rows of padding hold finite numbers
    /// without meaning, columns that are not [wanted](Input::wanted) zeros.
    ///
    /// # Panics
    /// When the input is longer than the positions of the model; when the model is divided and not [whole](Self::whole).
    pub fn hidden(&self, input: &Input) -> Tensor {
        self.assert_whole();
        let pass = self.pass(input);
        let mut x_btd = pass.embedded_btd;
        for (index, block) in self.blocks.iter().enumerate() {
            x_btd = block.forward(&x_btd, &pass.context, None, 0.0, self.columns(index));
        }
        pass.output.fill(&self.final_norm(&x_btd))
    }

    /// Logits `[..., v]` of hidden states `[..., d]`, in the parameters' type.
    ///
    /// # Panics
    /// For a scalar head.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        match &self.packed_output {
            Some(packed) => packed.product(hidden, None),
            None => hidden.linear(self.output_weight(), None::<Tensor>),
        }
    }

    /// The scalar head's numbers `[...]` of hidden states `[..., d]`, raw, in f32 (f64 for f64).
    ///
    /// # Panics
    /// For a token head.
    pub fn scalar(&self, hidden: &Tensor) -> Tensor {
        assert_eq!(
            self.head,
            Head::Scalar,
            "a model with a token head has no scalar"
        );
        let raw = hidden
            .linear(&self.output_vd, None::<Tensor>)
            .squeeze_dim(-1);
        raw.to_kind(wide_kind(raw.kind()))
    }

    /// [`Self::scalar`] at the last token of each right-padded row, `[b]`: where a reward is read.
    ///
    /// # Panics
    /// As [`Self::scalar`], or where a row is empty or longer than the columns.
    pub fn scalar_at_last(&self, hidden_btd: &Tensor, lengths: &[usize]) -> Tensor {
        let columns = hidden_btd.size()[1] as usize;
        assert!(
            lengths.iter().all(|len| (1..=columns).contains(len)),
            "rows of {lengths:?} tokens in {columns} columns"
        );
        let last_b: Vec<i64> = lengths.iter().map(|len| *len as i64 - 1).collect();
        let last_b = Tensor::from_slice(&last_b).to_device(hidden_btd.device());
        let rows_b = Tensor::arange(lengths.len() as i64, (Kind::Int64, hidden_btd.device()));
        self.scalar(&hidden_btd.index(&[Some(rows_b), Some(last_b)]))
    }

    /// Floating-point operations of a forward and a backward pass, per token of a sequence of `context`.
    pub fn training_flops_per_token(&self, context: usize) -> f64 {
        let forward = self.forward_flops_per_token(context);
        let lora = self.parameters.adapter.as_ref();
        let lora = lora.map(|adapter| &adapter.plan);
        self.shape.training_flops_per_token(forward, context, lora)
    }

    /// Floating-point operations of a forward pass, per token of a sequence of `context`.
    pub fn forward_flops_per_token(&self, context: usize) -> f64 {
        let with_logits = self.shape.forward_flops_per_token(context);
        match self.head {
            Head::Token => with_logits,
            Head::Scalar => {
                with_logits
                    - 2.0 * ((self.shape.vocab_size - 1) * self.shape.embedding_width) as f64
            }
        }
    }

    /// A raw reward with this model's shift: demonstrations score 0 on average.
    pub fn normalized(&self, raw: f64) -> f64 {
        raw + self.reward_shift
    }

    /// The output projection `[v, d]` of a token head.
    pub(crate) fn output_weight(&self) -> &Tensor {
        assert_eq!(
            self.head,
            Head::Token,
            "a model with a scalar head has no logits"
        );
        &self.output_vd
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// What follows the last block.
    pub(crate) fn final_norm(&self, x_btd: &Tensor) -> Tensor {
        let normed_btd = match &self.norm {
            Some(norm) => norm.forward(x_btd),
            None => x_btd.shallow_clone(),
        };
        match &self.project {
            Some([_, out]) => out.forward(&normed_btd, 0.0),
            None => normed_btd,
        }
    }

    /// Tokens and their positions; `places_bt` are their places within spans.
    pub(crate) fn embed(
        &self,
        ids_bt: &Tensor,
        positions_bt: &Tensor,
        places_bt: Option<&Tensor>,
    ) -> Tensor {
        let look_up =
            |table: &Tensor, rows: &Tensor| Tensor::embedding(table, rows, -1, false, false);
        let mut tokens_btd = look_up(&self.embedding_vd, ids_bt);
        if let Some([into, _]) = &self.project {
            tokens_btd = into.forward(&tokens_btd, 0.0);
        }
        if let Some(places_bt) = places_bt {
            let table = self
                .places_td
                .as_ref()
                .expect("a model with places within spans");
            let added_btd = look_up(table, &(places_bt - 1).clamp_min(0));
            tokens_btd = &tokens_btd + added_btd * places_bt.gt(0).unsqueeze(-1);
        }
        match (&self.positions_td, self.shape.positions) {
            (Some(table), Positions::Learned { unused, .. }) if unused > 0 => {
                tokens_btd + look_up(table, &(positions_bt + unused as i64))
            }
            (Some(table), _) => tokens_btd + look_up(table, positions_bt),
            (None, _) => tokens_btd,
        }
    }

    /// The table of sinusoidal positions, which is stored though it is no parameter.
    pub(crate) fn stored_positions(&self) -> Option<(String, Tensor)> {
        let sinusoidal = self.shape.positions == Positions::Sinusoidal;
        let table_td = self.positions_td.as_ref().filter(|_| sinusoidal)?;
        let name = format!("{}.weight", self.shape.names().positions);
        Some((name, table_td.shallow_clone()))
    }
}
