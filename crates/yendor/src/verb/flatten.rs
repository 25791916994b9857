//! `yendor flatten`: an image that shares pages with others becomes one of its own.

use std::path::PathBuf;

use clap::Args;
use yendor_engine::flatten::flatten;
use yendor_engine::load::{Look, Looked};
use yendor_engine::state::Places;
use yendor_image::Compression;

use super::checkpoint::signer;
use crate::failure::{Failure, Outcome};
use crate::reference::{self, Image, Reference};
use crate::{caller, parse, print};

/// Write an image that was taken with --parent anew, with its own pages only
///
/// Both images can be restored, before and after. The new one has nothing but what it needs, so no memory of older images, shares no file,
/// and can be moved alone. In the store it becomes the newest of its name.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor flatten web@7\n  yendor flatten web@7 -o ./web.image --compress zstd:9")]
pub struct Flatten {
    /// A path with a '/', or NAME or NAME@N of the store; without @N the newest
    image: Reference,
    /// Where to make the new image; without it, in the store, as the newest of that name
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Sign the new image with this minisign secret key (a file without a password)
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Compress the new image: lz4, zstd or zstd:LEVEL. Without it, it is not compressed, whatever the old one is
    #[arg(long, value_name = "lz4|zstd[:LEVEL]", value_parser = parse::compression)]
    compress: Option<Compression>,
}

impl Flatten {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let sign = self.sign.as_deref().map(signer).transpose()?;
        let places = Places::from_environment()?;
        let image = reference::find(&places, &self.image)?;
        let new = self.place(&places, &image)?;
        let look = Look::begin(&image.path)?;
        caller::give_up_rights(&image.path)?;
        let Looked::Opened(opened) = look.end(&[], true)? else {
            let what = format!("{} is encrypted: such an image shares nothing with others", image.reference);
            return Err(Failure::Said { code: 3, what });
        };
        let (signed, old) = (opened.signed_by.clone(), opened.reader.seal().ok());
        let (bytes, seal) = flatten(*opened, &new.path, sign.as_ref(), self.compress)?;
        if let (Some(key), None) = (&signed, &sign) {
            print::note(&format!("note: the old image is signed by {}, the new one by nobody", print::safe(key)));
        }
        if old.is_some_and(|old| places.took_tree(old))
            && let Err(e) = places.note_tree(seal)
        {
            print::note(&format!("note: to restore it, say --rootfs / ({}: {e})", places.trees.display()));
        }
        print::note(&print::bytes(bytes));
        print::out(&new.reference.to_string());
        Ok(0)
    }

    fn place(&self, places: &Places, image: &Image) -> Result<Image, Failure> {
        match (&self.output, &image.reference) {
            (Some(path), _) => reference::vacant(path),
            (None, Reference::Stored(name, _)) => reference::next(places, name),
            (None, Reference::Path(_)) => {
                Err(Failure::Usage("an image that is not in the store needs --output".into()))
            }
        }
    }
}
