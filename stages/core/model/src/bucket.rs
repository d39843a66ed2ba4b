//! Tensors that travel between ranks together, and what each rank keeps of them.
//!
//! A bucket lays tensors out behind each other, flat, and is cut into as many equal parts as there are ranks, wherever the
//! cuts fall (`FullyShardedDataParallel`'s flat parameter: Zhao et al. 2023). So what belongs to a rank lies together: what one
//! collective operation carries, from and into the bucket itself.
//!
//! Shape suffixes: n numbers of a bucket, c those of one rank.

use std::ops::Range;

use tch::{Kind, Tensor};

/// Bytes of a bucket in f32, from which on it takes no further tensor: enough to pay for an operation, few enough that
/// it can begin while others are made (as in `DistributedDataParallel`).
const BUCKET_BYTES: usize = 25 << 20;

/// Tensors begin at multiples of so many numbers, as kernels want them.
const ALIGNMENT: usize = 64;

/// The block that a parameter belongs to, by the number in its name; `None`: what is before and behind all blocks.
pub fn block_of(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// Tensors of one part of a model, by their index in a list of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    part: Option<usize>,
    entries: Vec<Entry>,
    ranks: usize,
    numel: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    index: usize,
    start: usize,
    numel: usize,
}

/// What a rank keeps of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The tensor.
    pub index: usize,
    /// Which of its numbers; perhaps none.
    pub numbers: Range<usize>,
    /// Where the first of them lies in the rank's part of the bucket.
    pub offset: usize,
}

impl Slice {
    /// These numbers of the rank's part `[c]`, flat, sharing its memory.
    pub fn of_part(&self, part_c: &Tensor) -> Tensor {
        part_c.narrow(0, self.offset as i64, self.numbers.len() as i64)
    }

    /// These numbers of the tensor, which is contiguous; flat, sharing its memory.
    pub fn of_tensor(&self, tensor: &Tensor) -> Tensor {
        let flat = tensor.detach().view([-1]);
        flat.narrow(0, self.numbers.start as i64, self.numbers.len() as i64)
    }
}

impl Bucket {
    /// Buckets of tensors, each given by its part (the block whose backward pass completes it) and its numbers, for so
    /// many ranks. A part has buckets of its own.
    pub fn of(tensors: &[(Option<usize>, usize)], ranks: usize) -> Vec<Self> {
        let mut buckets: Vec<Self> = Vec::new();
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|index| tensors[*index].0);
        for index in order {
            let (part, numel) = tensors[index];
            let has_room = |bucket: &&mut Self| {
                bucket.part == part && bucket.numel * size_of::<f32>() < BUCKET_BYTES
            };
            if let Some(bucket) = buckets.last_mut().filter(has_room) {
                bucket.push(index, numel);
                continue;
            }
            let mut bucket = Self {
                part,
                entries: Vec::new(),
                ranks,
                numel: 0,
            };
            bucket.push(index, numel);
            buckets.push(bucket);
        }
        buckets
    }

    fn push(&mut self, index: usize, numel: usize) {
        let start = self.end().next_multiple_of(ALIGNMENT);
        self.entries.push(Entry {
            index,
            start,
            numel,
        });
        self.numel = self.end().next_multiple_of(self.ranks);
    }

    fn end(&self) -> usize {
        let last = self.entries.last();
        last.map_or(0, |entry| entry.start + entry.numel)
    }

    /// The part of the model whose tensors these are.
    pub fn part(&self) -> Option<usize> {
        self.part
    }

    /// Which tensors it has.
    pub fn indices(&self) -> impl Iterator<Item = usize> {
        self.entries.iter().map(|entry| entry.index)
    }

    /// Numbers of the whole: those of the tensors, and what lies between them.
    pub fn numel(&self) -> usize {
        self.numel
    }

    /// Numbers of each rank.
    pub fn part_numel(&self) -> usize {
        self.numel / self.ranks
    }

    /// A tensor's place in the whole `[n]`, flat, by its index; it shares the memory.
    pub fn places(&self, whole_n: &Tensor) -> Vec<(usize, Tensor)> {
        let place = |entry: &Entry| {
            let place = whole_n.narrow(0, entry.start as i64, entry.numel as i64);
            (entry.index, place)
        };
        self.entries.iter().map(place).collect()
    }

    /// The whole `[n]` of some tensors, in `kind`; those that are `None` leave zeros.
    pub fn pack<'a>(
        &self,
        kind: (Kind, tch::Device),
        tensor: impl Fn(usize) -> Option<&'a Tensor>,
    ) -> Tensor {
        let whole_n = Tensor::zeros([self.numel as i64], kind);
        for (index, mut place) in self.places(&whole_n) {
            if let Some(tensor) = tensor(index) {
                place.copy_(&tensor.detach().reshape([-1]));
            }
        }
        whole_n
    }

    /// A rank's part of the whole `[n]`, sharing its memory.
    pub fn part_of(&self, whole_n: &Tensor, rank: usize) -> Tensor {
        let numel = self.part_numel() as i64;
        whole_n.narrow(0, rank as i64 * numel, numel)
    }

    /// What a rank keeps of each tensor.
    pub fn slices(&self, rank: usize) -> impl Iterator<Item = Slice> {
        let first = rank * self.part_numel();
        let end = first + self.part_numel();
        self.entries.iter().map(move |entry| {
            let inside = |at: usize| at.clamp(entry.start, entry.start + entry.numel);
            let (from, to) = (inside(first), inside(end));
            Slice {
                index: entry.index,
                numbers: from - entry.start..to - entry.start,
                // Where it has none of the tensor, any place will do.
                offset: from.clamp(first, end) - first,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn tensors() -> Vec<Tensor> {
        [(3, 50), (1, 1), (20, 40)]
            .iter()
            .zip(1..)
            .map(|((rows, columns), seed)| {
                Tensor::arange(rows * columns, (Kind::Float, Device::Cpu)).view([*rows, *columns])
                    + 10_000 * seed
            })
            .collect()
    }

    #[test]
    fn what_is_packed_comes_back_and_ranks_have_each_number_once() {
        let tensors = tensors();
        let described: Vec<(Option<usize>, usize)> =
            tensors.iter().map(|x| (Some(0), x.numel())).collect();
        for ranks in [1, 2, 3, 4, 64] {
            let buckets = Bucket::of(&described, ranks);
            assert_eq!(buckets.len(), 1);
            let bucket = &buckets[0];
            let whole_n = bucket.pack((Kind::Float, Device::Cpu), |index| Some(&tensors[index]));
            for (index, place) in bucket.places(&whole_n) {
                assert_eq!(place, tensors[index].view([-1]));
            }
            let mut seen = vec![Vec::new(); tensors.len()];
            for rank in 0..ranks {
                let part_c = bucket.part_of(&whole_n, rank);
                for slice in bucket.slices(rank) {
                    let here = slice.of_part(&part_c);
                    assert_eq!(here, slice.of_tensor(&tensors[slice.index]), "{slice:?}");
                    seen[slice.index].extend(slice.numbers);
                }
            }
            for (numbers, tensor) in seen.iter().zip(&tensors) {
                assert_eq!(*numbers, (0..tensor.numel()).collect::<Vec<_>>());
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

    #[test]
    fn a_block_is_the_number_in_a_name() {
        assert_eq!(block_of("model.layers.11.mlp.up_proj.weight"), Some(11));
        assert_eq!(block_of("transformer.wte.weight"), None);
    }
}
