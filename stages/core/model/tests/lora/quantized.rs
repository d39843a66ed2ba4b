//! Adapters on codes (Dettmers et al. 2023) against the same adapters on the numbers that the codes stand for.

use model::{Model, RecordOptions};
use recipe::plan::Quantization;
use tch::{Device, Kind};

use crate::golden::{Golden, NAMES, PLAIN, assert_close, bits, out, train};

/// The golden adapters on the golden weights as codes.
fn adapted(golden: &Golden, kind: Kind, quantize: Quantization) -> Model {
    let base = golden.dir.path().join("base");
    let base = Model::load_frozen(&base, Device::Cpu, kind, Some(quantize)).expect("the base");
    let adapter = golden.dir.path().join("adapter");
    base.with_adapter(&adapter).expect("the adapter")
}

#[test]
fn gradients_and_updates_are_those_over_the_numbers_that_codes_stand_for() {
    for name in NAMES {
        let golden = Golden::new(name);
        for quantize in [Quantization::Int8, Quantization::Int4] {
            for (kind, bound) in [(Kind::Double, 1e-9), (Kind::Float, 1e-5)] {
                let label = format!("{name} {quantize:?} {kind:?}");
                let model = adapted(&golden, kind, quantize);
                let dense = model.dequantized();
                assert!(model.is_quantized() && !dense.is_quantized(), "{label}");
                assert!(model.has_adapter() && dense.has_adapter(), "{label}");
                let expected = tch::no_grad(|| out(&dense, &dense.hidden(&golden.input())));
                let gap = golden.gap(&model, &expected);
                assert!(gap <= bound, "{label}: outputs differ by {gap:e}");
                // What is trained is the same tensors: the two collect their gradients one after the other.
                model.set_trainable(true);
                let (loss, expected) = golden.backward(&dense, &PLAIN);
                for checkpointing in [false, true] {
                    let options = RecordOptions {
                        checkpointing,
                        ..PLAIN
                    };
                    let (ours, grads) = golden.backward(&model, &options);
                    assert!((ours - loss).abs() <= bound, "{label}: {ours} {loss}");
                    assert_close(&format!("{label}: gradients"), &grads, &expected, bound);
                }
            }
        }
    }
}

#[test]
fn codes_stay_as_they_are_and_what_is_merged_are_the_weights_that_they_were_made_of() {
    for name in NAMES {
        let golden = Golden::new(name);
        for quantize in [Quantization::Int8, Quantization::Int4] {
            for kind in [Kind::Float, Kind::BFloat16] {
                let label = format!("{name} {quantize:?} {kind:?}");
                let model = adapted(&golden, kind, quantize);
                model.set_trainable(true);
                let frozen = |model: &Model| {
                    let dense = model.dequantized();
                    let frozen = dense
                        .params()
                        .iter()
                        .filter(|(name, _)| *name != "score.weight");
                    let frozen =
                        frozen.map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
                    bits(&frozen.collect())
                };
                let before = (frozen(&model), bits(&model.trainable()));
                train(&golden, &model);
                assert!(before.0 == frozen(&model), "{label}: codes have changed");
                assert!(before.1 != bits(&model.trainable()), "{label}");

                let dir = tempfile::tempdir().expect("a folder");
                model.save_adapter(dir.path()).expect("saved");
                let dense = golden.base(kind).with_adapter(dir.path()).expect("read");
                let (ours, theirs) = (model.merged(), dense.merged());
                let (ours, theirs) = (ours.expect("merged"), theirs.expect("merged"));
                assert!(!ours.is_quantized() && !ours.has_adapter(), "{label}");
                assert!(ours.params().keys().eq(theirs.params().keys()), "{label}");
                assert!(bits(ours.params()) == bits(theirs.params()), "{label}");
            }
        }
    }
}
