//! Compiles the C++ beside this crate: `cpp/*.cpp` into the crate, and, where the CUDA headers are
//! installed, `cpp/cuda.cpp` into `librlhf_cuda.so`, which is loaded at run time.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Codes stand for the same numbers on every machine: a sum of products is rounded twice.
const EXACT: [&str; 5] = [
    "cpp/library.cpp",
    "cpp/ops.cpp",
    "cpp/packed.cpp",
    "cpp/quantized.cpp",
    "cpp/token_logprobs.cpp",
];
/// Kernels, which multiply and add in one instruction where there is one.
const FUSED: [&str; 4] = [
    "cpp/activations.cpp",
    "cpp/cached_attention.cpp",
    "cpp/fused.cpp",
    "cpp/sample.cpp",
];

fn main() {
    for file in EXACT.iter().chain(&FUSED).chain(&[
        "cpp/border.h",
        "cpp/kernels.h",
        "cpp/vectors.h",
        "cpp/cuda.cpp",
        "build.rs",
    ]) {
        println!("cargo:rerun-if-changed={file}");
    }
    for name in ["DEP_TCH_LIBTORCH_LIB", "CXX"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let lib = env::var("DEP_TCH_LIBTORCH_LIB")
        .map(PathBuf::from)
        .expect("torch-sys says where libtorch lies");
    let torch = lib
        .parent()
        .expect("libtorch's libraries lie in lib/")
        .to_path_buf();
    let lib = lib.display();
    println!("cargo:libtorch_lib={lib}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    compile(&torch, "rlhf_exact", &EXACT, "-ffp-contract=off");
    compile(&torch, "rlhf_fused", &FUSED, "-ffp-contract=fast");
    // Of this name libtorch brings one, and there is one in the process.
    println!("cargo:rustc-link-lib=dylib=gomp");
    compile_cuda(&torch);
}

fn includes(torch: &Path) -> [PathBuf; 2] {
    [
        torch.join("include"),
        torch.join("include/torch/csrc/api/include"),
    ]
}

fn compile(torch: &Path, name: &str, sources: &[&str], contraction: &str) {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .pic(true)
        // Loops become vector instructions, and libtorch's threads are OpenMP's.
        .opt_level(3)
        .flag("-fopenmp")
        .flag("-Wno-psabi")
        .flag(contraction)
        .warnings(false)
        .files(sources);
    for include in includes(torch) {
        build.flag("-isystem").flag(include);
    }
    build.define("_GLIBCXX_USE_CXX11_ABI", "1").compile(name);
}

/// A missing header is a warning: machines without GPUs do not need the library, and the others are
/// told at run time.
fn compile_cuda(torch: &Path) {
    let Ok(torch) = torch.canonicalize() else {
        return;
    };
    let Some(site) = torch.parent() else { return };
    let cuda = site.join("nvidia/cu13");
    // `crt` and `cccl` come in wheels of their own.
    for header in [
        "include/cuda_runtime.h",
        "include/crt/host_defines.h",
        "include/cccl",
    ] {
        let path = cuda.join(header);
        println!("cargo:rerun-if-changed={}", path.display());
        if !path.exists() {
            println!(
                "cargo:warning=librlhf_cuda.so is not built: {} is missing; hint: install requirements.txt \
                 (`make setup`)",
                path.display()
            );
            return;
        }
    }
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let library = out.join("librlhf_cuda.so");
    let compiler = cc::Build::new().cpp(true).get_compiler();
    let mut command = Command::new(compiler.path());
    command.args([
        "-shared",
        "-fPIC",
        "-O2",
        "-std=c++17",
        "-D_GLIBCXX_USE_CXX11_ABI=1",
    ]);
    for include in includes(&torch) {
        command.arg("-isystem").arg(include);
    }
    command.arg("-isystem").arg(cuda.join("include"));
    command.arg("-isystem").arg(cuda.join("include/cccl"));
    command.arg("cpp/cuda.cpp").arg("-o").arg(&library);
    command
        .arg("-L")
        .arg(torch.join("lib"))
        .args(["-lc10_cuda", "-lc10"]);
    command
        .arg("-L")
        .arg(cuda.join("lib"))
        .arg("-l:libcudart.so.13");
    let status = command.status().expect("the C++ compiler starts");
    assert!(
        status.success(),
        "compiling cpp/cuda.cpp failed: {command:?}"
    );
    // target/release/build/torch-ext-HASH/out: the binaries lie three folders up.
    let binaries = out
        .ancestors()
        .nth(3)
        .expect("OUT_DIR lies in the target folder");
    std::fs::copy(&library, binaries.join("librlhf_cuda.so"))
        .expect("the target folder is writable");
}
