//! One row of `benchmarks/speed.py`, in a process that lives through the run; `benchmarks/speed_diffusers.py` is diffusers'
//! half, line for line.
//!
//! `bench_speed MODEL FOLDER DTYPE DEVICE LATENT BATCH MODES` prepares a `unet` or a `vae` and answers each line on standard
//! input with a line of JSON on standard output: `run`, `save PATH`, `profile`. MODES are names parted by commas.

use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use tch_diffusers::models::autoencoders::AutoencoderKL;
use tch_diffusers::models::compile::{CompileOptions, CompileStats};
use tch_diffusers::models::traced::TracedModel;
use tch_diffusers::models::unets::{TracedUNet, UNet, UNet2DConditionModel, UNetInputs};
use tch_diffusers::models::{ModelMixin, To, TraceOptions, Traceable, VaeDecoder, trace_with};
use tch_diffusers::torch::{MatmulPrecision, MemoryTracker, Stream, Switch, TracedModule, profile};
use tch_diffusers::{DeviceExt, Generator, KindExt, MemoryFormat};

/// Serves libtorch as well, as in the command line tool.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Run = Box<dyn Fn() -> tch_diffusers::Result<Tensor>>;

/// What was compiled so far, where anything is.
type Stats = Box<dyn Fn() -> CompileStats>;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [model, folder, dtype, device, latent, batch, modes] = arguments.as_slice() else {
        bail!("usage: bench_speed MODEL FOLDER DTYPE DEVICE LATENT BATCH MODES");
    };
    // As the command line tool does for a model of this size.
    rustix::thread::disable_transparent_huge_pages(false)?;
    let _no_grad = tch::no_grad_guard();
    let device = Device::from_torch_name(device)?;
    let subject = Subject {
        folder: Path::new(folder),
        kind: Kind::from_torch_name(dtype)?,
        device,
        shape: [batch.parse()?, 4, latent.parse()?, latent.parse()?],
        modes: modes.split(',').filter(|mode| !mode.is_empty()).collect(),
    };
    let before = memory("VmHWM")?;
    let tracker = device.is_cuda().then(|| MemoryTracker::start(device)).transpose()?;
    let start = Instant::now();
    let (run, stats) = match *model {
        "unet" => subject.unet()?,
        "vae" => subject.vae()?,
        other => bail!("unknown model {other}"),
    };
    // TorchScript looks on for one run and rewrites the module in the next.
    let is_recorded = ["traced", "compile-default", "compile-reduce-overhead", "blocks-default"];
    for _ in 0..if is_recorded.iter().any(|mode| subject.has(mode)) { 2 } else { 1 } {
        drop(run()?);
    }
    let prepared = start.elapsed().as_secs_f64();
    let compile_seconds = stats.map(|stats| stats().compile_time.as_secs_f64());
    answer(&json!({
        "prepare_seconds": prepared, "prepare_peak_bytes": peak(tracker.as_ref(), before)?,
        "compile_seconds": compile_seconds,
    }))?;
    serve(&run, device, tracker, before)
}

/// The most memory since it was last reset, beyond what there was before the model.
fn peak(tracker: Option<&MemoryTracker>, before: i64) -> anyhow::Result<i64> {
    match tracker {
        Some(tracker) => Ok(tracker.peak()?),
        None => Ok(memory("VmHWM")? - before),
    }
}

/// What is measured.
struct Subject<'a> {
    folder: &'a Path,
    kind: Kind,
    device: Device,
    shape: [i64; 4],
    modes: Vec<&'a str>,
}

impl Subject<'_> {
    /// One call of the UNet, as a step with guidance makes it.
    fn unet(&self) -> anyhow::Result<(Run, Option<Stats>)> {
        let unet = UNet2DConditionModel::from_pretrained(self.folder);
        let unet = unet.torch_dtype(self.kind).device(self.device).load()?;
        self.apply(&unet)?;
        let mut generator = Generator::cpu(0)?;
        let [sample, text] = [self.shape.to_vec(), vec![self.shape[0], 77, self.text_width(&unet)?]]
            .map(|shape| generator.randn(&shape[..], Kind::Float));
        let (sample, text) = (self.placed(&sample?)?, self.placed(&text?)?);
        let timestep = self.placed(&Tensor::f_from_slice(&[500f32])?)?;
        if let Some(options) = self.compile_options("compile-")? {
            let unet = Arc::new(unet.compile(&options)?);
            let stats: Stats = Box::new({
                let unet = unet.clone();
                move || unet.stats()
            });
            let run = move || UNet::forward(&*unet, &UNetInputs::new(&sample, &timestep, &text));
            return Ok((Box::new(run), Some(stats)));
        }
        let stats = self.compile_blocks(&unet)?;
        if !self.has("traced") {
            let run = move || UNet::forward(&unet, &UNetInputs::new(&sample, &timestep, &text));
            return Ok((Box::new(run), stats));
        }
        let inputs = [&sample, &timestep, &text].map(Tensor::shallow_clone);
        let traced = TracedUNet::new(self.trace(unet, &inputs)?)?;
        Ok((Box::new(move || traced.forward(&UNetInputs::new(&sample, &timestep, &text))), None))
    }

    /// How the model is to be compiled, by the mode that begins with `prefix`.
    fn compile_options(&self, prefix: &str) -> anyhow::Result<Option<CompileOptions>> {
        let Some(mode) = self.modes.iter().find_map(|mode| mode.strip_prefix(prefix)) else { return Ok(None) };
        Ok(Some(CompileOptions { mode: mode.parse()?, fullgraph: true, ..CompileOptions::default() }))
    }

    fn compile_blocks(&self, model: &impl ModelMixin) -> anyhow::Result<Option<Stats>> {
        let Some(options) = self.compile_options("blocks-")? else { return Ok(None) };
        let made = model.compile_repeated_blocks(&options)?;
        Ok(Some(Box::new(move || made.stats())))
    }

    fn text_width(&self, unet: &UNet2DConditionModel) -> anyhow::Result<i64> {
        let example = unet.example_inputs(1, [8, 8])?;
        example.last().and_then(|text| text.size().last().copied()).context("the UNet takes no text")
    }

    /// Latents to a picture.
    fn vae(&self) -> anyhow::Result<(Run, Option<Stats>)> {
        let vae = AutoencoderKL::from_pretrained(self.folder).torch_dtype(self.kind).device(self.device).load()?;
        self.apply(&vae)?;
        let latents = self.placed(&Generator::cpu(0)?.randn(&self.shape[..], Kind::Float)?)?;
        let stats = self.compile_blocks(&vae)?;
        if !self.has("traced") {
            return Ok((Box::new(move || vae.decode(&latents)), stats));
        }
        let decoder = self.trace(VaeDecoder(&vae), &[latents.shallow_clone()])?;
        drop(vae);
        let decoder = TracedModel::new(decoder)?;
        Ok((Box::new(move || decoder.forward(&latents)), None))
    }

    fn has(&self, mode: &str) -> bool {
        self.modes.contains(&mode)
    }

    fn placed(&self, tensor: &Tensor) -> anyhow::Result<Tensor> {
        Ok(tensor.f_to_kind(self.kind)?.f_to_device(self.device)?)
    }

    /// Everything but tracing.
    fn apply(&self, model: &impl ModelMixin) -> anyhow::Result<()> {
        for mode in &self.modes {
            match *mode {
                "channels_last" => model.to(To::MemoryFormat(MemoryFormat::ChannelsLast))?,
                "fused" => model.fuse_qkv_projections(),
                "winograd" => model.enable_winograd(),
                "prepacked" => model.enable_weights_prepack()?,
                "cudnn_benchmark" => Switch::CudnnBenchmark.set(true)?,
                "tf32" => {
                    MatmulPrecision::High.set()?;
                    Switch::CudnnAllowTf32.set(true)?;
                }
                "traced" | "frozen" | "optimized" => {}
                mode if mode.starts_with("compile-") || mode.starts_with("blocks-") => {}
                backend => model.set_attention_backend(backend.parse()?),
            }
        }
        Ok(())
    }

    /// The model as a module of TorchScript; the model itself is gone then.
    fn trace<M: Traceable>(&self, model: M, inputs: &[Tensor]) -> anyhow::Result<TracedModule> {
        let unchecked = TraceOptions { check_trace: false, ..TraceOptions::default() };
        let mut module = trace_with(&model, inputs, unchecked)?;
        drop(model);
        if self.has("frozen") || self.has("optimized") {
            module = module.freeze()?;
        }
        if self.has("optimized") {
            module = module.optimize_for_inference()?;
        }
        Ok(module)
    }
}

fn serve(run: &Run, device: Device, tracker: Option<MemoryTracker>, before: i64) -> anyhow::Result<()> {
    let wait = || if device.is_cuda() { Stream::current(device)?.synchronize() } else { Ok(()) };
    let mut output = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((line.as_str(), "")) {
            ("run", _) => {
                drop(output.take());
                // The peak from here on: /proc/PID/clear_refs is how Linux is told to forget the last.
                std::fs::write("/proc/self/clear_refs", "5")?;
                if let Some(tracker) = &tracker {
                    tracker.reset_peak()?;
                }
                wait()?;
                let start = Instant::now();
                output = Some(run()?);
                wait()?;
                let seconds = start.elapsed().as_secs_f64();
                answer(&json!({"seconds": seconds, "peak_bytes": peak(tracker.as_ref(), before)?}))?;
            }
            ("save", path) => {
                let output = output.take().context("nothing was run")?;
                let output = output.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?.f_contiguous()?;
                Tensor::write_safetensors(&[("output", output)], path)?;
                answer(&json!({}))?;
            }
            ("profile", _) => {
                let ((), profile) = profile(|| run().map(drop))?;
                let operators = profile.operators.iter().map(|operator| {
                    json!({"name": operator.name, "calls": operator.calls, "seconds": operator.self_time.as_secs_f64()})
                });
                let operators = operators.collect::<Vec<_>>();
                answer(&json!({"seconds": profile.elapsed.as_secs_f64(), "operators": operators}))?;
            }
            (other, _) => bail!("unknown request {other}"),
        }
    }
    // Taking a frozen module apart is nobody's gain.
    tch_diffusers::torch::exit(0)
}

fn answer(value: &Value) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{value}")?;
    Ok(stdout.flush()?)
}

/// A size of /proc/self/status, in bytes; mapped pages that were touched are counted.
fn memory(name: &str) -> anyhow::Result<i64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse::<i64>()? * 1024)
}
