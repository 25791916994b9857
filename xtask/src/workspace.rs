//! What the workspace consists of: its members, from `cargo metadata`.

use crate::Outcome;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One crate of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The package's name.
    pub name: String,
    /// Everything it names in a dependency table, of whatever kind (normal, dev, build).
    pub dependencies: Vec<Dependency>,
}

/// One line of a dependency table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// The package's name, not what it may be renamed to.
    pub name: String,
    /// Whether it is a path dependency, that is, a crate of this workspace.
    pub ours: bool,
}

/// The top directory of the checkout.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where cargo puts what it builds.
///
/// # Errors
/// `cargo metadata` does not run or its answer has another shape.
pub fn target_directory() -> Outcome<PathBuf> {
    let metadata = metadata()?;
    let path = metadata["target_directory"].as_str();
    Ok(path.ok_or("cargo metadata: no target_directory")?.into())
}

/// The members of the workspace.
///
/// # Errors
/// `cargo metadata` does not run or its answer has another shape.
pub fn members() -> Outcome<Vec<Member>> {
    parse(&metadata()?)
}

fn metadata() -> Outcome<Value> {
    let output = Command::new(cargo())
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root())
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("cargo metadata: {}: {said}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The cargo that runs us, so that the toolchain is the same all the way down.
pub fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn parse(metadata: &Value) -> Outcome<Vec<Member>> {
    let packages = metadata["packages"].as_array();
    packages
        .ok_or("cargo metadata: no packages")?
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array();
            Ok(Member {
                name: name_of(package)?,
                dependencies: dependencies
                    .ok_or("cargo metadata: a package without dependencies")?
                    .iter()
                    .map(|one| Ok(Dependency { name: name_of(one)?, ours: one["source"].is_null() }))
                    .collect::<Outcome<_>>()?,
            })
        })
        .collect()
}

fn name_of(value: &Value) -> Outcome<String> {
    let name = value["name"].as_str();
    Ok(name.ok_or("cargo metadata: something without a name")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_without_a_source_is_ours() -> Outcome {
        let metadata = serde_json::json!({"packages": [{"name": "a", "dependencies": [
            {"name": "b", "source": null},
            {"name": "c", "source": "registry+https://example.org/index"},
        ]}]});
        let members = parse(&metadata)?;
        let ours: Vec<bool> = members[0].dependencies.iter().map(|d| d.ours).collect();
        assert_eq!(ours, [true, false]);
        Ok(())
    }

    #[test]
    fn a_package_without_a_name_is_an_error() {
        assert!(parse(&serde_json::json!({"packages": [{"dependencies": []}]})).is_err());
        assert!(parse(&serde_json::json!({})).is_err());
    }
}
