//! What freed tensors leave in the process. A test of its own: others would allocate beside it.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use tch::{Device, Kind, Tensor};

/// A tensor's memory is the process's own no longer once it is freed, also after glibc has seen larger ones come and go.
#[test]
fn tensors_are_given_back_at_once() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("a status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<i64>().ok());
        kib.expect("a size") / 1024
    };
    let ones = |mib: i64| Tensor::ones([mib << 20], (Kind::Uint8, Device::Cpu));
    assert!(torch_ext::give_back_tensors(1 << 20));
    drop(ones(31));
    let before = resident();
    let tensors: Vec<Tensor> = (0..64).map(|_| ones(8)).collect();
    assert!(resident() > before + 400);
    // What lies behind all others keeps nothing of them.
    let last = ones(8);
    drop(tensors);
    assert!(resident() < before + 100, "{} MiB of {before}", resident());
    drop(last);
}
