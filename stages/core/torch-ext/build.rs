//! Compiles the C++ beside this crate: `cpp/*.cpp` into the crate, and `cpp/cuda` into two libraries that are loaded
//! at run time: `librlhf_cuda.so`, where the CUDA compiler and headers are installed, and
//! `librlhf_emulated.so`, the same kernels on the CPU, for tests.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Codes stand for the same numbers on every machine: a sum of products is rounded twice.
const EXACT: [&str; 8] = [
    "cpp/collectives.cpp",
    "cpp/device_ops.cpp",
    "cpp/library.cpp",
    "cpp/ops.cpp",
    "cpp/packed.cpp",
    "cpp/quantized.cpp",
    "cpp/row_attention.cpp",
    "cpp/token_logprobs.cpp",
];
/// Kernels, which multiply and add in one instruction where there is one.
const FUSED: [&str; 5] = [
    "cpp/activations.cpp",
    "cpp/cached_attention.cpp",
    "cpp/fused.cpp",
    "cpp/logits_rows.cpp",
    "cpp/sample.cpp",
];
/// Architectures that kernels for GPUs are compiled for: A100, H100 and H200; newer ones compile the last at
/// their first start.
const GPUS: [&str; 3] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_90,code=sm_90",
    "arch=compute_90,code=compute_90",
];

fn main() {
    for path in ["cpp", "build.rs"] {
        println!("cargo:rerun-if-changed={path}");
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
    compile_emulated();
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
    build
        .include("cpp/gloo_headers")
        .define("USE_C10D_GLOO", None)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .compile(name);
}

/// Kernels as functions of the CPU.
fn compile_emulated() {
    let library = out_dir().join("librlhf_emulated.so");
    let mut command = Command::new(cc::Build::new().cpp(true).get_compiler().path());
    command.args(["-shared", "-fPIC", "-O2", "-std=c++17"]);
    command.arg("cpp/cuda/emulated.cpp").arg("-o").arg(&library);
    run(&mut command);
    beside_binaries(&library);
}

const CUDA_LIBRARY: &str = "librlhf_cuda.so";

/// A missing header is a warning: machines without GPUs do not need the library, and the others are
/// told at run time. One that was built of other sources would be found there, so it goes.
fn compile_cuda(torch: &Path) {
    let Ok(torch) = torch.canonicalize() else {
        return;
    };
    let Some(site) = torch.parent() else { return };
    let cuda = site.join("nvidia/cu13");
    if let Some(missing) = missing_part(&cuda) {
        println!(
            "cargo:warning={CUDA_LIBRARY} is not built: {} is missing; hint: install requirements.txt \
             (`make setup`)",
            missing.display()
        );
        let _ = std::fs::remove_file(binaries().join(CUDA_LIBRARY));
        return;
    }
    let (kernels, library) = (out_dir().join("kernels.o"), out_dir().join(CUDA_LIBRARY));
    let compiler = cc::Build::new().cpp(true).get_compiler();
    let mut command = Command::new(cuda.join("bin/nvcc"));
    command.args(["-std=c++17", "-O3", "-Xcompiler", "-fPIC", "--threads", "2"]);
    command.arg("-ccbin").arg(compiler.path());
    for include in ["include", "include/cccl"] {
        command.arg("-I").arg(cuda.join(include));
    }
    for gpu in GPUS {
        command.args(["-gencode", gpu]);
    }
    command
        .args(["-c", "cpp/cuda/kernels.cu", "-o"])
        .arg(&kernels);
    run(&mut command);
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
    command
        .arg("-isystem")
        .arg(site.join("nvidia/nccl/include"));
    command.arg("-DUSE_C10D_NCCL");
    command.args(["cpp/cuda/runtime.cpp", "cpp/cuda/nccl.cpp"]);
    command.arg(&kernels);
    command
        .arg("-o")
        .arg(&library)
        .arg("-L")
        .arg(torch.join("lib"));
    // The rest of what it calls is in the process by then.
    command.args(["-ltorch_cuda", "-ltorch_cpu", "-lc10_cuda", "-lc10"]);
    command.arg("-L").arg(cuda.join("lib"));
    command.arg("-l:libcudart.so.13");
    command.arg("-L").arg(site.join("nvidia/nccl/lib"));
    command.arg("-l:libnccl.so.2");
    run(&mut command);
    beside_binaries(&library);
}

/// What the CUDA library cannot be built without.
fn missing_part(cuda: &Path) -> Option<PathBuf> {
    // `crt`, `cccl`, `nvcc` and `nvvm` come in wheels of their own.
    let parts = [
        "include/cuda_runtime.h",
        "include/crt/host_defines.h",
        "include/cccl",
        "bin/nvcc",
        "nvvm/bin/cicc",
        "../nccl/include/nccl.h",
    ]
    .map(|part| cuda.join(part));
    for path in &parts {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    parts.into_iter().find(|path| !path.exists())
}

fn out_dir() -> PathBuf {
    PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"))
}

fn run(command: &mut Command) {
    let status = command.status().expect("the compiler starts");
    assert!(status.success(), "compiling failed: {command:?}");
}

/// target/release/build/torch-ext-HASH/out: the binaries lie three folders up.
fn binaries() -> PathBuf {
    let out = out_dir();
    let binaries = out.ancestors().nth(3);
    binaries
        .expect("OUT_DIR lies in the target folder")
        .to_path_buf()
}

/// Puts a new file in the place of an old one, which processes may have mapped.
fn beside_binaries(library: &Path) {
    let name = library.file_name().expect("a file").to_string_lossy();
    let (to, unfinished) = (
        binaries().join(&*name),
        binaries().join(format!("{name}.tmp")),
    );
    std::fs::copy(library, &unfinished)
        .and_then(|_| std::fs::rename(&unfinished, &to))
        .expect("the target folder is writable");
}
