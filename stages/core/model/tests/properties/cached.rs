//! Decoding with a cache is the full pass, however rows come, divide and leave.

use model::{CachedRow, Head, KvCache, Model};
use recipe::shape::ModelShape;
use tch::{Device, Kind, Tensor};

use crate::{alone, assert_equal, is_static, models, rows, shapes};

/// The last hidden state of a row, from a full pass.
fn last_of(model: &Model, row: &[i64]) -> Tensor {
    let hidden_btd = model.hidden(&alone(row));
    hidden_btd.select(1, row.len() as i64 - 1).get(0)
}

/// Appends tokens to the rows and reads them through the cache, in one pass.
fn read(
    model: &Model,
    cache: &mut KvCache,
    cached: &mut [CachedRow],
    sequences: &mut [Vec<i64>],
    new: &[Vec<i64>],
) {
    let ids_n = Tensor::from_slice(&new.concat());
    let counts = new.iter().map(Vec::len);
    let mut rows: Vec<_> = cached.iter_mut().zip(counts).collect();
    let hidden_bd = model.forward_cached(&ids_n, &mut rows, cache);
    for (index, (sequence, new)) in sequences.iter_mut().zip(new).enumerate() {
        sequence.extend(new);
        let ours = hidden_bd.get(index as i64);
        assert_equal("cached", &ours, &last_of(model, sequence));
        assert_eq!(cached[index].len(), sequence.len());
    }
}

#[test]
fn cached_decoding_equals_the_full_pass() {
    let _guard = tch::no_grad_guard();
    for model in models().iter().filter(|model| is_static(model)) {
        // Prompts of 9, 6 and 1 tokens; then one, four and two more beside each other; then the middle row
        // leaves, another takes its blocks, and all read one more.
        let mut cache = KvCache::new(model, 3);
        let mut cached: Vec<CachedRow> = (0..3).map(|_| CachedRow::default()).collect();
        let mut sequences = vec![Vec::new(); 3];
        read(model, &mut cache, &mut cached, &mut sequences, &rows());
        let more = [vec![3], vec![5, 7, 11, 2], vec![13, 1]];
        read(model, &mut cache, &mut cached, &mut sequences, &more);
        assert_eq!(cache.num_free(), 0);
        cache.release(cached.remove(1));
        sequences.remove(1);
        cached.push(CachedRow::default());
        sequences.push(Vec::new());
        let more = [vec![4], vec![8], vec![9, 6, 3]];
        read(model, &mut cache, &mut cached, &mut sequences, &more);
        assert_eq!(cache.num_free(), 0);
    }
}

/// Blocks hold 16 tokens: rows of more, in models of more positions.
#[test]
fn rows_of_several_blocks_and_forks_of_them_equal_the_full_pass() {
    let _guard = tch::no_grad_guard();
    for shape in shapes() {
        let shape = ModelShape {
            max_positions: 64,
            ..shape
        };
        let model = Model::init(&shape, Head::Token, 7, Device::Cpu, Kind::Double);
        if !is_static(&model) {
            continue;
        }
        for len in [15, 16, 17, 35] {
            let row: Vec<i64> = (0..len).map(|i| (i * i * 5 + 3) % 41).collect();
            let mut cache = KvCache::new(&model, 8);
            let mut first = CachedRow::default();
            let ids_n = Tensor::from_slice(&row);
            let mut rows = [(&mut first, row.len())];
            let hidden_bd = model.forward_cached(&ids_n, &mut rows, &mut cache);
            assert_equal("prompt", &hidden_bd.get(0), &last_of(&model, &row));
            let second = cache.fork(&first);
            let blocks = KvCache::blocks_for(row.len());
            assert_eq!(8 - cache.num_free(), blocks + usize::from(len % 16 != 0));
            // Each goes its own way, and the first is gone before the second has ended.
            let mut cached = [first, second];
            let mut sequences = [row.clone(), row];
            let new = [vec![1; 3], vec![2; 2]];
            read(&model, &mut cache, &mut cached, &mut sequences, &new);
            let [first, second] = cached;
            cache.release(first);
            let [_, sequence] = sequences;
            let (mut cached, mut sequences) = ([second], [sequence]);
            read(
                &model,
                &mut cache,
                &mut cached,
                &mut sequences,
                &[vec![6; 16]],
            );
            let [second] = cached;
            cache.release(second);
            assert_eq!(cache.num_free(), 8);
        }
    }
}
