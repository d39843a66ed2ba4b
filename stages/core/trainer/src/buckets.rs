//! Tensors that travel between ranks together, and what each rank keeps of them.
//!
//! A tensor of `n` numbers is cut into as many slices of `ceil(n / ranks)` numbers as there are ranks (the last may be
//! shorter, or empty), whatever its shape. A bucket lays out tensors so that what belongs to a rank lies together: what
//! one collective operation carries.
//!
//! Shape suffixes: r ranks, c numbers of a bucket for each of them.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

/// Bytes of gradients in a bucket, from which on it takes no further tensor: enough to pay for an operation, few enough that
/// it can begin while others are made (as in `DistributedDataParallel`).
const BUCKET_BYTES: usize = 25 << 20;

/// The numbers of a tensor of `numel` that the rank keeps.
pub(crate) fn slice_of(numel: usize, rank: usize, size: usize) -> Range<usize> {
    let chunk = numel.div_ceil(size);
    (rank * chunk).min(numel)..((rank + 1) * chunk).min(numel)
}

/// Tensors of one part of a model, by their index in the list of all.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// The part whose backward pass completes them.
    pub(crate) part: Option<usize>,
    entries: Vec<Entry>,
    ranks: usize,
    /// Numbers for each rank.
    chunk: usize,
}

#[derive(Debug)]
struct Entry {
    index: usize,
    numel: usize,
    /// Where a rank's numbers start among its numbers of the bucket.
    offset: usize,
}

impl Bucket {
    /// Buckets of tensors, each given by its part and its numbers, for so many ranks.
    pub(crate) fn of(tensors: &[(Option<usize>, usize)], ranks: usize) -> Vec<Self> {
        let mut buckets: Vec<Self> = Vec::new();
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|index| tensors[*index].0);
        for index in order {
            let (part, numel) = tensors[index];
            let has_room = |bucket: &&mut Self| {
                bucket.part == part && bucket.chunk * ranks * size_of::<f32>() < BUCKET_BYTES
            };
            if let Some(bucket) = buckets.last_mut().filter(has_room) {
                bucket.push(index, numel);
                continue;
            }
            let mut bucket = Self {
                part,
                entries: Vec::new(),
                ranks,
                chunk: 0,
            };
            bucket.push(index, numel);
            buckets.push(bucket);
        }
        buckets
    }

    fn push(&mut self, index: usize, numel: usize) {
        let chunk = numel.div_ceil(self.ranks);
        self.entries.push(Entry {
            index,
            numel,
            offset: self.chunk,
        });
        self.chunk += chunk;
    }

    /// Which tensors it has.
    pub(crate) fn indices(&self) -> impl Iterator<Item = usize> {
        self.entries.iter().map(|entry| entry.index)
    }

    /// A place for one rank's numbers of it, `[c]`.
    pub(crate) fn part(&self, kind: Kind, device: Device) -> Tensor {
        Tensor::zeros([self.chunk as i64], (kind, device))
    }

    /// A place for those of all ranks, `[r * c]`.
    pub(crate) fn whole(&self, kind: Kind, device: Device) -> Tensor {
        Tensor::zeros([(self.ranks * self.chunk) as i64], (kind, device))
    }

    /// Copies whole tensors into `[r * c]`; those that are `None` leave zeros.
    pub(crate) fn pack<'a>(&self, whole: &Tensor, tensor: impl Fn(usize) -> Option<&'a Tensor>) {
        for entry in &self.entries {
            if let Some(tensor) = tensor(entry.index) {
                let flat = tensor.detach().reshape([-1]);
                self.each_slice(entry, whole, |mut place, range| {
                    place.copy_(&flat.narrow(0, range.start as i64, range.len() as i64));
                });
            }
        }
    }

    /// Copies `[r * c]` into whole tensors, which are contiguous.
    pub(crate) fn unpack<'a>(&self, whole: &Tensor, tensor: impl Fn(usize) -> &'a Tensor) {
        for entry in &self.entries {
            let flat = tensor(entry.index).detach().view([-1]);
            self.each_slice(entry, whole, |place, range| {
                flat.narrow(0, range.start as i64, range.len() as i64)
                    .copy_(&place);
            });
        }
    }

    fn each_slice(&self, entry: &Entry, whole: &Tensor, act: impl Fn(Tensor, Range<usize>)) {
        for rank in 0..self.ranks {
            let range = slice_of(entry.numel, rank, self.ranks);
            if !range.is_empty() {
                let start = rank * self.chunk + entry.offset;
                act(whole.narrow(0, start as i64, range.len() as i64), range);
            }
        }
    }

    /// What `[c]` of a rank holds of each tensor: its index and its slice, which shares the memory.
    pub(crate) fn slices(&self, part: &Tensor, rank: usize) -> Vec<(usize, Tensor)> {
        let slice = |entry: &Entry| {
            let len = slice_of(entry.numel, rank, self.ranks).len();
            let slice = part.narrow(0, entry.offset as i64, len as i64);
            (entry.index, slice)
        };
        self.entries.iter().map(slice).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_a_tensor_once() {
        for numel in [0, 1, 5, 8, 9] {
            for size in [1, 2, 4] {
                let all: Vec<usize> = (0..size)
                    .flat_map(|rank| slice_of(numel, rank, size))
                    .collect();
                assert_eq!(all, (0..numel).collect::<Vec<_>>(), "{numel} over {size}");
            }
        }
    }

    #[test]
    fn what_is_packed_comes_back_and_slices_are_its_parts() {
        let tensors: Vec<Tensor> = [(3, 5), (1, 1), (2, 4)]
            .iter()
            .zip(1..)
            .map(|((rows, columns), seed)| {
                Tensor::arange(rows * columns, (Kind::Float, Device::Cpu)).view([*rows, *columns])
                    + 100 * seed
            })
            .collect();
        let described: Vec<(Option<usize>, usize)> =
            tensors.iter().map(|x| (Some(0), x.numel())).collect();
        for ranks in [1, 2, 4] {
            let buckets = Bucket::of(&described, ranks);
            assert_eq!(buckets.len(), 1);
            let bucket = &buckets[0];
            let whole = bucket.whole(Kind::Float, Device::Cpu);
            bucket.pack(&whole, |index| Some(&tensors[index]));
            let copies: Vec<Tensor> = tensors.iter().map(Tensor::zeros_like).collect();
            bucket.unpack(&whole, |index| &copies[index]);
            assert!(copies.iter().zip(&tensors).all(|(a, b)| a == b));
            for rank in 0..ranks {
                let chunk = bucket.chunk as i64;
                let part = whole.narrow(0, rank as i64 * chunk, chunk);
                for (index, slice) in bucket.slices(&part, rank) {
                    let range = slice_of(tensors[index].numel(), rank, ranks);
                    let flat = tensors[index].view([-1]);
                    let expected = flat.narrow(0, range.start as i64, range.len() as i64);
                    assert_eq!(slice, expected, "tensor {index} of rank {rank} of {ranks}");
                }
            }
        }
    }

    #[test]
    fn parts_have_buckets_of_their_own_and_large_ones_several() {
        let large = BUCKET_BYTES / size_of::<f32>();
        let tensors = [(None, 10), (Some(1), large), (Some(0), 10), (Some(1), 10)];
        let buckets = Bucket::of(&tensors, 2);
        let found: Vec<(Option<usize>, Vec<usize>)> = buckets
            .iter()
            .map(|bucket| (bucket.part, bucket.indices().collect()))
            .collect();
        let expected = [
            (None, vec![0]),
            (Some(0), vec![2]),
            (Some(1), vec![1]),
            (Some(1), vec![3]),
        ];
        assert_eq!(found, expected);
    }
}
