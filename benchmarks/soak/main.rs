//! Does a long run take more and more memory? `soak [GENERATIONS]` draws so many pictures with the bundled model, 1,000 by
//! default, and prints the memory that the process takes over time as JSON. It ends with 1 if that grew by more than 1 %.

mod generations;

use anyhow::{Context, bail};
use generations::{MOST_GROWTH, Soak};

// The command line tool has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let generations = std::env::args().nth(1).map_or(Ok(1000), |count| count.parse()).context("soak [GENERATIONS]")?;
    let soak = Soak::run(generations)?;
    println!("{}", serde_json::to_string_pretty(&soak)?);
    if soak.growth > MOST_GROWTH {
        bail!("resident memory grew by {:.2} %: at most {} % are flat", soak.growth * 100.0, MOST_GROWTH * 100.0);
    }
    Ok(())
}
