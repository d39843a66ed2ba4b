//! Attention over the cache and sampling: single precision and bf16 against f64, and what is refused.

use tch::{Device, Kind, Tensor};
use torch_ext::{CACHE_BLOCK, CachedOptions, CachedRows, Cuts, cached_attention, sample};

fn random(dims: &[i64]) -> Tensor {
    Tensor::randn(dims, (Kind::Double, Device::Cpu))
}

/// A row of 37 cached tokens and one new one, one of 20 new ones, and one of 3 behind 30.
fn rows() -> CachedRows {
    let tables: [&[u32]; 3] = [&[6, 0, 3], &[1, 4], &[2, 5, 7]];
    let rows = [(1, 37), (20, 0), (3, 30)].into_iter().zip(tables);
    CachedRows::new(rows.map(|((new, past), blocks)| (new, past, blocks)))
}

const ALL: CachedOptions = CachedOptions {
    scale: 0.2,
    window: None,
    bias_hs: None,
};

#[test]
fn lower_precision_agrees_with_f64() {
    tch::manual_seed(4);
    let block = CACHE_BLOCK as i64;
    for (heads, key_heads, width) in [(4, 2, 64), (3, 3, 20), (5, 1, 7)] {
        let qkv = [heads, key_heads, key_heads].map(|heads| random(&[24, heads, width]));
        let cache = [
            random(&[8, key_heads, width, block]),
            random(&[8, key_heads, block, width]),
        ];
        let run = |kind| {
            let to = |tensor: &Tensor| tensor.to_kind(kind).copy();
            let (qkv, cache) = (qkv.each_ref().map(to), cache.each_ref().map(to));
            let made = cached_attention(qkv.each_ref(), (&cache[0], &cache[1]), &rows(), &ALL);
            made.expect("attention").to_kind(Kind::Double)
        };
        let exact = run(Kind::Double);
        for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 3e-2)] {
            let gap = (run(kind) - &exact).abs().max().double_value(&[]);
            assert!(gap < bound, "{kind:?}, {heads} heads of {width}: {gap:e}");
        }
    }
}

#[test]
fn attention_that_does_not_fit_is_refused() {
    let block = CACHE_BLOCK as i64;
    let q = random(&[24, 4, 8]);
    let k = random(&[24, 2, 8]);
    let (keys, values) = (random(&[8, 2, 8, block]), random(&[8, 2, block, 8]));
    let bias = random(&[4, 20]);
    let attend = |q: &Tensor, k: &Tensor, keys: &Tensor, options: &CachedOptions| {
        cached_attention([q, k, &k.copy()], (keys, &values), &rows(), options)
    };
    assert!(attend(&q, &k, &keys, &ALL).is_ok());
    let refused = [
        attend(&q.narrow(0, 0, 23), &k, &keys, &ALL),
        attend(&q.to_kind(Kind::Half), &k, &keys, &ALL),
        attend(&q, &random(&[24, 3, 8]), &keys, &ALL),
        attend(&q, &k.to_kind(Kind::Float), &keys, &ALL),
        attend(&q, &k, &keys.narrow(0, 0, 7), &ALL),
        attend(&q, &k, &keys.transpose(2, 3), &ALL),
        attend(
            &q,
            &k,
            &keys,
            &CachedOptions {
                bias_hs: Some(&bias),
                ..ALL
            },
        ),
    ];
    for (index, refused) in refused.into_iter().enumerate() {
        let error = refused.expect_err("tensors that do not fit");
        assert!(error.to_string().contains("expected"), "{index}: {error}");
    }
    // A window beyond all numbers is none, and one of nothing is the query's own key.
    let windowed = |window| {
        let window = Some(window);
        attend(&q, &k, &keys, &CachedOptions { window, ..ALL }).expect("attention")
    };
    assert!(windowed(usize::MAX).equal(&attend(&q, &k, &keys, &ALL).expect("attention")));
    assert!(windowed(0).equal(&windowed(1)));
}

#[test]
fn rows_that_do_not_fit_their_blocks_are_a_broken_invariant() {
    type Rows = [(usize, usize, &'static [u32]); 2];
    let broken: [Rows; 4] = [
        [(1, 16, &[0]), (1, 0, &[1])],
        [(usize::MAX, 2, &[0]), (1, 0, &[1])],
        [(1, 0, &[3]), (1, 5, &[3])],
        [(1, 0, &[u32::MAX]), (1, 0, &[1])],
    ];
    for rows in broken {
        let made = std::panic::catch_unwind(|| CachedRows::new(rows.into_iter()));
        assert!(made.is_err(), "{rows:?}");
    }
}

#[test]
fn sampling_that_does_not_fit_is_refused() {
    let cuts = Cuts {
        temperature: 1.0,
        top_k: None,
        top_p: None,
    };
    let logits = random(&[2, 5]);
    assert!(sample(&logits, Some(&[0.5, 0.1]), &cuts).is_ok());
    let refused = [
        sample(&logits, Some(&[0.5]), &cuts),
        sample(&logits.get(0), None, &cuts),
        sample(&logits.tr(), None, &cuts),
        sample(&logits.to_kind(Kind::Half), None, &cuts),
        sample(&random(&[2, 0]), None, &cuts),
    ];
    for (index, refused) in refused.into_iter().enumerate() {
        let error = refused.expect_err("logits that do not fit");
        assert!(error.to_string().contains("expected"), "{index}: {error}");
    }
    let (ids, logprobs) = sample(&random(&[0, 5]), Some(&[]), &cuts).expect("no rows");
    assert!(ids.is_empty() && logprobs.is_empty());
}
