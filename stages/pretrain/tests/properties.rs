//! What masked tokens and blank infilling must keep to: nobody sees what he must not, the layout of a
//! batch changes nothing, and a model survives its folder.

use std::collections::BTreeMap;

use datasets::{Blanks, LmRow};
use model::{Head, Input, Model};
use recipe::families::Sizes;
use recipe::plan::{OptimizerPlan, Schedule};
use recipe::shape::{Family, ModelShape, Positions};
use tch::{Device, Kind, Tensor, no_grad};
use trainer::{LmOptions, Ranks, Stepper, lm_backward, lm_evaluate};

const BLANKS: Blanks = Blanks {
    mask: 2,
    start: 3,
    end: 4,
};
const PAD: u32 = 1;
const VOCAB: u32 = 41;
/// Places within spans.
const PLACES: usize = 4;

fn shape(family: Family, places: usize) -> ModelShape {
    let shape = family.shape(&Sizes {
        vocab_size: VOCAB as usize,
        max_positions: 16,
        layers: 2,
        width: 24,
        heads: 4,
    });
    match shape.positions {
        Positions::Learned { unused, .. } => ModelShape {
            positions: Positions::Learned { unused, places },
            ..shape
        },
        _ => shape,
    }
}

/// Weights ten times larger than at the start, so that attention is far from uniform.
fn model(family: Family, places: usize, kind: Kind) -> Model {
    let model = Model::init(&shape(family, places), Head::Token, 7, Device::Cpu, kind);
    for (name, tensor) in model.params() {
        if !name.contains("norm") && !name.contains("ln_") {
            let _ = tensor.shallow_clone().g_mul_scalar_(10.0);
        }
    }
    model
}

fn text(row: u32, len: u32) -> Vec<u32> {
    (0..len)
        .map(|i| 5 + (row * 17 + i * i * 5 + 3) % (VOCAB - 5))
        .collect()
}

/// Rows of several lengths: (masked, infilled).
fn rows() -> [Vec<LmRow>; 2] {
    let masked = |row: u32| {
        let mut ids = text(row, 12 - row % 6);
        let mut targets = vec![None; ids.len()];
        for column in [1, 4 + row as usize % 3] {
            targets[column] = Some(ids[column]);
            ids[column] = BLANKS.mask;
        }
        LmRow {
            prefix: ids.len(),
            ids,
            targets,
            positions: None,
        }
    };
    let spans = [7..9, 0..3, 4..5];
    let infilled = |row: u32| BLANKS.row(&text(row, 12 - row % 3), &spans[..=row as usize % 3]);
    [(0..8).map(masked).collect(), (0..8).map(infilled).collect()]
}

/// (label, model, rows) of every objective and kind of positions.
fn cases(kind: Kind) -> Vec<(&'static str, Model, Vec<LmRow>)> {
    let [masked, infilled] = rows();
    vec![
        (
            "masked, learned",
            model(Family::Gpt2, 0, kind),
            masked.clone(),
        ),
        ("masked, rotary", model(Family::Llama, 0, kind), masked),
        (
            "infill",
            model(Family::Gpt2, PLACES, kind),
            infilled.clone(),
        ),
        (
            "infill, post-norm",
            model(Family::Gpt1, PLACES, kind),
            infilled,
        ),
    ]
}

fn hidden(model: &Model, rows: &[&LmRow]) -> Tensor {
    no_grad(|| model.hidden(&Input::from_rows(rows, PAD, Device::Cpu)))
}

fn gap(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

/// Part A and masked rows see all of themselves; part B sees part A and what precedes it. Another token
/// changes the hidden states of those who see it, and of nobody else.
#[test]
fn nobody_sees_what_he_must_not() {
    for (label, model, rows) in cases(Kind::Double) {
        let row = &rows[2];
        let before = hidden(&model, &[row]).get(0);
        for changed in 0..row.ids.len() {
            let mut other = row.clone();
            other.ids[changed] = 5 + (row.ids[changed] + 11) % (VOCAB - 5);
            assert_ne!(other.ids, row.ids);
            let after = hidden(&model, &[&other]).get(0);
            for query in 0..row.ids.len() {
                let sees = changed < row.prefix || changed <= query;
                let of = |hidden_td: &Tensor| hidden_td.get(query as i64);
                let gap = gap(&of(&before), &of(&after));
                let label = format!("{label}: token {changed} at {query}: {gap:e}");
                assert!(if sees { gap > 1e-9 } else { gap == 0.0 }, "{label}");
            }
        }
    }
}

#[test]
fn padding_and_batch_mates_change_nothing() {
    for (label, model, rows) in cases(Kind::Double) {
        let together = hidden(&model, &rows.iter().collect::<Vec<_>>());
        assert_eq!(together.isfinite().all().int64_value(&[]), 1, "{label}");
        for (index, row) in rows.iter().enumerate() {
            let len = row.ids.len() as i64;
            let ours = together.get(index as i64).narrow(0, 0, len);
            let gap = gap(&ours, &hidden(&model, &[row]).get(0));
            assert!(gap < 1e-9, "{label}, row {index}: {gap:e}");
        }
    }
}

/// Eight micro-batches of one row and one of eight rows: the same weights after three updates.
#[test]
fn accumulation_1_x_8_equals_8_x_1() {
    let plan = OptimizerPlan {
        lr: 1e-2,
        betas: [0.9, 0.95],
        eps: 1e-5,
        weight_decay: 0.1,
        schedule: Schedule::Constant,
        floor: 1.0,
        warmup: 0,
        warmup_from: 0.0,
        clip: 1.0,
    };
    for (kind, bound) in [(Kind::Double, 1e-9), (Kind::Float, 1e-4)] {
        for (label, start, rows) in cases(kind) {
            let train = |micro_batch| {
                let model = start.deep_copy();
                let mut stepper = Stepper::new(&model, &plan, 3);
                let options = LmOptions {
                    micro_batch,
                    pad_id: PAD,
                    coef: 1.0,
                    checkpointing: false,
                    dropout: 0.0,
                    dropout_key: 0,
                };
                for step in 0..3 {
                    lm_backward(&model, &mut stepper, &rows, &options).expect("a loss");
                    stepper.update(step).expect("an update");
                }
                model
            };
            let (one, eight) = (train(1), train(8));
            for (name, param) in one.params() {
                let gap = gap(&param.detach(), &eight.params()[name].detach());
                assert!(gap < bound, "{label}, {name} in {kind:?}: {gap:e}");
                let moved = gap_of(&start, name, param);
                assert!(moved > 0.0, "{label}: {name} did not move");
            }
            let losses = [&start, &one].map(|model| {
                let loss = lm_evaluate(model, &rows, PAD, 3, &Ranks::alone()).expect("a loss");
                loss.mean()
            });
            assert!(losses[1] < losses[0], "{label}: {losses:?}");
        }
    }
}

fn gap_of(start: &Model, name: &str, param: &Tensor) -> f64 {
    gap(&start.params()[name], &param.detach())
}

#[test]
fn an_infilling_model_survives_its_folder_and_is_a_plain_one_for_causal_text() {
    for family in [Family::Gpt1, Family::Gpt2, Family::Opt] {
        let model = model(family, PLACES, Kind::Float);
        let dir = tempfile::tempdir().expect("temporary folder");
        model.save(dir.path()).expect("saved");
        let loaded = Model::load(dir.path(), Device::Cpu, Kind::Float).expect("loaded");
        assert_eq!(loaded.shape, model.shape);
        let [_, infilled] = rows();
        let infilled: Vec<&LmRow> = infilled.iter().collect();
        assert!(hidden(&loaded, &infilled).equal(&hidden(&model, &infilled)));

        let plain = LmRow::plain(text(0, 12));
        let before = hidden(&loaded, &[&plain]);
        let names = |model: &Model| model.params().keys().cloned().collect::<Vec<_>>();
        let (all, places) = (names(&loaded), loaded.shape.names().places() + ".weight");
        let causal = loaded.without_places();
        assert_eq!(causal.shape, shape(family, 0));
        assert!(hidden(&causal, &[&plain]).equal(&before));
        let left: BTreeMap<_, _> = causal.params().iter().collect();
        assert!(!left.contains_key(&places) && left.len() + 1 == all.len());

        // What goes on infilling keeps its places; a causal model gets new ones, the same for the same seed.
        let table = &model.params()[&places];
        let kept = Model::load(dir.path(), Device::Cpu, Kind::Float).expect("loaded");
        assert!(kept.with_places(PLACES, 7).params()[&places].equal(table));
        let new = |seed| {
            let loaded = Model::load(dir.path(), Device::Cpu, Kind::Float).expect("loaded");
            let model = loaded.without_places().with_places(PLACES, seed);
            assert_eq!(model.shape, shape(family, PLACES));
            model.params()[&places].shallow_clone()
        };
        assert!(new(7).equal(&new(7)) && !new(7).equal(&new(8)) && !new(7).equal(table));
    }
}
