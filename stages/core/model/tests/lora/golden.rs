//! The golden files, their models, and how they are run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use model::{Head, Input, Model, RecordOptions, response_logprobs, weights};
use tch::{Device, Kind, Tensor};
use torch_ext::{AdamWStep, fused_adamw};

/// As in the table `ADAPTERS` of the program.
pub const NAMES: [&str; 6] = ["llama", "gpt2", "gpt_neox", "falcon", "glm", "llama_scalar"];
pub const PREFIX: &str = "base_model.model.";
pub const PLAIN: RecordOptions = RecordOptions {
    checkpointing: false,
    dropout: 0.0,
    dropout_key: 7,
};

pub type Tensors = BTreeMap<String, Tensor>;

/// A golden file, and its model as folders.
pub struct Golden {
    pub tensors: Tensors,
    pub dir: tempfile::TempDir,
}

impl Golden {
    pub fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden");
        let golden = Self {
            tensors: weights::read(&folder.join(format!("lora_{name}.safetensors")))
                .expect("golden file"),
            dir: tempfile::tempdir().expect("temporary folder"),
        };
        let write = |folder: &str, config: &str, tensors: &str, prefix: &str| {
            let dir = golden.dir.path().join(folder);
            fs::create_dir_all(&dir).expect("a folder");
            let bytes: Vec<u8> = Vec::try_from(&golden.tensors[config]).expect("bytes");
            fs::write(dir.join(format!("{config}.json")), bytes).expect("write");
            weights::write(&dir.join(tensors), &golden.part(prefix)).expect("write");
        };
        write("base", "config", "model.safetensors", "param/");
        write(
            "adapter",
            "adapter_config",
            "adapter_model.safetensors",
            "adapter/",
        );
        golden
    }

    pub fn part(&self, prefix: &str) -> Tensors {
        let named = |(name, tensor): (&String, &Tensor)| {
            Some((
                name.strip_prefix(prefix)?.to_owned(),
                tensor.shallow_clone(),
            ))
        };
        self.tensors.iter().filter_map(named).collect()
    }

    /// As [`Self::part`], by our names.
    pub fn trained(&self, part: &str) -> Tensors {
        self.part(&format!("{part}/{PREFIX}"))
    }

    pub fn base(&self, kind: Kind) -> Model {
        Model::load(&self.dir.path().join("base"), Device::Cpu, kind).expect("the base")
    }

    pub fn adapted(&self, kind: Kind) -> Model {
        let adapter = self.dir.path().join("adapter");
        self.base(kind).with_adapter(&adapter).expect("the adapter")
    }

    pub fn input(&self) -> Input {
        let valid: Vec<bool> = Vec::try_from(self.tensors["valid"].flatten(0, -1)).expect("a mask");
        Input::masked(self.tensors["ids"].shallow_clone(), &valid)
    }

    /// The largest difference of outputs at real tokens.
    pub fn gap(&self, model: &Model, expected: &Tensor) -> f64 {
        let ours = tch::no_grad(|| out(model, &model.hidden(&self.input())));
        let valid = match model.head {
            Head::Token => self.tensors["valid"].unsqueeze(-1),
            Head::Scalar => self.tensors["valid"].shallow_clone(),
        };
        let gap = (ours.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs();
        gap.masked_select(&valid).max().double_value(&[])
    }

    /// The loss of `make_models.py`.
    pub fn loss(&self, model: &Model, hidden_btd: &Tensor) -> Tensor {
        if model.head == Head::Scalar {
            let scores_bt = model.scalar(hidden_btd);
            let last_b = scores_bt.select(1, scores_bt.size()[1] - 1);
            return (-last_b).softplus().mean(None);
        }
        let valid_bt = &self.tensors["valid"];
        let len = valid_bt.size()[1] - 1;
        let mask_br = valid_bt
            .narrow(1, 0, len)
            .logical_and(&valid_bt.narrow(1, 1, len));
        let logprobs_br = response_logprobs(model, hidden_btd, &self.tensors["ids"], 1, 1.0);
        -logprobs_br.masked_select(&mask_br).mean(None)
    }

    /// One forward and backward pass; the gradients of what is trained.
    pub fn backward(&self, model: &Model, options: &RecordOptions) -> (f64, Tensors) {
        let (hidden_btd, tape) = model.record(&self.input(), options).expect("a pass");
        let loss = self.loss(model, &hidden_btd);
        loss.backward();
        tape.backward(model).expect("backward pass");
        let grads = model.trainable().into_iter();
        let grads = grads
            .map(|(name, param)| (name, param.grad().copy()))
            .collect();
        model.zero_grad();
        (loss.double_value(&[]), grads)
    }
}

pub fn out(model: &Model, hidden_btd: &Tensor) -> Tensor {
    match model.head {
        Head::Token => model.logits(hidden_btd),
        Head::Scalar => model.scalar(hidden_btd),
    }
}

#[track_caller]
pub fn assert_close(label: &str, ours: &Tensors, theirs: &Tensors, tolerance: f64) {
    assert!(
        ours.keys().eq(theirs.keys()),
        "{label}: {:?} {:?}",
        ours.keys(),
        theirs.keys()
    );
    let norm = |t: &Tensor| t.to_kind(Kind::Double).norm().double_value(&[]);
    let largest = theirs.values().map(norm).fold(0.0, f64::max);
    for (name, expected) in theirs {
        let difference = norm(&(ours[name].to_kind(Kind::Double) - expected));
        let bound = tolerance * norm(expected).max(1e-4 * largest);
        assert!(
            difference <= bound,
            "{label}: {name}: {difference:e} > {bound:e}"
        );
    }
}

pub fn bits(tensors: &Tensors) -> Vec<Vec<u8>> {
    let bytes = |tensor: &Tensor| {
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor
            .detach()
            .contiguous()
            .copy_data_u8(&mut bytes, tensor.numel());
        bytes
    };
    tensors.values().map(bytes).collect()
}

/// Three updates of what is trained.
pub fn train(golden: &Golden, model: &Model) {
    let params: Vec<Tensor> = model.trainable().into_values().collect();
    let zeros = || {
        params
            .iter()
            .map(|p| p.detach().zeros_like())
            .collect::<Vec<_>>()
    };
    let (exp_avgs, exp_avg_sqs) = (zeros(), zeros());
    let options = AdamWStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-5,
        weight_decay: 0.1,
    };
    for step in 1..=3 {
        let grads: Vec<Tensor> = golden.backward(model, &PLAIN).1.into_values().collect();
        let count = |_| Tensor::from(f64::from(step)).to_kind(Kind::Float);
        let steps: Vec<Tensor> = params.iter().map(count).collect();
        fused_adamw(&params, &grads, &exp_avgs, &exp_avg_sqs, &steps, &options).expect("update");
    }
}
