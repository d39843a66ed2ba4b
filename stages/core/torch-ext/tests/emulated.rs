//! The GPU's kernels, run on the CPU one thread after another.

mod operators;

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};
use torch_ext::{
    CACHE_BLOCK, CachedOptions, CachedRows, Cuts, DeviceRows, cached_attention, device_attention,
    device_sample, sample, token_logprobs,
};

/// One test at a time: libtorch's random numbers are the process'.
fn begin() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    torch_ext::use_emulated_kernels().expect("librlhf_emulated.so lies beside the tests");
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn random(dims: &[i64]) -> Tensor {
    Tensor::randn(dims, (Kind::Double, Device::Cpu))
}

const BLOCKS: i64 = 12;

/// A row of 37 cached tokens and one new one, one of 20 new ones, one of 3 behind 30, and one of a full block.
fn rows() -> CachedRows {
    let tables: [&[u32]; 4] = [&[6, 0, 3], &[1, 4], &[2, 5, 7], &[11, 8]];
    let rows = [(1, 37), (20, 0), (3, 30), (1, 15)].into_iter().zip(tables);
    CachedRows::new(rows.map(|((new, past), blocks)| (new, past, blocks)))
}

/// Attention over a cache that one call filled with 48 tokens of each of 4 rows, by the CPU's kernel and by the
/// GPU's; and the largest difference between the two.
fn attention_gap(
    heads: [i64; 2],
    width: i64,
    kind: Kind,
    window: Option<usize>,
    biased: bool,
) -> f64 {
    let block = CACHE_BLOCK as i64;
    let [query_heads, key_heads] = heads;
    let wide = if kind == Kind::Double {
        kind
    } else {
        Kind::Float
    };
    let new = |tokens, heads| random(&[tokens, heads, width]).to_kind(kind);
    let cache = || {
        // What no token has filled may be anything.
        let memory = |dims: [i64; 4]| Tensor::full(dims, f64::NAN, (kind, Device::Cpu));
        [
            memory([BLOCKS, key_heads, width, block]),
            memory([BLOCKS, key_heads, block, width]),
        ]
    };
    let filled: [&[u32]; 4] = [&[6, 0, 3], &[1, 4, 9], &[2, 5, 7], &[11, 8, 10]];
    let filling = CachedRows::new(filled.iter().map(|blocks| (40, 0, *blocks)));
    let first = [query_heads, key_heads, key_heads].map(|heads| new(160, heads));
    let then = [query_heads, key_heads, key_heads].map(|heads| new(25, heads));
    let bias_hs = biased.then(|| random(&[query_heads, 60]).to_kind(wide));
    let options = CachedOptions {
        scale: 0.3,
        window,
        bias_hs: bias_hs.as_ref(),
    };
    let run = |on_device: bool| {
        let [keys, values] = cache();
        let outputs = [(&first, filling.clone()), (&then, rows())].map(|(qkv, rows)| {
            let (qkv, cache) = (qkv.each_ref(), (&keys, &values));
            if on_device {
                let rows = DeviceRows::new(&rows, Device::Cpu);
                device_attention(qkv, cache, &rows, &options).expect("attention")
            } else {
                cached_attention(qkv, cache, &rows, &options).expect("attention")
            }
        });
        Tensor::cat(&outputs, 0).to_kind(Kind::Double)
    };
    (run(true) - run(false)).abs().max().double_value(&[])
}

/// Heads that are taken four, two and one at a time, widths that fill 16 bytes and that do not, and more than a
/// warp reads at once.
#[test]
fn attention_is_that_of_the_cpu() {
    let _turn = begin();
    tch::manual_seed(3);
    for (heads, width, window, biased) in [
        ([4, 4], 16, None, false),
        ([8, 2], 24, Some(7), false),
        ([7, 1], 7, Some(1), true),
        ([2, 1], 80, Some(18), true),
        ([1, 1], 256, None, false),
    ] {
        for (kind, bound) in [
            (Kind::Double, 1e-13),
            (Kind::Float, 2e-5),
            (Kind::BFloat16, 4e-2),
        ] {
            let gap = attention_gap(heads, width, kind, window, biased);
            assert!(gap < bound, "{heads:?} heads of {width}, {kind:?}: {gap:e}");
        }
    }
}

/// With few tokens the keys of each are split; with many they are not.
#[test]
fn split_keys_are_joined() {
    let _turn = begin();
    tch::manual_seed(6);
    let (heads, width, block) = (3, 20, CACHE_BLOCK as i64);
    let qkv = [(); 3].map(|()| random(&[150, heads, width]));
    let attend = |rows: &CachedRows, qkv: [&Tensor; 3], cache: &[Tensor; 2]| {
        let rows = DeviceRows::new(rows, Device::Cpu);
        let options = CachedOptions {
            scale: 0.5,
            window: None,
            bias_hs: None,
        };
        device_attention(qkv, (&cache[0], &cache[1]), &rows, &options).expect("attention")
    };
    let cache = || {
        let zeros = |dims: [i64; 4]| Tensor::zeros(dims, (Kind::Double, Device::Cpu));
        [
            zeros([10, heads, width, block]),
            zeros([10, heads, block, width]),
        ]
    };
    let blocks: Vec<u32> = (0..10).rev().collect();
    let whole = attend(
        &CachedRows::new([(150, 0, &blocks[..])].into_iter()),
        qkv.each_ref(),
        &cache(),
    );
    let cache = cache();
    let parts: Vec<Tensor> = (0..150)
        .map(|t| {
            let one = qkv.each_ref().map(|tensor| tensor.narrow(0, t, 1));
            let rows = CachedRows::new([(1, t as usize, &blocks[..])].into_iter());
            attend(&rows, one.each_ref(), &cache)
        })
        .collect();
    let gap = (Tensor::cat(&parts, 0) - whole).abs().max();
    assert!(gap.double_value(&[]) < 1e-13);
}

#[test]
fn tokens_are_those_of_the_cpu() {
    let _turn = begin();
    tch::manual_seed(5);
    let plain = Cuts {
        temperature: 0.7,
        top_k: None,
        top_p: None,
    };
    for vocabulary in [3, 300, 700] {
        let logits_bv = random(&[24, vocabulary]) * 3.0;
        let _ = logits_bv.get(0).narrow(0, 1, 2).fill_(f64::NEG_INFINITY);
        // Equally likely: the first is taken.
        let _ = logits_bv.get(1).fill_(0.25);
        let uniform: Vec<f64> = (0..24).map(|i| f64::from(i) / 24.0).collect();
        let uniform_b = Tensor::from_slice(&uniform);
        for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
            let logits_bv = logits_bv.to_kind(kind);
            for greedy in [false, true] {
                let given = (!greedy).then_some(&uniform_b);
                let (ids_b, logprobs_b) = device_sample(&logits_bv, given, 0.7).expect("tokens");
                let slice = (!greedy).then_some(&uniform[..]);
                let (ids, logprobs) = sample(&logits_bv, slice, &plain).expect("tokens");
                assert!(
                    ids_b.equal(&Tensor::from_slice(&ids)),
                    "{kind:?}, {vocabulary}"
                );
                let gap = (logprobs_b - Tensor::from_slice(&logprobs)).abs().max();
                assert!(gap.double_value(&[]) < 1e-5, "{kind:?}");
            }
        }
    }
    let broken = Tensor::full([1, 9], f64::NAN, (Kind::Float, Device::Cpu));
    let half = Tensor::from_slice(&[0.5]);
    let (id, logprob) = device_sample(&broken, Some(&half), 1.0).expect("no token");
    assert!((0..9).contains(&id.int64_value(&[0])) && logprob.double_value(&[0]).is_nan());
}

#[test]
fn log_probabilities_are_a_log_softmax() {
    let _turn = begin();
    tch::manual_seed(7);
    let targets_n = Tensor::randint(300, [6], (Kind::Int64, Device::Cpu));
    let (hidden, weight) = (random(&[6, 5]), random(&[300, 5]));
    let seed_n = random(&[6]);
    for (kind, bound) in [
        (Kind::Double, 1e-13),
        (Kind::Float, 1e-5),
        (Kind::BFloat16, 5e-2),
    ] {
        let leaf = |tensor: &Tensor| tensor.to_kind(kind).copy().set_requires_grad(true);
        let (ours, direct) = (
            [leaf(&hidden), leaf(&weight)],
            [leaf(&hidden), leaf(&weight)],
        );
        let made = token_logprobs(&ours[0], &ours[1], &targets_n, 0.6, 4).expect("forward");
        let wide = |it: &Tensor| it.to_kind(Kind::Double);
        let logits = wide(&direct[0]).matmul(&wide(&direct[1]).tr()) / 0.6;
        let expected = logits
            .log_softmax(-1, None)
            .gather(-1, &targets_n.unsqueeze(-1), false)
            .squeeze_dim(-1);
        (wide(&made) * &seed_n).sum(None).backward();
        (&expected * &seed_n).sum(None).backward();
        let gap = |a: &Tensor, b: &Tensor| (wide(a) - wide(b)).abs().max().double_value(&[]);
        assert!(gap(&made, &expected) < bound, "{kind:?}");
        for (a, b) in ours.iter().zip(&direct) {
            assert!(gap(&a.grad(), &b.grad()) < bound, "{kind:?}");
        }
    }
    for outside in [-1, 300] {
        let targets_n = targets_n.copy();
        let _ = targets_n.get(2).fill_(outside);
        let made = token_logprobs(&hidden, &weight, &targets_n, 0.6, 4).expect("forward");
        let numbers = Vec::<f64>::try_from(made).expect("f64");
        let is_none = |row: usize| numbers[row].is_nan();
        assert!((0..6).all(|row| is_none(row) == (row == 2)), "{numbers:?}");
    }
}
