//! Entering a container that has a label of its own, for `yendor exec`: what joins it must not be less confined.

use std::os::fd::OwnedFd;

use yendor_sys::{Errno, SysError};

use super::{Attribute, Here, Module, Profile, spelt};

/// A label that is going to be taken, prepared while the host's file systems are in sight.
#[derive(Debug)]
pub struct Entry {
    module: Module,
    label: Vec<u8>,
    door: Option<OwnedFd>,
}

impl Entry {
    /// Prepares.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a module that does not label tasks here.
    pub fn new(profile: &Profile) -> yendor_sys::Result<Entry> {
        let here = Here::look();
        let module = Module::named(&profile.module).filter(|m| here.modules().contains(m));
        let module = module.ok_or_else(|| SysError::new("lsm_set_self_attr", profile.to_string(), Errno::OPNOTSUPP))?;
        let door = if module == Module::Tomoyo { Some(here.tomoyo_door()?) } else { None };
        Ok(Entry { module, label: profile.label.clone().into_bytes(), door })
    }

    /// The calling thread and what it starts from now on has the label; where the module can do that, only what it starts.
    ///
    /// # Errors
    /// The module's.
    pub fn enter(&self) -> yendor_sys::Result<()> {
        if let Some(door) = &self.door {
            let shown = || format!("self_domain, {}", self.label.escape_ascii());
            let count = rustix::io::write(door, &self.label).map_err(|e| SysError::new("write", shown(), e))?;
            return if count == self.label.len() { Ok(()) } else { Err(SysError::new("write", shown(), Errno::IO)) };
        }
        let attribute = match self.module {
            Module::AppArmor | Module::SELinux => Attribute::Exec,
            Module::Smack | Module::Tomoyo => Attribute::Current,
        };
        yendor_sys::lsm::set_self(self.module, attribute, &spelt(self.module, attribute, &self.label))
    }
}
