//! Finds libtorch, compiles the shim over it, and writes its folder into the binaries' run path.

use std::path::PathBuf;

const SHIM: &str = "src/torch/shim";
const SOURCES: [&str; 14] = [
    "aoti",
    "context",
    "cuda",
    "generator",
    "graph",
    "jit",
    "memory",
    "prepack",
    "profile",
    "stream",
    "switches",
    "synchronization",
    "tensor",
    "winograd",
];

fn main() {
    println!("cargo::rerun-if-changed={SHIM}");
    println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");

    // torch-sys found libtorch and says where; it says nothing where it was built for documentation alone.
    let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else { return };
    let include = match std::env::var_os("LIBTORCH_INCLUDE") {
        Some(root) => PathBuf::from(root).join("include"),
        None => lib.join("../include"),
    };

    // A binary runs without LD_LIBRARY_PATH. It says `-rpath` once more for libraries that lie beside it.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN");

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").pic(true).warnings(false);
    for include in [include.clone(), include.join("torch/csrc/api/include")] {
        build.flag("-isystem").flag(include);
    }
    // `at::parallel_for` is a template over OpenMP, as libtorch is built.
    build.flag("-fopenmp").define("AT_PARALLEL_OPENMP", "1");
    build.define("_GLIBCXX_USE_CXX11_ABI", "1");
    build.files(SOURCES.map(|source| format!("{SHIM}/{source}.cpp")));
    build.compile("tch_diffusers_shim");
}
