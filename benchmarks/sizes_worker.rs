//! How often a UNet is compiled anew for twelve sizes of pictures, in each mode: the last table of `benchmarks/speed.py`.
//!
//! `bench_sizes FOLDER PACKAGE` runs the UNet in FOLDER, and answers with a line of JSON for each mode; PACKAGE is a folder
//! with packages for it, as the cache of compiled packages is.

use anyhow::{Context, bail};
use serde_json::json;
use std::path::Path;
use std::time::Instant;
use tch_diffusers::models::compile::{CompileOptions, CompileStats, Mode};
use tch_diffusers::models::unets::{UNet, UNet2DConditionModel, UNetInputs};
use tch_diffusers::models::{ModelMixin, Traceable};
use tch_diffusers::{MemoryFormat, Result, TensorExt};

/// In latents; the first comes once more at the end, when others have gone by.
const SIZES: [[i64; 2]; 12] = [
    [16, 16],
    [24, 16],
    [16, 24],
    [32, 16],
    [16, 32],
    [24, 24],
    [32, 24],
    [24, 32],
    [32, 32],
    [8, 16],
    [16, 8],
    [16, 16],
];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, packages] = arguments.as_slice() else { bail!("usage: bench_sizes FOLDER PACKAGES") };
    let (folder, packages) = (Path::new(folder), Path::new(packages));
    let dynamic = [("None", None), ("Some(true)", Some(true)), ("Some(false)", Some(false))];
    for (name, dynamic) in dynamic {
        let options = CompileOptions { dynamic, ..CompileOptions::default() };
        whole(&format!("default, dynamic {name}"), folder, &options)?;
    }
    for (name, dynamic) in dynamic {
        let options = CompileOptions { dynamic, ..CompileOptions::default() };
        blocks(&format!("default, repeated blocks, dynamic {name}"), folder, &options)?;
    }
    let cache = Some(packages.to_path_buf());
    let options = CompileOptions { mode: Mode::MaxAutotune, cache, dynamic: Some(true), ..CompileOptions::default() };
    whole("max-autotune, dynamic Some(true)", folder, &options)
}

fn load(folder: &Path) -> Result<UNet2DConditionModel> {
    let unet = UNet2DConditionModel::from_pretrained(folder).load()?;
    unet.to(MemoryFormat::ChannelsLast)?;
    Ok(unet)
}

fn whole(name: &str, folder: &Path, options: &CompileOptions) -> anyhow::Result<()> {
    let eager = load(folder)?;
    let compiled = match load(folder)?.compile(options) {
        Ok(compiled) => compiled,
        Err(error) => {
            println!("{}", json!({"name": name, "note": error.to_string()}));
            return Ok(());
        }
    };
    run(name, &eager, &compiled, || compiled.stats())
}

fn blocks(name: &str, folder: &Path, options: &CompileOptions) -> anyhow::Result<()> {
    let (eager, compiled) = (load(folder)?, load(folder)?);
    let made = compiled.compile_repeated_blocks(options)?;
    run(name, &eager, &compiled, || made.stats())
}

fn run(
    name: &str,
    eager: &UNet2DConditionModel,
    compiled: &dyn UNet,
    stats: impl Fn() -> CompileStats,
) -> anyhow::Result<()> {
    let _no_grad = tch::no_grad_guard();
    let (mut seconds, mut difference) = (0.0, 0f64);
    for size in SIZES {
        let inputs = eager.example_inputs(2, size)?;
        let [sample, timestep, text] = inputs.as_slice() else { bail!("the UNet takes three inputs") };
        let inputs = UNetInputs::new(sample, timestep, text);
        let start = Instant::now();
        let found = compiled.forward(&inputs)?;
        seconds += start.elapsed().as_secs_f64();
        difference = difference.max(found.max_abs_diff(&eager.forward(&inputs)?)?);
    }
    let stats = stats();
    let line = json!({
        "name": name, "sizes": SIZES.len(), "graphs": stats.graphs, "recompilations": stats.recompilations,
        "eager_calls": stats.eager_calls, "compile_seconds": stats.compile_time.as_secs_f64(), "seconds": seconds,
        "difference": difference,
    });
    println!("{line}");
    std::io::Write::flush(&mut std::io::stdout()).context("standard output is closed")
}
