//! Values of the command line: words, numbers with bounds, sizes.

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::ValueEnum;
use recipe::plan::{Dtype, Quantization};

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Device {
    /// The first GPU where there is one, else the CPU; a GPU that cannot be used is an error.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first GPU, or an error.
    Cuda,
}

impl Device {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// Type of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum DtypeArg {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// 64-bit floats.
    F64,
}

impl DtypeArg {
    /// The type of the word.
    pub fn resolve(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::Bf16,
            Self::F64 => Dtype::F64,
        }
    }

    /// The word itself.
    pub fn word(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F64 => "f64",
        }
    }
}

/// Bits of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuantizeArg {
    /// 8 bits, a scale for each output.
    Int8,
    /// 4 bits, scale and minimum for each 64 weights.
    Int4,
}

impl QuantizeArg {
    /// The type of the word.
    pub fn resolve(self) -> Quantization {
        match self {
            Self::Int8 => Quantization::Int8,
            Self::Int4 => Quantization::Int4,
        }
    }
}

/// The largest seed: it is a place in an array of jobs, of which Slurm usually allows 1001 (`MaxArraySize`).
const MAX_SEED: u64 = 1000;

/// `1,2,5-8`.
pub fn parse_seeds(text: &str) -> Result<Arc<[u64]>, String> {
    let wrong = || format!("{text}: expected numbers and ranges, as in 1,2,5-8");
    let mut seeds = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u64 = first.parse().map_err(|_| wrong())?;
        let last: u64 = last.parse().map_err(|_| wrong())?;
        if first > last {
            return Err(wrong());
        }
        if last > MAX_SEED {
            return Err(format!(
                "{text}: a seed is a place in an array of jobs, from 0 to {MAX_SEED} (Slurm's usual MaxArraySize), and \
                 {last} is above"
            ));
        }
        seeds.extend(first..=last);
    }
    Ok(seeds.into_iter().collect())
}

/// `KEY=VALUE`.
pub(crate) fn parse_override(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("expected KEY=VALUE, as in stages.sft.batch=32".into()),
    }
}

/// A whole number above 0.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be 1 or more".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

/// A number above 0.
pub(crate) fn above_zero(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if number > 0.0 && number.is_finite() {
        Ok(number)
    } else {
        Err("must be above 0".into())
    }
}

/// A temperature.
pub(crate) fn temperature(text: &str) -> Result<f64, String> {
    above_zero(text).map_err(|error| error + " (for the likeliest token always: --greedy)")
}

/// Any number but infinity and not-a-number.
pub(crate) fn finite(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if number.is_finite() {
        Ok(number)
    } else {
        Err("must be finite".into())
    }
}

/// A number above 0, up to 1.
pub(crate) fn probability(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if number > 0.0 && number <= 1.0 {
        Ok(number)
    } else {
        Err("must be in (0, 1]".into())
    }
}

/// Bytes: a number with `KB`, `MB` or `GB` (powers of 1000, as transformers counts), or without.
pub(crate) fn byte_size(text: &str) -> Result<u64, String> {
    let unit = |end: &str, factor: u64| Some((text.strip_suffix(end)?, factor));
    let (number, factor) = unit("GB", 1_000_000_000)
        .or_else(|| unit("MB", 1_000_000))
        .or_else(|| unit("KB", 1000))
        .unwrap_or((text, 1));
    let number: u64 = number
        .trim()
        .parse()
        .map_err(|_| "expected a size such as 5GB or 500MB".to_owned())?;
    match number.checked_mul(factor) {
        Some(0) | None => Err("must be above 0, and less than 2^64".to_owned()),
        Some(bytes) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("5GB", 5_000_000_000),
            ("20 MB", 20_000_000),
            ("3KB", 3000),
            ("7", 7),
        ] {
            assert_eq!(byte_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "-1", "0", "1.5GB", "99999999999GB", "5TB"] {
            assert!(byte_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seeds_are_numbers_and_ranges_each_once() {
        assert_eq!(parse_seeds("3,1-2,2").as_deref(), Ok(&[1, 2, 3][..]));
        for text in ["", "1,", "a", "3-1", "-1"] {
            assert!(parse_seeds(text).is_err(), "{text}");
        }
        assert_eq!(parse_seeds("0-1000").map(|seeds| seeds.len()), Ok(1001));
        let above = parse_seeds("1,1001").expect_err("no place");
        assert!(
            above.contains("from 0 to 1000") && above.contains("1001 is above"),
            "{above}"
        );
    }
}
