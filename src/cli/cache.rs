//! `tch-diffusers cache`: compiled packages that are kept.

use crate::outcome::say;
use clap::{Args, Subcommand};
use tch_diffusers::models::compile::{CacheEntry, cache_entries, cache_folder, clear_cache};

const HELP: &str = "\
Packages come from `python -m tch_diffusers.export_aoti`. They lie in the folder named by TCH_DIFFUSERS_CACHE, or else in
~/.cache/tch-diffusers.";

/// Lists the compiled packages that are kept, and says which of them do not run here
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Cache {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Action {
    /// Deletes the packages
    Clear,
}

impl Cache {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let folder = cache_folder()?;
        if let Some(Action::Clear) = self.action {
            let cleared = clear_cache(&folder)?;
            return say(format!("{}: {cleared} deleted", folder.display()));
        }
        let entries = cache_entries(&folder)?;
        say(format!("{}: {} packages", folder.display(), entries.len()))?;
        entries.iter().try_for_each(|entry| say(line(entry)))
    }
}

fn line(entry: &CacheEntry) -> String {
    let name = entry.path.file_name().unwrap_or_default().to_string_lossy();
    let kib = entry.bytes.div_ceil(1024);
    match &entry.package {
        Err(error) => format!("{name}  {kib} KiB  not used: {error}"),
        Ok(package) => {
            let contract = package.contract();
            let (class, dtype, device, capability) =
                (&contract.class, &contract.dtype, &contract.device, &contract.capability);
            let (torch, threads) = (&contract.torch, contract.num_threads);
            let dynamic = contract.models.values().all(|terms| !terms.dimensions.is_empty());
            let blocks = contract.models.values().any(|terms| !terms.blocks.is_empty());
            // Of a VAE, a package has one half.
            let half = contract.models.keys().find(|name| *name != "model").map_or("whole", String::as_str);
            let parts = if blocks { "repeated blocks" } else { half };
            let sizes = if dynamic { "any size" } else { "one size" };
            format!(
                "{name}  {kib} KiB  {class}, {parts}, {sizes}, {dtype}, {device} {capability}, torch {torch}, {threads} threads"
            )
        }
    }
}
