//! How models start: drawn, or from what another one learned.

use model::{Head, Model};
use recipe::shape::Family;
use tch::{Device, Kind};

use crate::{alone, models, rows, shape};

#[test]
fn initial_weights_depend_on_seed_and_name_alone() {
    for family in [Family::Gpt2, Family::Llama] {
        let make = |seed, head| Model::init(&shape(family), head, seed, Device::Cpu, Kind::Float);
        let (a, b, c) = (
            make(1, Head::Token),
            make(1, Head::Scalar),
            make(2, Head::Token),
        );
        for (name, tensor) in a.params() {
            if let Some(other) = b.params().get(name) {
                assert!(tensor.equal(other), "{name} depends on the head");
            }
            if tensor.size().len() == 2 {
                assert!(!tensor.equal(&c.params()[name]), "{name} ignores the seed");
                let expected = if name.contains("c_proj")
                    || name.contains("o_proj")
                    || name.contains("down_proj")
                {
                    0.02 / 6_f64.sqrt()
                } else {
                    0.02
                };
                let std = tensor.to_kind(Kind::Double).std(false).double_value(&[]);
                assert!((std / expected - 1.0).abs() < 0.15, "{name}: {std}");
            }
        }
    }
}

#[test]
fn a_reward_model_starts_from_a_copy_of_the_trunk_and_a_value_model_on_the_trunk() {
    let models = models();
    let policy = models
        .iter()
        .find(|model| model.shape.family == Family::Llama)
        .expect("every family is there");
    let mut reward = policy.to_scalar(3);
    assert_eq!(
        (reward.head, reward.params().contains_key("lm_head.weight")),
        (Head::Scalar, false)
    );
    let input = alone(&rows()[0]);
    let before = policy.hidden(&input);
    assert!(reward.hidden(&input).equal(&before));
    assert_eq!(reward.scalar(&before).size(), [1, 9]);
    let _ = reward.params()["model.norm.weight"].shallow_clone().zero_();
    assert!(policy.hidden(&input).equal(&before), "the trunk is shared");
    let other = policy.to_scalar(4);
    reward.copy_from(&other);
    assert!(reward.hidden(&input).equal(&before));
    assert!(reward.params()["score.weight"].equal(&other.params()["score.weight"]));

    let value = policy.to_value();
    let hidden = value.hidden(&input);
    assert!(
        hidden.equal(&before)
            && value
                .scalar(&hidden)
                .count_nonzero(None::<i64>)
                .int64_value(&[])
                == 0
    );
    let trunk = |model: &Model| model.params()["model.norm.weight"].data_ptr();
    assert_eq!(
        trunk(&value),
        trunk(policy),
        "it stands on the policy's own"
    );
}
