//! `yendor inspect`: what is in an image. Runs nothing, and reads with no more rights than the image's owner has.

mod strings;
mod view;

use clap::Args;
use serde_json::{Value, json};
use yendor_engine::load::{Look, Looked, Opened, Table};
use yendor_engine::state::Places;
use yendor_image::Manifest;
use yendor_kinds::snapshot::Snapshot;

use crate::failure::Outcome;
use crate::options::Identities;
use crate::reference::{self, Reference};
use crate::{caller, print};

pub use view::describe;

/// Show what is in an image
///
/// Without options a summary. Nothing of the image is run. Of an encrypted image, without --identity, what it shows to everybody.
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
    #[command(flatten)]
    identities: Identities,
    /// Print the records as JSON
    #[arg(long)]
    pub json: bool,
}

impl Inspect {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let image = reference::find(&Places::from_environment()?, &self.image)?;
        let identities = self.identities.open()?;
        let look = Look::begin(&image.path)?;
        caller::give_up_rights(&image.path)?;
        let Opened { reader, snapshot, signed_by } = match look.end(&identities, self.strings.is_some())? {
            Looked::Closed(table) if !self.asks_for_content() => {
                self.closed(&table, &image.reference.to_string());
                return Ok(0);
            }
            looked => looked.opened()?,
        };
        let signed_by = signed_by.as_deref();
        let found = self.strings.as_ref().map(|span| strings::find(&reader, &snapshot, span)).transpose()?;
        if self.json {
            print::out(&whole(reader.manifest(), signed_by, &snapshot, found.as_deref()).to_string());
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
            print::out(&view::summary(reader.manifest(), signed_by, &snapshot, &image.reference.to_string()));
        }
        for (_, section) in asked {
            print::out(&section(&snapshot));
        }
        for (address, text) in found.into_iter().flatten() {
            print::out(&format!("{address:#x}  {}", print::safe(&text)));
        }
        Ok(0)
    }

    /// Whether the answer is in files that an encrypted image does not show.
    fn asks_for_content(&self) -> bool {
        let sections = [self.tree, self.files, self.memory, self.sockets, self.security, self.lost];
        sections.contains(&true) || self.strings.is_some()
    }

    /// What an encrypted image shows to everybody.
    fn closed(&self, table: &Table, name: &str) {
        if self.json {
            let all =
                json!({ "manifest": table.manifest, "signed_by": table.signed_by, "records": null, "strings": null });
            print::out(&all.to_string());
            return;
        }
        print::out(&view::closed(&table.manifest, table.signed_by.as_deref(), name));
        print::note("it is encrypted: with --identity FILE there is more to see");
    }
}

fn whole(
    manifest: &Manifest,
    signed_by: Option<&str>,
    snapshot: &Snapshot,
    strings: Option<&[(u64, String)]>,
) -> Value {
    let text = |(address, text): &(u64, String)| json!({ "address": address, "text": text });
    let strings: Option<Vec<Value>> = strings.map(|all| all.iter().map(text).collect());
    json!({ "manifest": manifest, "signed_by": signed_by, "records": snapshot, "strings": strings })
}
