//! `yendor inspect`: what is in an image. Runs nothing, and reads with no more rights than the image's owner has.

mod strings;
mod view;

use clap::Args;
use serde_json::{Value, json};
use yendor_engine::load::Look;
use yendor_engine::state::Places;
use yendor_image::Reader;
use yendor_kinds::snapshot::Snapshot;

use crate::failure::Outcome;
use crate::reference::{self, Reference};
use crate::{caller, print};

pub use view::describe;

/// Show what is in an image
///
/// Without options a summary. Nothing of the image is run.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  yendor inspect web@1 --tree --files\n  yendor inspect ./web.image --strings 2:0x7ffd0000+4096\n  \
    yendor inspect web --json"
)]
pub struct Inspect {
    /// A path with a '/', or NAME or NAME@N of the store
    image: Reference,
    /// Processes and threads
    #[arg(long)]
    tree: bool,
    /// Descriptors of each process
    #[arg(long)]
    files: bool,
    /// Areas of each address space
    #[arg(long)]
    memory: bool,
    /// Sockets
    #[arg(long)]
    sockets: bool,
    /// Ids, capabilities and restrictions of each thread
    #[arg(long)]
    security: bool,
    /// What the checkpoint was allowed to lose
    #[arg(long)]
    lost: bool,
    /// Printable text in memory: LEN bytes at ADDR (0x for hexadecimal) of process PID
    #[arg(long, value_name = "PID:ADDR+LEN", value_parser = strings::Span::parse)]
    strings: Option<strings::Span>,
    /// Print the records as JSON
    #[arg(long)]
    pub json: bool,
}

impl Inspect {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let image = reference::resolve(&Places::from_environment(), &self.image)?;
        let look = Look::begin(&image.path)?;
        caller::give_up_rights(&image.path)?;
        let (reader, snapshot) = look.end()?;
        let found = self.strings.as_ref().map(|span| strings::find(&reader, &snapshot, span)).transpose()?;
        if self.json {
            print::out(&whole(&reader, &snapshot, found.as_deref()).to_string());
            return Ok(0);
        }
        let sections = [
            (self.tree, view::tree as fn(&Snapshot) -> String),
            (self.files, view::files),
            (self.memory, view::memory),
            (self.sockets, view::sockets),
            (self.security, view::security),
            (self.lost, view::lost),
        ];
        let asked: Vec<_> = sections.iter().filter(|(asked, _)| *asked).collect();
        if asked.is_empty() && found.is_none() {
            print::out(&view::summary(&reader, &snapshot, &image.reference.to_string()));
        }
        for (_, section) in asked {
            print::out(&section(&snapshot));
        }
        for (address, text) in found.into_iter().flatten() {
            print::out(&format!("{address:#x}  {}", print::safe(&text)));
        }
        Ok(0)
    }
}

fn whole(reader: &Reader, snapshot: &Snapshot, strings: Option<&[(u64, String)]>) -> Value {
    let mut all = json!({ "manifest": reader.manifest(), "records": snapshot });
    if let (Some(strings), Some(all)) = (strings, all.as_object_mut()) {
        let strings: Vec<Value> = strings.iter().map(|(a, t)| json!({ "address": a, "text": t })).collect();
        all.insert("strings".into(), json!(strings));
    }
    all
}
