//! Models that are made of another's parameters.

use recipe::shape::ModelShape;
use recipe::tensors::{Head, TensorSpec, tensors};
use tch::{Device, Kind, Tensor};

use crate::draw::draw;
use crate::transformer::Model;

impl Model {
    /// A reward model on a copy of this model's trunk, with a new head N(0, 1/(width+1)).
    ///
    /// # Panics
    /// When the model has adapters.
    #[must_use]
    pub fn to_scalar(&self, seed: u64) -> Self {
        assert!(!self.has_adapter(), "the model has adapters");
        self.deep_copy().with_scalar_head(|spec| draw(spec, seed))
    }

    /// A value model on this model's own trunk, with which it shares all (adapters, too) but the head. That is zero, so
    /// that it predicts 0 until it is trained (Ziegler et al. 2019, their code).
    #[must_use]
    pub fn to_value(&self) -> Self {
        self.share()
            .with_scalar_head(|spec| Tensor::zeros(&spec.dims[..], (Kind::Float, Device::Cpu)))
    }

    fn with_scalar_head(self, head: impl Fn(&TensorSpec) -> Tensor) -> Self {
        let (kind, device) = (self.kind(), self.device());
        let mut parameters = self.parameters;
        parameters
            .dense
            .remove(&format!("{}.weight", self.shape.names().head));
        for spec in tensors(&self.shape, Head::Scalar) {
            if parameters.codes(&spec.name).is_none() {
                let new = || head(&spec).to_kind(kind).to_device(device);
                parameters
                    .dense
                    .entry(spec.name.clone())
                    .or_insert_with(new);
            }
        }
        Self::from_parameters(self.shape, Head::Scalar, 0.0, parameters)
    }

    /// The same parameters with the positions of another shape: other rotary angles, for more of them.
    #[must_use]
    pub fn with_positions(self, of: &ModelShape) -> Self {
        let shape = ModelShape {
            positions: of.positions,
            max_positions: of.max_positions,
            ..self.shape
        };
        Self::from_parameters(shape, self.head, self.reward_shift, self.parameters)
    }

    /// The model as a causal stage takes it over: without the places within spans, which no causal text
    /// has (and whose table would never get a gradient).
    #[must_use]
    pub fn without_places(mut self) -> Self {
        let name = format!("{}.weight", self.shape.names().places());
        self.parameters.dense.remove(&name);
        let shape = self.shape.without_places();
        Self::from_parameters(shape, self.head, self.reward_shift, self.parameters)
    }

    /// The model as infilling needs it: with a table of `places` within spans, its own where it has one of that
    /// size, else a new one.
    #[must_use]
    pub fn with_places(self, places: usize, seed: u64) -> Self {
        let shape = self.shape.clone().with_places(places);
        if shape == self.shape {
            return self;
        }
        let (kind, device) = (self.kind(), self.device());
        let name = format!("{}.weight", shape.names().places());
        let mut parameters = self.parameters;
        let specs = tensors(&shape, self.head).into_iter();
        for spec in specs.filter(|spec| spec.name == name) {
            let table = draw(&spec, seed).to_kind(kind).to_device(device);
            parameters.dense.insert(spec.name, table);
        }
        Self::from_parameters(shape, self.head, self.reward_shift, parameters)
    }

    /// Takes over the numbers of what is trained of another model (converted to this one's type and device).
    ///
    /// # Panics
    /// When the shapes, heads or adapters differ; as [`Self::trainable`]; when the other one's weights are trained and divided.
    pub fn copy_from(&mut self, other: &Self) {
        let theirs = other.trainable();
        if !other.has_adapter() {
            other.assert_whole();
        }
        assert!(
            self.shape == other.shape && self.head == other.head,
            "{:?} {:?} takes over {:?} {:?}",
            self.shape,
            self.head,
            other.shape,
            other.head
        );
        tch::no_grad(|| {
            let divided = self.kept_slices();
            for (name, mut tensor) in self.trainable() {
                if !divided.contains_key(&name) {
                    tensor.copy_(&theirs[&name]);
                }
            }
            self.keep_slices_of(&theirs);
        });
        self.reward_shift = other.reward_shift;
    }
}
