//! Every family against transformers: `tests/golden/make_models.py` made the numbers, in f64.
//!
//! Per tensor, ||a-b|| <= tolerance x max(||b||, floor x the largest norm): the gradient of a key's bias is
//! zero in truth, and in f32 what rounding leaves of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::{CachedRow, Head, Input, KvCache, Model, RecordOptions, response_logprobs, weights};
use tch::{Device, Kind, Tensor};
use torch_ext::{AdamWStep, fused_adamw};

/// As in the table `MODELS` of the program.
const NAMES: [&str; 33] = [
    "gpt1",
    "gpt1_scalar",
    "gpt2_tied",
    "gpt2_untied",
    "gpt2_scalar",
    "gpt_neo",
    "gpt_neo_scalar",
    "gpt_neox",
    "gpt_neox_sequential",
    "gpt_neox_scalar",
    "opt",
    "opt_350m",
    "opt_scalar",
    "llama_tied",
    "llama_untied",
    "llama_biased",
    "llama_yarn",
    "llama_scalar",
    "mistral",
    "mistral_scalar",
    "qwen2",
    "qwen2_sliding",
    "qwen2_scalar",
    "qwen3",
    "qwen3_scalar",
    "falcon",
    "falcon_alibi",
    "falcon_new",
    "falcon_scalar",
    "glm",
    "glm_scalar",
    "llama_dynamic",
    "llama_linear",
];
const PLAIN: RecordOptions = RecordOptions {
    checkpointing: false,
    dropout: 0.0,
    dropout_key: 0,
};

type Tensors = BTreeMap<String, Tensor>;

fn golden(name: &str) -> Tensors {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden");
    weights::read(&folder.join(format!("model_{name}.safetensors"))).expect("golden file")
}

fn part(golden: &Tensors, prefix: &str) -> Tensors {
    golden
        .iter()
        .filter_map(|(name, tensor)| {
            name.strip_prefix(prefix)
                .map(|name| (name.to_owned(), tensor.shallow_clone()))
        })
        .collect()
}

/// The golden model as a Hugging Face folder, read back by `Model::load`.
fn load(golden: &Tensors, kind: Kind) -> Model {
    let dir = tempfile::tempdir().expect("temporary folder");
    let config: Vec<u8> = Vec::try_from(&golden["config"]).expect("bytes");
    std::fs::write(dir.path().join("config.json"), config).expect("write");
    let file: PathBuf = dir.path().join("model.safetensors");
    weights::write(&file, &part(golden, "param/")).expect("write");
    Model::load(dir.path(), Device::Cpu, kind).expect("the golden folder is a model")
}

fn input(golden: &Tensors) -> Input {
    let valid: Vec<bool> = Vec::try_from(golden["valid"].flatten(0, -1)).expect("a mask");
    Input::masked(golden["ids"].shallow_clone(), &valid)
}

/// The loss of `make_models.py`.
fn loss(model: &Model, golden: &Tensors, hidden_btd: &Tensor) -> Tensor {
    if model.head == Head::Scalar {
        let scores_bt = model.scalar(hidden_btd);
        let last_b = scores_bt.select(1, scores_bt.size()[1] - 1);
        return (-last_b).softplus().mean(None);
    }
    let valid_bt = &golden["valid"];
    let len = valid_bt.size()[1] - 1;
    let mask_br = valid_bt
        .narrow(1, 0, len)
        .logical_and(&valid_bt.narrow(1, 1, len));
    let logprobs_br = response_logprobs(model, hidden_btd, &golden["ids"], 1, 1.0);
    -logprobs_br.masked_select(&mask_br).mean(None)
}

fn assert_close(label: &str, ours: &Tensors, theirs: &Tensors, tolerance: f64, floor: f64) {
    let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(ours), names(theirs), "{label}: names");
    let norm = |t: &Tensor| t.to_kind(Kind::Double).norm().double_value(&[]);
    let largest = theirs.values().map(norm).fold(0.0, f64::max);
    for (name, expected) in theirs {
        let difference = norm(&(ours[name].to_kind(Kind::Double) - expected));
        let bound = tolerance * norm(expected).max(floor * largest);
        assert!(
            difference <= bound,
            "{label}: {name}: {difference:e} > {bound:e}"
        );
    }
}

/// Forward, loss and gradients on the tape, then ten updates.
fn check(name: &str, kind: Kind, logits_bound: f64, tolerance: f64, step_tolerance: f64) {
    let golden = golden(name);
    let model = load(&golden, kind);
    let floor = if kind == Kind::Double { 1e-4 } else { 5e-2 };
    model.set_trainable(true);
    let (hidden_btd, tape) = model.record(&input(&golden), &PLAIN).expect("a pass");
    let out = match model.head {
        Head::Token => model.logits(&hidden_btd),
        Head::Scalar => model.scalar(&hidden_btd),
    };
    let gap = (out.to_kind(Kind::Double) - &golden["out"]).abs();
    let valid = match model.head {
        Head::Token => golden["valid"].unsqueeze(-1),
        Head::Scalar => golden["valid"].shallow_clone(),
    };
    let worst = gap.masked_select(&valid).max().double_value(&[]);
    assert!(worst <= logits_bound, "{name}: output differs by {worst:e}");

    let ours = loss(&model, &golden, &hidden_btd);
    let gap = (ours.double_value(&[]) - golden["loss"].double_value(&[0])).abs();
    assert!(gap <= logits_bound, "{name}: loss differs by {gap:e}");
    ours.backward();
    tape.backward(&model).expect("backward pass");
    let grads: Tensors = model
        .params()
        .iter()
        .map(|(name, p)| (name.clone(), p.grad()))
        .collect();
    assert_close(
        &format!("{name}: gradients"),
        &grads,
        &part(&golden, "grad/"),
        tolerance,
        floor,
    );
    model.zero_grad();

    train_ten_steps(&model, &golden);
    let after: Tensors = model
        .params()
        .iter()
        .map(|(name, p)| (name.clone(), p.detach()))
        .collect();
    let expected = part(&golden, "step10/");
    assert_close(
        &format!("{name}: after ten steps"),
        &after,
        &expected,
        step_tolerance,
        floor,
    );
}

fn train_ten_steps(model: &Model, golden: &Tensors) {
    let params: Vec<Tensor> = model.params().values().map(Tensor::shallow_clone).collect();
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
    for step in 1..=10 {
        let (hidden_btd, tape) = model.record(&input(golden), &PLAIN).expect("a pass");
        loss(model, golden, &hidden_btd).backward();
        tape.backward(model).expect("backward pass");
        let grads: Vec<Tensor> = params.iter().map(Tensor::grad).collect();
        let steps: Vec<Tensor> = params
            .iter()
            .map(|_| Tensor::from(f64::from(step)).to_kind(Kind::Float))
            .collect();
        fused_adamw(&params, &grads, &exp_avgs, &exp_avg_sqs, &steps, &options).expect("update");
        model.zero_grad();
    }
}

#[test]
fn f64_agrees_with_transformers() {
    for name in NAMES {
        check(name, Kind::Double, 1e-9, 1e-9, 1e-7); // the updated weights are stored in f32
    }
}

#[test]
fn f32_agrees_with_transformers() {
    for name in NAMES {
        // Half of a key's bias has no gradient in truth in GLM: Adam walks with what rounding leaves.
        check(name, Kind::Float, 1e-4, 1e-5, 3e-4);
    }
}

#[test]
fn cached_decoding_beyond_the_trained_length_agrees_with_transformers() {
    let golden = golden("llama_dynamic");
    let model = load(&golden, Kind::Double);
    let row_bt = golden["ids"].narrow(0, 0, 1);
    let columns = row_bt.size()[1];
    assert!(columns as usize > model.shape.fixed_positions());
    let _guard = tch::no_grad_guard();
    let mut cache = KvCache::new(&model, KvCache::blocks_for(columns as usize));
    let mut row = CachedRow::default();
    for position in 0..columns {
        let ids_n = row_bt.get(0).narrow(0, position, 1);
        let hidden_bd = model.forward_cached(&ids_n, &mut [(&mut row, 1)], &mut cache);
        let logits_v = model.logits(&hidden_bd).view(-1);
        let gap = (logits_v - golden["cached"].get(0).get(position)).abs();
        let worst = gap.max().double_value(&[]);
        assert!(worst <= 1e-9, "token {position}: {worst:e}");
    }
}

#[test]
fn no_golden_model_is_left_out() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden");
    let files = std::fs::read_dir(folder).expect("a folder");
    let names = files.map(|file| {
        file.expect("a file")
            .file_name()
            .to_string_lossy()
            .into_owned()
    });
    let mut stored: Vec<String> = names
        .filter_map(|name| {
            let name = name.strip_prefix("model_")?.strip_suffix(".safetensors")?;
            Some(name.to_owned())
        })
        .collect();
    stored.sort();
    let mut compared = NAMES.to_vec();
    compared.sort_unstable();
    assert_eq!(stored, compared);
}
