//! Attention over rows of different lengths, without padding between them.
//!
//! Shape suffixes: h query heads, g key heads, m queries of all rows, n keys of all rows, e width of a head.

use tch::{Device, Kind, Tensor};

use crate::TorchError;
use crate::ffi::{self, check};
use crate::ops::{argument, describe};

/// The widest head that libtorch's kernels take.
const WIDEST_HEAD: i64 = 256;

/// Where rows begin and end that lie one behind the other: the queries of each are its last ones.
#[derive(Debug)]
pub struct RowSpans {
    /// Where the queries of each row start, and the last ones end, int32 `[b + 1]`.
    query_starts: Tensor,
    /// The same of keys.
    key_starts: Tensor,
    longest: [i64; 2],
    ends: [i64; 2],
}

impl RowSpans {
    /// Keys of the longest row.
    pub(crate) fn longest(&self) -> i64 {
        self.longest[1]
    }

    /// Rows of these many queries and keys.
    ///
    /// # Panics
    /// When there are not as many of the one as of the other, or a row has more queries than keys.
    pub fn new(queries: &[i64], keys: &[i64], device: Device) -> Self {
        let fits = queries.iter().zip(keys).all(|(m, n)| (0..=*n).contains(m));
        assert!(
            queries.len() == keys.len() && fits,
            "rows of {queries:?} queries beside {keys:?} keys"
        );
        let starts = |counts: &[i64]| {
            let mut starts = vec![0];
            for count in counts {
                starts.push(starts[starts.len() - 1] + *count as i32);
            }
            Tensor::from_slice(&starts).to_device(device)
        };
        let lists = [queries, keys];
        Self {
            query_starts: starts(queries),
            key_starts: starts(keys),
            longest: lists.map(|counts| counts.iter().copied().max().unwrap_or(0)),
            ends: lists.map(|counts| counts.iter().sum()),
        }
    }
}

/// Whether [`row_attention`] takes heads of this width and type on this device: libtorch's kernels for GPUs do, in
/// f32 and in types of 16 bits.
pub fn serves_rows(device: Device, kind: Kind, head_dim: i64) -> bool {
    let kinds = [Kind::Float, Kind::BFloat16, Kind::Half];
    device.is_cuda() && kinds.contains(&kind) && head_dim % 8 == 0 && head_dim <= WIDEST_HEAD
}

/// `softmax(scale q k^T) v` within each row, `[h, m, e]`, of queries `[h, m, e]` and keys and values `[g, n, e]`; a
/// query sees the keys up to its own. Gradients flow to all three.
///
/// # Errors
/// When shapes or types do not fit, or libtorch throws.
pub fn row_attention(
    q_hme: &Tensor,
    k_gne: &Tensor,
    v_gne: &Tensor,
    spans: &RowSpans,
    scale: f64,
) -> Result<Tensor, TorchError> {
    let operation = "row_attention";
    let (q, k) = (q_hme.size(), k_gne.size());
    let fits = q.len() == 3
        && k.len() == 3
        && v_gne.size() == k
        && q[2] == k[2]
        && k[0] > 0
        && q[0] % k[0] == 0
        && [q[1], k[1]] == spans.ends
        && [k_gne, v_gne].iter().all(|x| x.kind() == q_hme.kind())
        && serves_rows(q_hme.device(), q_hme.kind(), q[2]);
    if !fits {
        let found = [q_hme, k_gne, v_gne].map(describe).join(", ");
        let expected = format!(
            "[h, {}, e] and twice [g, {}, e] on a GPU in one type of at most 32 bits",
            spans.ends[0], spans.ends[1]
        );
        return Err(argument(operation, "q, k and v", &found, &expected));
    }
    let mut out = std::ptr::null_mut();
    // SAFETY: the inputs are borrowed for this call; `out` is a valid place for one pointer, which on success holds a
    // tensor of which we are the only owner.
    unsafe {
        check(
            operation,
            ffi::rlhf_row_attention(
                q_hme.as_ptr(),
                k_gne.as_ptr(),
                v_gne.as_ptr(),
                spans.query_starts.as_ptr(),
                spans.key_starts.as_ptr(),
                spans.longest[0],
                spans.longest[1],
                scale,
                &raw mut out,
            ),
        )?;
        Ok(Tensor::from_ptr(out))
    }
}
