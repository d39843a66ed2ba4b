//! A reward model's scores, in f64, on tiny random models of two families.

use judge::RewardJudge;
use model::{Head, Input, Model};
use recipe::families::Sizes;
use recipe::shape::{Family, ModelShape};
use tch::{Device, Kind, Tensor};

fn model(family: Family, head: Head) -> Model {
    let shape = ModelShape {
        kv_heads: if family == Family::Gpt2 { 4 } else { 2 },
        mlp_width: 32,
        tie_embeddings: true,
        ..family.shape(&Sizes {
            vocab_size: 11,
            max_positions: 16,
            layers: 2,
            width: 16,
            heads: 4,
        })
    };
    Model::init(&shape, head, 5, Device::Cpu, Kind::Double)
}

fn rows() -> Vec<Vec<u32>> {
    (0..23_u32)
        .map(|i| (0..=(i * 7) % 16).map(|t| (i * 5 + t * t) % 11).collect())
        .collect()
}

/// The reward of a row on its own, without padding.
fn alone(model: &Model, row: &[u32]) -> f64 {
    let ids: Vec<i64> = row.iter().map(|&id| i64::from(id)).collect();
    let ids_bt = Tensor::from_slice(&ids).view([1, -1]);
    let hidden_btd = model.hidden(&Input::dense(ids_bt));
    model
        .scalar(&hidden_btd)
        .double_value(&[0, row.len() as i64 - 1])
}

#[test]
fn padding_and_batch_mates_change_nothing() {
    for family in [Family::Gpt2, Family::Llama] {
        let expected: Vec<f64> = {
            let model = model(family, Head::Scalar);
            rows().iter().map(|row| alone(&model, row)).collect()
        };
        assert!(
            expected
                .iter()
                .any(|score| (score - expected[0]).abs() > 1e-3)
        );
        let judge = RewardJudge::new(model(family, Head::Scalar)).expect("a scalar head");
        for (batch, pad_id) in [(1, 0), (5, 0), (5, 9), (64, 3)] {
            let scores = judge.score(&rows(), pad_id, batch).expect("scores");
            assert_eq!(scores.len(), expected.len());
            for (row, (score, expected)) in scores.iter().zip(&expected).enumerate() {
                let gap = (score - expected).abs();
                assert!(gap < 1e-9, "{family:?}, batch {batch}, row {row}: {gap}");
            }
        }
    }
}

#[test]
fn no_rows_have_no_scores() {
    let judge = RewardJudge::new(model(Family::Llama, Head::Scalar)).expect("a scalar head");
    assert!(judge.score(&[], 0, 4).expect("no error").is_empty());
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let error = RewardJudge::new(model(Family::Llama, Head::Token))
        .err()
        .map(|it| it.to_string());
    assert!(error.is_some_and(|it| it.contains("token head") && it.contains("hint:")));
    let judge = RewardJudge::new(model(Family::Llama, Head::Scalar)).expect("a scalar head");
    let refusal = |row: Vec<u32>, batch| {
        let error = judge.score(&[vec![1, 2], row], 0, batch).err();
        error.map(|it| it.to_string()).unwrap_or_default()
    };
    assert_eq!(refusal(vec![1; 16], 4), "");
    for (row, batch, expected) in [
        (vec![1], 0, "batch is 0"),
        (vec![], 4, "row 1 is empty"),
        (
            vec![1; 17],
            4,
            "row 1 has 17 tokens, and the reward model reads at most 16",
        ),
        (
            vec![1, 11],
            4,
            "row 1 has token 11, and the reward model has 11",
        ),
    ] {
        let error = refusal(row, batch);
        assert!(
            error.contains(expected) && error.contains("hint:"),
            "{expected}: {error}"
        );
    }
}

#[test]
fn a_score_that_is_no_number_is_refused() {
    let model = model(Family::Gpt2, Head::Scalar);
    tch::no_grad(|| {
        for param in model.params().values() {
            let _ = param.shallow_clone().fill_(f64::NAN);
        }
    });
    let judge = RewardJudge::new(model).expect("a scalar head");
    let error = judge
        .score(&[vec![1]], 0, 1)
        .err()
        .map(|it| it.to_string())
        .unwrap_or_default();
    assert!(error.contains("the reward of row 0 is NaN"), "{error}");
}
