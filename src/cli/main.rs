//! The command line tool.

mod allocator;
mod cache;
mod convert;
mod env;
mod flux;
mod generate;
mod inspect;
mod interrupt;
mod lora;
mod memory;
mod model;
mod offload;
mod outcome;
mod parameters;
mod sdxl;
mod second;
mod source;
mod speed;
mod stable_diffusion;
mod trace;

use clap::{Parser, Subcommand};

/// Pictures from text with diffusion models on libtorch: the same pictures as Python's diffusers, without Python.
#[derive(Debug, Parser)]
#[command(name = "tch-diffusers", version, after_help = outcome::EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Prints what is being done; twice for more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(Box<generate::Generate>),
    Trace(Box<trace::Trace>),
    Inspect(inspect::Inspect),
    Convert(convert::Convert),
    Cache(cache::Cache),
    Env(env::Env),
}

fn main() {
    let cli = Cli::parse();
    log(cli.verbose);
    let done = match cli.command {
        Command::Generate(generate) => generate.run(),
        Command::Trace(trace) => trace.run(),
        Command::Inspect(inspect) => inspect.run(),
        Command::Convert(convert) => convert.run(),
        Command::Cache(cache) => cache.run(),
        Command::Env(env) => env.run(),
    };
    tch_diffusers::torch::exit(outcome::exit_code(done))
}

/// Warnings go to standard error; `RUST_LOG` or `-v` ask for more.
fn log(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let writer = std::io::stderr;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).without_time().with_target(false).init();
}
