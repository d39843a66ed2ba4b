//! Dynamic rotary scaling, whose angles grow with the row: what holds of it in place of "cached = full".

use model::{CachedRow, KvCache, Model};
use tch::Tensor;

use crate::{BOUND, alone, assert_equal, is_static, models, rows};

/// Token by token: a row alone.
fn decode(model: &Model, row: &[i64]) -> Tensor {
    let mut cache = KvCache::new(model, KvCache::blocks_for(row.len()));
    let mut cached = CachedRow::default();
    let steps = row.iter().map(|token| {
        let ids_n = Tensor::from_slice(&[*token]);
        model.forward_cached(&ids_n, &mut [(&mut cached, 1)], &mut cache)
    });
    Tensor::stack(&steps.collect::<Vec<_>>(), 1)
}

#[test]
fn dynamic_scaling_decodes_by_the_present_length_whatever_came_before() {
    let _guard = tch::no_grad_guard();
    let models = models();
    let model = models
        .iter()
        .find(|model| !is_static(model))
        .expect("a dynamic model");
    let row = &rows()[0];
    let first = decode(model, row);
    let gap = |len: i64| {
        let last = |x_btd: &Tensor| x_btd.select(1, len - 1);
        let full_btd = model.hidden(&alone(&row[..len as usize]));
        (last(&first) - last(&full_btd))
            .abs()
            .max()
            .double_value(&[])
    };
    for len in 1..=4 {
        assert!(gap(len) <= BOUND, "{len} tokens, within the trained length");
    }
    for len in 6..=9 {
        assert!(gap(len) > 1e-6, "{len} tokens: cached keys are turned anew");
    }
    let _longer_before = model.hidden(&alone(row));
    assert_equal("a second time", &decode(model, row), &first);
}
