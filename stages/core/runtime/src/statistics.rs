//! Means and spreads of what was measured.

/// The mean; NaN of nothing.
pub fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// The middle one, or the mean of the two in the middle; NaN of nothing.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The sample standard deviation (n - 1); 0 of a single number, NaN of nothing.
pub fn deviation(numbers: &[f64]) -> f64 {
    let mean = mean(numbers);
    let squares: f64 = numbers.iter().map(|x| (x - mean).powi(2)).sum();
    (squares / (numbers.len() as f64 - 1.0).max(1.0)).sqrt()
}

/// The standard error of the mean: the deviation over the root of the count.
pub fn standard_error(numbers: &[f64]) -> f64 {
    deviation(numbers) / (numbers.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_numpy() {
        // python3 -c 'import numpy as np; x = [1, 2, 4, 9]; print(np.mean(x), np.std(x, ddof=1))'
        let numbers = [1.0, 2.0, 4.0, 9.0];
        assert!((mean(&numbers) - 4.0).abs() < 1e-12);
        assert!((deviation(&numbers) - 3.559_026_084_010_437).abs() < 1e-12);
        assert!((standard_error(&numbers) - 3.559_026_084_010_437 / 2.0).abs() < 1e-12);
        assert!(deviation(&[7.0]).abs() < 1e-12);
        assert!((median(&[9.0, 1.0, 4.0, 2.0]) - 3.0).abs() < 1e-12);
        assert!((median(&[9.0, 1.0, 4.0]) - 4.0).abs() < 1e-12);
    }
}
