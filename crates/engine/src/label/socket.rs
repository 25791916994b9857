//! Sockets of an image that shall have the labels that they had: SELinux gives a socket its label when it is made, that of
//! its maker or the one that the maker has chosen before (`sockcreate`).

use std::os::fd::BorrowedFd;

use yendor_kinds::Cause;
use yendor_kinds::file::{Entry, Workshop};
use yendor_kinds::process::label::{self, SOCKET};
use yendor_policy::host::Granted;
use yendor_policy::lsm::{Attribute, Module};

use super::{Labels, Set, legible, may_keep, shown};
use crate::error::{At, Error, Result, Step};

const MODULE: Module = Module::SELinux;

impl Labels {
    /// The label that a file of the image is to have; none for what is no socket, and where labels are not kept.
    fn wanted_of<'e>(&self, entry: &'e Entry) -> std::result::Result<Option<&'e [u8]>, Cause> {
        if !self.keep || !self.modules.contains(&MODULE) || self.has_profile(MODULE) {
            return Ok(None);
        }
        let mut found = entry.labels.iter().filter(|l| l.module == MODULE.name() && l.attribute == SOCKET);
        let Some(label) = found.next() else { return Ok(None) };
        if found.next().is_some() {
            return Err(Cause::corrupt(format!("two labels of file {}", entry.id)));
        }
        legible(label).map(Some)
    }

    /// Whether the host's policy lets the labels of sockets be kept.
    pub(super) fn admit_sockets(&self, files: &[Entry], granted: &Granted) -> Result<()> {
        for entry in files {
            if let Some(text) = self.wanted_of(entry).at(Step::Confine)? {
                may_keep(MODULE, text, granted)?;
            }
        }
        Ok(())
    }

    /// Has a file of the image made, with its label if it is a socket that shall have one.
    ///
    /// # Errors
    /// A label that this caller may not give; else those of `make`.
    pub fn made<'w>(
        &self,
        entry: &Entry,
        make: impl FnOnce() -> std::result::Result<BorrowedFd<'w>, Cause>,
    ) -> Result<BorrowedFd<'w>> {
        let file =
            |cause: Cause| Error::new(Step::Rebuild, cause).kind(entry.record.kind(), format!("file {}", entry.id));
        let wanted = self.wanted_of(entry).map_err(file)?;
        let mine =
            |text: &[u8]| self.now.contains(&Set { module: MODULE, attribute: Attribute::Current, label: text.into() });
        let Some(text) = wanted.filter(|text| !mine(text)) else { return make().map_err(file) };
        let set = Set { module: MODULE, attribute: Attribute::SockCreate, label: text.to_vec() };
        let choose = |text: &[u8]| {
            yendor_sys::lsm::set_self(MODULE, Attribute::SockCreate, text).map_err(|e| set.failed(e.into()))
        };
        choose(text)?;
        let made = make().map_err(file);
        choose(b"")?;
        made
    }

    /// To be called when all sockets exist: whether each has its label. Both ends of a pair are made at once, and with one.
    ///
    /// # Errors
    /// A permission error for one that has another.
    pub fn check_sockets(&self, workshop: &Workshop<'_>) -> Result<()> {
        for entry in workshop.entries() {
            let Some(text) = self.wanted_of(entry).at(Step::Confine)? else { continue };
            let has = workshop.existing(entry.id).and_then(|fd| label::of_socket(fd, &[MODULE])).at(Step::Confine)?;
            let has = has.first().and_then(|l| l.label.as_ref());
            if has.is_none_or(|has| has.0 != text) {
                let has = has.map_or_else(|| "none".to_owned(), ToString::to_string);
                let cause = Cause::Denied {
                    what: format!("file {}: the new socket has the label {has}", entry.id),
                    hint: "leave out --keep-lsm".into(),
                };
                return Err(Error::new(Step::Confine, cause).kind("label", shown(MODULE, text)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yendor_image::{Bytes, FileId};
    use yendor_kinds::file::{Record, external};
    use yendor_kinds::process::label::Label;

    fn entry(labels: &[Option<&str>]) -> Entry {
        let one = |text: &Option<&str>| Label {
            module: "selinux".into(),
            attribute: SOCKET.into(),
            label: text.map(|t| Bytes(t.into())),
        };
        let labels = labels.iter().map(one).collect();
        Entry {
            id: FileId(3),
            flags: 0,
            owner: None,
            labels,
            mounts: None,
            network: None,
            record: Record::External(external::Record::Stdin),
        }
    }

    #[test]
    fn a_sockets_label_is_kept_on_request_only() {
        let labels = Labels { modules: vec![MODULE], ..Labels::default() };
        assert_eq!(labels.wanted_of(&entry(&[Some("u:r:t")])).unwrap(), None);
        let labels = Labels { keep: true, ..labels };
        assert_eq!(labels.wanted_of(&entry(&[Some("u:r:t")])).unwrap(), Some(&b"u:r:t"[..]));
        assert_eq!(labels.wanted_of(&entry(&[])).unwrap(), None);
        let profiled = Labels { profiles: vec![(MODULE, b"u:r:p".to_vec())], ..labels };
        assert_eq!(profiled.wanted_of(&entry(&[Some("u:r:t")])).unwrap(), None);
    }

    #[test]
    fn a_sockets_label_is_checked() {
        let labels = Labels { keep: true, modules: vec![MODULE], ..Labels::default() };
        for (bad, denied) in [(vec![None], true), (vec![Some("a"), Some("b")], false), (vec![Some("a\nb")], false)] {
            let refused = labels.wanted_of(&entry(&bad)).unwrap_err();
            assert_eq!(matches!(refused, Cause::Denied { .. }), denied, "{refused}");
        }
    }
}
