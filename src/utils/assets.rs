//! Where the bundled model lies.

use crate::error::{Error, Result};
use std::path::PathBuf;

/// The folder of the bundled text-to-image model, `assets/shapes`.
///
/// It is looked for in `TCH_DIFFUSERS_ASSETS`, above the running program, and where this library was built.
///
/// # Errors
/// [`Error::Io`] if it is in none of these places.
pub fn bundled_model() -> Result<PathBuf> {
    let named = std::env::var_os("TCH_DIFFUSERS_ASSETS").map(PathBuf::from);
    let program = std::env::current_exe().ok();
    let above = program.iter().flat_map(|program| program.ancestors().skip(1)).map(|folder| folder.join("assets"));
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets");
    let places = named.into_iter().chain(above).chain([built]);
    let found = places.map(|assets| assets.join("shapes")).find(|folder| folder.join("model_index.json").is_file());
    found.ok_or_else(|| {
        let reason = "the bundled model was not found: set TCH_DIFFUSERS_ASSETS to the repository's assets folder";
        Error::io("assets/shapes")(std::io::Error::new(std::io::ErrorKind::NotFound, reason))
    })
}
