//! The build script of every crate whose tests or binaries link libtorch: they find at run time
//! the library that they were built against. (`torch-ext` itself does the same in `build.rs`.)
//! A machine where libtorch lies elsewhere sets `LD_LIBRARY_PATH`, as the front does.

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TORCH_EXT_LIBTORCH_LIB");
    if let Ok(dir) = std::env::var("DEP_TORCH_EXT_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{dir}");
    }
}
