//! From collated vectors to tensors.
//!
//! Shape suffixes: b rows, t columns.

use datasets::{Padded, Side};
use tch::{Device, Tensor};

/// A mask over tokens, padded with false on `side` like the batch whose rows it describes.
///
/// # Panics
/// Where there are not as many rows as in the batch, or a row is longer than its columns.
pub fn mask_bt(rows: &[&[bool]], side: Side, batch: &Padded, device: Device) -> Tensor {
    assert_eq!(rows.len(), batch.rows, "one mask per row of the batch");
    let mut mask = vec![false; batch.rows * batch.cols];
    for (row, places) in rows.iter().zip(mask.chunks_mut(batch.cols.max(1))) {
        assert!(
            row.len() <= batch.cols,
            "a mask of {} in {} columns",
            row.len(),
            batch.cols
        );
        let start = match side {
            Side::Left => batch.cols - row.len(),
            Side::Right => 0,
        };
        places[start..start + row.len()].copy_from_slice(row);
    }
    Tensor::from_slice(&mask)
        .view([batch.rows as i64, batch.cols as i64])
        .to_device(device)
}
