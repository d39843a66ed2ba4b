//! GPUs by name, as their makers' public data sheets describe them.

use crate::nearest;

/// A kind of GPU. Rates are peaks of dense products and of one direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gpu {
    /// What `--gpu` calls it.
    pub name: &'static str,
    /// Memory, 10^9 bytes.
    pub memory_gb: f64,
    /// Matrix products in bf16 without sparsity, 10^12 operations a second.
    pub bf16_tflops: f64,
    /// In f32 outside of tensor cores, which `dtype = "f32"` does not use.
    pub f32_tflops: f64,
    /// Reading its memory, 10^9 bytes a second.
    pub memory_gb_per_s: f64,
    /// To the other GPUs of its node: half of what is advertised, which counts both directions.
    pub link_gb_per_s: f64,
}

/// Name, memory, bf16, f32, bandwidth, link.
type Row = (&'static str, f64, f64, f64, f64, f64);

/// The data sheet of each is the maker's of that name; the figures with sparsity are twice these.
const GPUS: &[Row] = &[
    // NVIDIA A100 Tensor Core GPU, SXM: third-generation NVLink, 600 GB/s.
    ("a100-40g", 40.0, 312.0, 19.5, 1555.0, 300.0),
    ("a100-80g", 80.0, 312.0, 19.5, 2039.0, 300.0),
    // NVIDIA H100 and H200 Tensor Core GPU, SXM: fourth-generation NVLink, 900 GB/s.
    ("h100-80g", 80.0, 989.0, 67.0, 3350.0, 450.0),
    ("h200-141g", 141.0, 989.0, 67.0, 4800.0, 450.0),
    // NVIDIA DGX B200, an eighth of it: fifth-generation NVLink, 1.8 TB/s.
    ("b200-180g", 180.0, 2250.0, 75.0, 8000.0, 900.0),
    // NVIDIA L40S: PCIe 4.0 x16, 64 GB/s.
    ("l40s-48g", 48.0, 362.0, 91.6, 864.0, 32.0),
];

impl Gpu {
    /// The GPU of a name.
    ///
    /// # Errors
    /// A message with a hint, where there is none of that name.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = GPUS.iter().find(|row| row.0 == name);
        let Some(&(name, memory_gb, bf16_tflops, f32_tflops, memory_gb_per_s, link_gb_per_s)) =
            found
        else {
            let hint = nearest::hint(name, &Self::names(), "GPUs");
            return Err(format!("--gpu {name}: no such GPU\n  hint: {hint}"));
        };
        Ok(Self {
            name,
            memory_gb,
            bf16_tflops,
            f32_tflops,
            memory_gb_per_s,
            link_gb_per_s,
        })
    }

    /// Every name.
    pub fn names() -> Vec<&'static str> {
        GPUS.iter().map(|row| row.0).collect()
    }
}
