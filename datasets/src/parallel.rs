//! Work on many rows at once.

use rayon::prelude::*;

/// `make` of every row, in parallel, in the order of the rows.
///
/// # Errors
/// The error of the first row that has one, whichever thread finds an error first.
pub(crate) fn try_map<R: Sync, T: Send, E: Send>(
    rows: &[R],
    make: impl Fn(&R) -> Result<T, E> + Sync + Send,
) -> Result<Vec<T>, E> {
    let outcomes: Vec<Result<T, E>> = rows.par_iter().map(make).collect();
    outcomes.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rows_error_is_told_whoever_is_faster() {
        let slow_first = |&row: &u64| -> Result<u64, u64> {
            std::thread::sleep(std::time::Duration::from_millis(20 - row));
            if row % 2 == 1 { Err(row) } else { Ok(row) }
        };
        let rows: Vec<u64> = (0..20).collect();
        assert_eq!(try_map(&rows, slow_first), Err(1));
        assert_eq!(try_map(&[0, 2, 4], slow_first), Ok(vec![0, 2, 4]));
    }
}
