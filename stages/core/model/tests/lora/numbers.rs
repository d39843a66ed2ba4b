//! What adapters compute.

use model::{CachedRow, Input, KvCache, Model, RecordOptions};
use recipe::lora::LoraPlan;
use tch::{Kind, Tensor};

use crate::golden::{Golden, NAMES, PLAIN, assert_close, bits, out, train};

#[test]
fn outputs_gradients_and_updates_are_those_of_peft() {
    for name in NAMES {
        let golden = Golden::new(name);
        let model = golden.adapted(Kind::Double);
        let gap = golden.gap(&model, &golden.tensors["out"]);
        assert!(gap < 1e-9, "{name}: outputs differ by {gap:e}");
        assert!(golden.gap(&golden.adapted(Kind::Float), &golden.tensors["out"]) < 1e-4);

        model.set_trainable(true);
        let frozen = bits(model.params());
        let expected = golden.trained("grad");
        for checkpointing in [false, true] {
            let options = RecordOptions {
                checkpointing,
                ..PLAIN
            };
            let (loss, grads) = golden.backward(&model, &options);
            let gap = (loss - golden.tensors["loss"].double_value(&[0])).abs();
            assert!(gap < 1e-9, "{name}: loss differs by {gap:e}");
            assert_close(&format!("{name}: gradients"), &grads, &expected, 1e-9);
        }
        train(&golden, &model);
        let after = model.trainable();
        assert_close(
            &format!("{name}: updates"),
            &after,
            &golden.trained("step3"),
            1e-9,
        );

        // What is frozen has no gradient, and its bits are as they were.
        for (name, param) in model.params() {
            let trained = after.contains_key(name);
            assert_eq!(param.requires_grad(), trained, "{name}");
            assert_eq!(param.grad().defined(), trained, "{name}");
        }
        let now = bits(model.params());
        let names = model.params().keys().zip(frozen.iter().zip(&now));
        for (param, (before, after)) in names {
            let trained = param == "score.weight";
            assert_eq!(before != after, trained, "{name}: {param}");
        }
    }
}

#[test]
fn merged_equals_unmerged_and_what_peft_merges() {
    for name in NAMES {
        let golden = Golden::new(name);
        for (kind, bound) in [(Kind::Double, 1e-9), (Kind::Float, 1e-5)] {
            let adapted = golden.adapted(kind);
            let merged = adapted.merged().expect("merged");
            assert!(adapted.has_adapter() && !merged.has_adapter());
            let unmerged = tch::no_grad(|| out(&adapted, &adapted.hidden(&golden.input())));
            let gap = golden.gap(&merged, &unmerged);
            assert!(gap < bound, "{name}: {gap:e}");
            let expected = golden.part("merged/");
            for (weight, tensor) in merged.params() {
                let theirs = expected.get(weight).unwrap_or(&adapted.params()[weight]);
                let gap = (tensor.to_kind(Kind::Double) - theirs).abs().max();
                assert!(gap.double_value(&[]) < bound, "{name}: {weight}");
            }
            for weight in expected.keys() {
                assert!(
                    !merged.params()[weight].equal(&adapted.params()[weight]),
                    "{weight}"
                );
            }
        }
    }
}

fn plan(model: &Model, dropout: f64) -> LoraPlan {
    let names = recipe::lora::matrix_names(&model.shape).into_iter();
    LoraPlan {
        r: 3,
        alpha: 6.0,
        dropout,
        rslora: false,
        target_modules: names.map(str::to_owned).collect(),
    }
}

#[test]
fn new_adapters_change_nothing_and_start_as_pefts() {
    for name in NAMES {
        let golden = Golden::new(name);
        let base = golden.base(Kind::Float);
        let expected = tch::no_grad(|| base.hidden(&golden.input()));
        let plan = plan(&base, 0.0);
        let adapted = golden.base(Kind::Float).with_new_adapter(&plan, "base", 3);
        let hidden_btd = tch::no_grad(|| adapted.hidden(&golden.input()));
        assert!(hidden_btd.equal(&expected), "{name}");
        for (param, tensor) in adapted.trainable() {
            let largest = tensor.abs().max().double_value(&[]);
            if param.ends_with("lora_B.weight") {
                assert!(largest == 0.0, "{param}");
            } else if param.ends_with("lora_A.weight") {
                let bound = 1.0 / (tensor.size()[1] as f64).sqrt();
                assert!(
                    largest <= bound && largest > 0.5 * bound,
                    "{param}: {largest}"
                );
            }
        }
        let again = golden.base(Kind::Float).with_new_adapter(&plan, "base", 3);
        assert!(bits(&again.trainable()) == bits(&adapted.trainable()));
        let other = golden.base(Kind::Float).with_new_adapter(&plan, "base", 4);
        assert!(bits(&other.trainable()) != bits(&adapted.trainable()));
    }
}

#[test]
fn cached_decoding_sees_the_adapters() {
    let _guard = tch::no_grad_guard();
    for name in NAMES {
        let golden = Golden::new(name);
        let model = golden.adapted(Kind::Double);
        let ids_bt = golden.tensors["ids"].narrow(0, 0, 1);
        let whole_btd = model.hidden(&Input::dense(ids_bt.shallow_clone()));
        let len = ids_bt.size()[1];
        let mut cache = KvCache::new(&model, KvCache::blocks_for(len as usize));
        let mut row = CachedRow::default();
        let mut step = |start: i64, len: i64| {
            let ids_n = ids_bt.get(0).narrow(0, start, len);
            model.forward_cached(&ids_n, &mut [(&mut row, len as usize)], &mut cache)
        };
        let parts = [step(0, len - 1), step(len - 1, 1)];
        let gap = (Tensor::cat(&parts, 0) - whole_btd.get(0).narrow(0, len - 2, 2))
            .abs()
            .max()
            .double_value(&[]);
        assert!(gap < 1e-9, "{name}: {gap:e}");
    }
}

#[test]
fn dropout_before_adapters_is_trainings_alone_and_keyed() {
    let golden = Golden::new("llama");
    let base = golden.base(Kind::Double);
    let plan = plan(&base, 0.5);
    let model = base.with_new_adapter(&plan, "base", 3);
    for (name, tensor) in model.trainable() {
        if name.ends_with("lora_B.weight") {
            let _ = tch::no_grad(|| tensor.shallow_clone().fill_(0.1));
        }
    }
    model.set_trainable(true);
    let with = |checkpointing, dropout_key| {
        let options = RecordOptions {
            checkpointing,
            dropout: 0.0,
            dropout_key,
        };
        golden.backward(&model, &options)
    };
    let (loss, grads) = with(false, 1);
    let (again, grads_again) = with(true, 1);
    assert!((loss - again).abs() < 1e-12, "{loss} {again}");
    assert_close("checkpointing", &grads_again, &grads, 1e-9);
    assert!(
        (loss - with(false, 2).0).abs() > 1e-6,
        "the key changes nothing"
    );
    let plain = tch::no_grad(|| golden.loss(&model, &model.hidden(&golden.input())));
    assert!(
        (loss - plain.double_value(&[])).abs() > 1e-6,
        "nothing is dropped"
    );
}

#[test]
fn models_share_frozen_weights_and_fork_what_is_trained() {
    let golden = Golden::new("llama_scalar");
    let reward = golden.adapted(Kind::Double);
    let (value, shared) = (reward.fork(), reward.share());
    let place = |model: &Model, name: &str| model.params()[name].data_ptr();
    for name in reward.params().keys() {
        let one = place(&reward, name);
        assert_eq!(one, place(&shared, name), "{name}");
        assert_eq!(one == place(&value, name), name != "score.weight", "{name}");
    }
    let before = bits(&reward.trainable());
    value.set_trainable(true);
    train(&golden, &value);
    assert!(bits(&reward.trainable()) == before && bits(&shared.trainable()) == before);
    assert!(bits(&value.trainable()) != before);
    assert!(
        reward
            .trainable()
            .values()
            .all(|param| !param.requires_grad())
    );
    shared.set_trainable(true);
    train(&golden, &shared);
    assert!(bits(&reward.trainable()) == bits(&shared.trainable()));
}
