//! How images are named: a path when there is a `/` in it, else `NAME` or `NAME@N` in the store.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use yendor_engine::state::Places;
use yendor_image::{FORMAT_FILE, MANIFEST_FILE, RECORDS_FILE};

use crate::failure::Failure;
use crate::{container, name, parse};

/// A name of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A directory.
    Path(PathBuf),
    /// In the store; without a number, the newest.
    Stored(String, Option<u32>),
}

impl std::str::FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return Ok(Reference::Path(text.into()));
        }
        let wrong = || format!("{text:?} is no image: give a path with a '/', or NAME or NAME@N of the store");
        let (name, number) = match text.split_once('@') {
            Some((name, number)) => (name, Some(number.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?)),
            None => (text, None),
        };
        if name::is_valid(name) { Ok(Reference::Stored(name.to_owned(), number)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Path(path) => path.display().fmt(f),
            Reference::Stored(name, None) => f.write_str(name),
            Reference::Stored(name, Some(number)) => write!(f, "{name}@{number}"),
        }
    }
}

/// An image that has been found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its directory, absolute.
    pub path: PathBuf,
    /// Its full name.
    pub reference: Reference,
}

/// Finds an image that is to be read. What has nothing of an image is none; what is wrong with one is said by whoever opens it.
pub fn find(places: &Places, reference: &Reference) -> Result<Image, Failure> {
    let image = resolve(places, reference)?;
    if is_none(&image.path) { Err(no_image(&image.path)) } else { Ok(image) }
}

/// Whether there is nothing of an image at a path, as far as the caller can tell.
pub fn is_none(path: &Path) -> bool {
    let lacks = |file: &str| std::fs::symlink_metadata(path.join(file)).is_err_and(|e| is_absent(&e));
    [FORMAT_FILE, MANIFEST_FILE, RECORDS_FILE].into_iter().all(lacks)
}

/// What is said of such a path.
pub fn no_image(path: &Path) -> Failure {
    Failure::Failed(format!("{} is no image directory", path.display()))
}

fn is_absent(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Finds where an image is. It is not looked into.
pub fn resolve(places: &Places, reference: &Reference) -> Result<Image, Failure> {
    let (name, number) = match reference {
        Reference::Path(path) => {
            let path = parse::absolute(path);
            if std::fs::metadata(&path).is_err_and(|e| is_absent(&e)) {
                return Err(Failure::Failed(format!("there is no image at {}", path.display())));
            }
            return Ok(Image { reference: Reference::Path(path.clone()), path });
        }
        Reference::Stored(name, number) => (name, *number),
    };
    let there = numbers(places, name)?;
    let number = match number {
        Some(number) if there.contains(&number) => number,
        None if !there.is_empty() => there.last().copied().unwrap_or_default(),
        _ => {
            let beside = if Path::new(name).is_dir() {
                format!("\n  hint: ./{name} names the directory")
            } else {
                String::new()
            };
            return Err(Failure::Failed(format!("there is no image {reference} in the store{beside}")));
        }
    };
    let path = parse::absolute(&places.images.join(name).join(number.to_string()));
    Ok(Image { path, reference: Reference::Stored(name.clone(), Some(number)) })
}

/// An image that will be at a path where nothing is yet.
pub fn vacant(path: &Path) -> Result<Image, Failure> {
    let path = parse::absolute(path);
    if std::fs::symlink_metadata(&path).is_ok() {
        return Err(Failure::Failed(format!("{} exists already", path.display())));
    }
    Ok(Image { reference: Reference::Path(path.clone()), path })
}

/// Where the next image of that name goes, and its full name. Its parent directory is made. The number is none that a container names.
pub fn next(places: &Places, name: &str) -> Result<Image, Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let parent = places.images.join(name);
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&parent);
    made.map_err(|e| Failure::io("mkdir", &parent, &e))?;
    let last = numbers(places, name)?.last().copied().max(container::highest_image(places, name)).unwrap_or(0);
    let number = last.checked_add(1).ok_or_else(|| Failure::Failed(format!("{name}@{last} was the last number")))?;
    let path = parse::absolute(&parent.join(number.to_string()));
    Ok(Image { path, reference: Reference::Stored(name.to_owned(), Some(number)) })
}

/// The numbers of the images of that name, ascending.
pub fn numbers(places: &Places, name: &str) -> Result<Vec<u32>, Failure> {
    let mut numbers: Vec<u32> = entries(&places.images.join(name))?
        .iter()
        // Only the one spelling: 7, not 07.
        .filter_map(|entry| entry.parse().ok().filter(|n: &u32| n.to_string() == *entry))
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The names in the store, in order.
pub fn names(places: &Places) -> Result<Vec<String>, Failure> {
    let mut names = entries(&places.images)?;
    names.retain(|n| name::is_valid(n));
    names.sort();
    Ok(names)
}

fn entries(directory: &Path) -> Result<Vec<String>, Failure> {
    match std::fs::read_dir(directory) {
        Ok(entries) => Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Failure::io("open", directory, &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(name: &str, number: Option<u32>) -> Reference {
        Reference::Stored(name.into(), number)
    }

    #[test]
    fn references() {
        assert_eq!("./a".parse(), Ok(Reference::Path("./a".into())));
        assert_eq!("a/b@1".parse(), Ok(Reference::Path("a/b@1".into())));
        assert_eq!(("a".parse(), "a@12".parse()), (Ok(stored("a", None)), Ok(stored("a", Some(12)))));
        for bad in ["", "@1", "a@", "a@0", "a@-1", "a@1@2", "a@99999999999", ".."] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
        assert_eq!(stored("a", Some(3)).to_string(), "a@3");
    }

    #[test]
    fn the_store_counts_up() {
        let top = std::env::temp_dir().join(format!("yendor-cli-store-{}", std::process::id()));
        let places = Places { run: top.join("run"), images: top.join("images"), trees: top.join("trees") };
        assert_eq!(resolve(&places, &stored("a", None)).unwrap_err().exit_code(), 1);
        let first = next(&places, "a").unwrap();
        assert_eq!(first.reference, stored("a", Some(1)));
        for name in ["9", "10", "011", "x"] {
            std::fs::create_dir(top.join("images/a").join(name)).unwrap();
        }
        assert_eq!(numbers(&places, "a").unwrap(), [9, 10]);
        assert_eq!(resolve(&places, &stored("a", None)).unwrap().path, top.join("images/a/10"));
        assert_eq!(resolve(&places, &stored("a", Some(8))).unwrap_err().exit_code(), 1);
        assert_eq!(
            (next(&places, "a").unwrap().reference, names(&places).unwrap()),
            (stored("a", Some(11)), vec!["a".into()])
        );
        std::fs::remove_dir_all(&top).unwrap();
    }
}
