//! A hundred and fifty generations take no more memory at their end than after the first few; `make soak` runs a thousand.

#[path = "../benchmarks/soak/generations.rs"]
mod generations;

use generations::{MOST_GROWTH, Soak};
use std::process::Command;

/// The number of generations, in a process that has no other test to run beside.
const ALONE: &str = "TCH_DIFFUSERS_SOAK";

#[cfg(target_os = "linux")]
#[test]
fn resident_memory_stays_flat_from_generation_to_generation() {
    if let Ok(generations) = std::env::var(ALONE) {
        let soak = Soak::run(generations.parse().unwrap()).unwrap();
        let report = serde_json::to_string(&soak).unwrap();
        println!("{report}");
        assert!(soak.growth <= MOST_GROWTH, "{report}");
        return;
    }
    // What other tests take would be counted as well.
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = "soak::resident_memory_stays_flat_from_generation_to_generation";
    let output = command.args(["--exact", name]).env(ALONE, "150").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
