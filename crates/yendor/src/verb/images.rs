//! `yendor images`: the store.

use clap::Args;
use serde_json::json;
use yendor_engine::load::{self, Table};
use yendor_engine::state::Places;
use yendor_image::Kind;

use crate::failure::Outcome;
use crate::{caller, print, reference};

/// List the images in the store
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor images --json")]
pub struct Images {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

impl Images {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let places = Places::from_environment()?;
        caller::give_up_rights(&places.images)?;
        let mut rows = vec![["IMAGE", "CREATED", "SIZE", "GENERATION", "KIND"].map(str::to_owned).to_vec()];
        let mut all = Vec::new();
        for name in reference::names(&places)? {
            for number in reference::numbers(&places, &name)? {
                let full = format!("{name}@{number}");
                let path = places.images.join(&name).join(number.to_string());
                match load::table(&path) {
                    Ok(Table { manifest, .. }) => {
                        let kind = kind(manifest.kind);
                        let encrypted = manifest.encryption.is_some();
                        let compressed = manifest.files.iter().any(|entry| entry.compressed.is_some());
                        let words = [("encrypted", encrypted), ("compressed", compressed)];
                        let words = words.iter().filter(|(_, is)| *is).map(|(word, _)| *word);
                        let shown = std::iter::once(kind).chain(words).collect::<Vec<_>>().join(", ");
                        let (created, bytes) = (print::date(manifest.created), print::bytes(manifest.bytes()));
                        rows.push(vec![full.clone(), created, bytes, manifest.generation.to_string(), shown]);
                        all.push(json!({
                            "image": full, "path": path.to_string_lossy(), "created": manifest.created,
                            "bytes": manifest.bytes(), "generation": manifest.generation, "kind": kind,
                            "encrypted": encrypted, "compressed": compressed, "content": manifest.content_bytes(), "error": null,
                        }));
                    }
                    Err(e) => {
                        rows.push(vec![full.clone(), "-".into(), "-".into(), "-".into(), format!("unreadable: {e}")]);
                        all.push(json!({
                            "image": full, "path": path.to_string_lossy(), "created": null, "bytes": null, "generation": null,
                            "kind": null, "encrypted": null, "compressed": null, "content": null, "error": e.what(),
                        }));
                    }
                }
            }
        }
        print::out(&if self.json { json!(all).to_string() } else { print::table(&rows) });
        Ok(0)
    }
}

/// What an image was taken from, in a word.
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Container => "container",
        Kind::Tree => "tree",
    }
}
