//! Masked tokens and blank infilling against transformers' decoders under an explicit mask:
//! `tests/golden/make_objectives.py` made the numbers, in f64.
//!
//! Per tensor, ||a-b|| <= tolerance x max(||b||, floor x the largest norm), as in the model's golden test.

use std::collections::BTreeMap;
use std::path::Path;

use datasets::{Blanks, LmRow};
use model::{Input, Model, weights};
use recipe::plan::{OptimizerPlan, Schedule};
use tch::{Device, Kind, Tensor};
use trainer::{LmOptions, Ranks, Stepper, lm_backward, lm_evaluate};

const NAMES: [&str; 5] = [
    "masked_gpt2",
    "masked_llama",
    "infill_gpt2",
    "infill_opt",
    "infill_opt_350m",
];

/// As in the program.
const PAD: u32 = 1;
const BLANKS: Blanks = Blanks {
    mask: 2,
    start: 3,
    end: 4,
};

type Tensors = BTreeMap<String, Tensor>;

fn golden(name: &str) -> Tensors {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    weights::read(&folder.join(format!("objective_{name}.safetensors"))).expect("golden file")
}

fn part(golden: &Tensors, prefix: &str) -> Tensors {
    let named = |(name, tensor): (&String, &Tensor)| {
        Some((
            name.strip_prefix(prefix)?.to_owned(),
            tensor.shallow_clone(),
        ))
    };
    golden.iter().filter_map(named).collect()
}

/// The golden model as a folder, read back by `Model::load`.
fn load(golden: &Tensors, kind: Kind) -> Model {
    let dir = tempfile::tempdir().expect("temporary folder");
    let config: Vec<u8> = Vec::try_from(&golden["config"]).expect("bytes");
    std::fs::write(dir.path().join("config.json"), config).expect("write");
    let file = dir.path().join("model.safetensors");
    weights::write(&file, &part(golden, "param/")).expect("write");
    Model::load(dir.path(), Device::Cpu, kind).expect("the golden folder is a model")
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    tensor.view(-1).try_into().expect("integers")
}

/// The rows that the program made.
fn rows(golden: &Tensors) -> Vec<LmRow> {
    let row = |index: i64| {
        let of = |name: &str| integers(&golden[name].get(index));
        let ids: Vec<u32> = of("ids").iter().map(|id| *id as u32).collect();
        let len = ids.iter().filter(|id| **id != PAD).count();
        let positions = golden.get("positions").map(|positions_bt2| {
            let numbers = integers(&positions_bt2.get(index));
            let pairs = numbers
                .chunks(2)
                .map(|pair| [pair[0] as u32, pair[1] as u32]);
            pairs.take(len).collect()
        });
        let targets = of("targets").into_iter().map(|id| u32::try_from(id).ok());
        LmRow {
            ids: ids[..len].to_vec(),
            targets: targets.take(len).collect(),
            prefix: integers(&golden["prefix"])[index as usize] as usize,
            positions,
        }
    };
    (0..golden["ids"].size()[0]).map(row).collect()
}

#[test]
fn infilled_rows_are_those_of_the_definition() {
    for name in NAMES.iter().filter(|name| name.starts_with("infill")) {
        let golden = golden(name);
        let expected = rows(&golden);
        assert_eq!(expected.len(), 3);
        for (index, expected) in expected.iter().enumerate() {
            let text = integers(&golden[&format!("text/{index}")]);
            let text: Vec<u32> = text.into_iter().map(|id| id as u32).collect();
            let spans = integers(&golden[&format!("spans/{index}")]);
            let spans: Vec<_> = spans
                .chunks(2)
                .map(|span| span[0] as usize..span[1] as usize)
                .collect();
            assert_eq!(BLANKS.row(&text, &spans), *expected, "{name}, row {index}");
        }
    }
}

fn stepper(model: &Model) -> Stepper {
    let plan = OptimizerPlan {
        lr: 1e-3,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.0,
        schedule: Schedule::Constant,
        floor: 1.0,
        warmup: 0,
        warmup_from: 0.0,
        clip: 1.0,
    };
    Stepper::new(model, &plan, 1)
}

fn assert_close(label: &str, ours: &Tensors, theirs: &Tensors, tolerance: f64, floor: f64) {
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>(),
        "{label}"
    );
    let norm = |t: &Tensor| t.to_kind(Kind::Double).norm().double_value(&[]);
    let largest = theirs.values().map(norm).fold(0.0, f64::max);
    for (name, expected) in theirs {
        let gap = norm(&(ours[name].to_kind(Kind::Double) - expected));
        let bound = tolerance * norm(expected).max(floor * largest);
        assert!(gap <= bound, "{label}: {name}: {gap:e} > {bound:e}");
    }
}

/// Logits at all real tokens, the loss of training and of evaluation, and all gradients, in
/// micro-batches of one row and of three.
fn check(name: &str, kind: Kind, bound: f64, tolerance: f64) {
    let golden = golden(name);
    let (model, rows) = (load(&golden, kind), rows(&golden));
    let floor = if kind == Kind::Double { 1e-4 } else { 5e-2 };
    let all: Vec<&LmRow> = rows.iter().collect();
    let input = Input::from_rows(&all, PAD, Device::Cpu);
    let out_btv = tch::no_grad(|| model.logits(&model.hidden(&input)));
    let real_bt1 = golden["ids"].not_equal(i64::from(PAD)).unsqueeze(-1);
    let gap = (out_btv.to_kind(Kind::Double) - &golden["out"]).abs();
    let worst = gap.masked_select(&real_bt1).max().double_value(&[]);
    assert!(worst <= bound, "{name}: logits differ by {worst:e}");

    let expected = golden["loss"].double_value(&[0]);
    for micro_batch in [3, 1] {
        let options = LmOptions {
            micro_batch,
            pad_id: PAD,
            coef: 1.0,
            checkpointing: micro_batch == 1,
            dropout: 0.0,
            dropout_key: 0,
        };
        model.zero_grad();
        let loss = lm_backward(&model, &mut stepper(&model), &rows, &options).expect("a loss");
        let evaluated =
            lm_evaluate(&model, &rows, PAD, micro_batch, &Ranks::alone()).expect("a loss");
        for loss in [loss.mean(), evaluated.mean()] {
            assert!(
                (loss - expected).abs() <= bound,
                "{name}: {loss}, not {expected}"
            );
        }
        let params = model.params().iter();
        let grads = params.map(|(name, p)| (name.clone(), p.grad())).collect();
        assert_close(name, &grads, &part(&golden, "grad/"), tolerance, floor);
    }
}

#[test]
fn f64_agrees_with_transformers() {
    for name in NAMES {
        check(name, Kind::Double, 1e-9, 1e-9);
    }
}

#[test]
fn f32_agrees_with_transformers() {
    for name in NAMES {
        check(name, Kind::Float, 1e-4, 1e-5);
    }
}
