//! records.md: every structure of an image's records, field by field, from the declarations themselves.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use quote::ToTokens;
use syn::{Attribute, Expr, Fields, Item, ItemEnum, ItemStruct, Lit, Meta};

use crate::Outcome;
use crate::tidy::Tree;

/// Where the records are declared.
const KINDS: &str = "crates/kinds/src";

const HEAD: &str = "\
# Records

What `records.cbor` of an image holds, in the order of the declarations; the rules of its encoding are in
docs/format.md. The document is one `Snapshot`.

Written by `cargo xtask docs` from the declarations in `crates/kinds`. `Option<T>` is `null` when
absent, `Vec<T>` and `[T; N]` are arrays, tuples are arrays, `u8` to `u64` and `i8` to `i64` are integers, `String` is text. A type that
another module declares is written `module::Type`.
";

/// The page as it should be.
///
/// # Errors
/// A file that is no Rust.
pub fn page(tree: &Tree) -> Outcome<String> {
    let mut modules: BTreeMap<String, String> = BTreeMap::new();
    for (path, text) in tree.with_extension("rs") {
        let Ok(within) = path.strip_prefix(KINDS) else { continue };
        if path.iter().any(|part| part == "tests" || part == "tests.rs") {
            continue;
        }
        let file = syn::parse_file(text).map_err(|e| format!("{}: {e}", path.display()))?;
        let body: String = file.items.iter().filter_map(item).collect();
        if !body.is_empty() {
            modules.insert(name(within), body);
        }
    }
    let mut out = HEAD.to_owned();
    // The document itself first.
    let first = modules.remove_entry("snapshot");
    for (module, body) in first.into_iter().chain(modules) {
        write!(out, "\n## {module}\n{body}")?;
    }
    Ok(out)
}

fn name(file: &Path) -> String {
    let parts: Vec<String> = file.with_extension("").iter().map(|p| p.to_string_lossy().into_owned()).collect();
    let parts = parts.strip_suffix(&["mod".to_owned()]).unwrap_or(&parts);
    parts.join("::")
}

fn item(item: &Item) -> Option<String> {
    match item {
        Item::Struct(one) if is_stored(&one.attrs) => Some(structure(one)),
        Item::Enum(one) if is_stored(&one.attrs) => Some(enumeration(one)),
        _ => None,
    }
}

/// Whether it can be read from an image.
fn is_stored(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|a| a.path().is_ident("derive") && a.to_token_stream().to_string().contains("Deserialize"))
}

fn structure(one: &ItemStruct) -> String {
    let mut out = format!("\n### {}\n\n{}\n", one.ident, doc(&one.attrs));
    match &one.fields {
        Fields::Named(_) => {
            out.push_str("\n| field | type | meaning |\n|---|---|---|\n");
            out.push_str(&rows(&one.fields));
        }
        Fields::Unnamed(fields) => {
            let types: Vec<String> = fields.unnamed.iter().map(|f| shown(&f.ty)).collect();
            out.push_str(&format!("\nEncoded as {}.\n", types.join(", ")));
        }
        Fields::Unit => {}
    }
    out
}

fn enumeration(one: &ItemEnum) -> String {
    let mut out =
        format!("\n### {}\n\n{}\n\n| variant | content | meaning |\n|---|---|---|\n", one.ident, doc(&one.attrs));
    let snake =
        one.attrs.iter().any(|a| a.path().is_ident("serde") && a.to_token_stream().to_string().contains("snake_case"));
    for variant in &one.variants {
        let name = if snake { snake_case(&variant.ident.to_string()) } else { variant.ident.to_string() };
        let content = match &variant.fields {
            Fields::Unit => "none".to_owned(),
            Fields::Unnamed(fields) => fields.unnamed.iter().map(|f| shown(&f.ty)).collect::<Vec<_>>().join(", "),
            Fields::Named(_) => "the fields below".to_owned(),
        };
        out.push_str(&format!("| `{name}` | {content} | {} |\n", doc(&variant.attrs)));
        if matches!(variant.fields, Fields::Named(_)) {
            out.push_str(&rows(&variant.fields));
        }
    }
    out
}

fn rows(fields: &Fields) -> String {
    let row = |field: &syn::Field| {
        let name = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
        format!("| `{name}` | {} | {} |\n", shown(&field.ty), doc(&field.attrs))
    };
    fields.iter().map(row).collect()
}

fn shown(ty: &syn::Type) -> String {
    let text = ty.to_token_stream().to_string();
    let plain = text.replace(" :: ", "::").replace(" < ", "<").replace(" >", ">").replace(" ,", ",").replace("< ", "<");
    format!(
        "`{}`",
        plain
            .replace("crate::", "")
            .replace("yendor_image::", "")
            .replace(" ;", ";")
            .replace("( ", "(")
            .replace(" )", ")")
    )
}

/// The words of an item's documentation, in one line.
fn doc(attributes: &[Attribute]) -> String {
    let line = |a: &Attribute| match &a.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(value) => match &value.lit {
                Lit::Str(text) => Some(text.value().trim().to_owned()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    };
    attributes.iter().filter_map(line).collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for (at, sign) in name.char_indices() {
        if sign.is_uppercase() && at > 0 {
            out.push('_');
        }
        out.extend(sign.to_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_described_and_others_are_not() {
        let text = "/// A thing.\n#[derive(Deserialize)]\npub struct Record {\n /// Its\n /// size.\n pub size: Option<u64>,\n}\n\
                    #[derive(Debug)]\npub struct Other { pub x: u8 }\n\
                    /// Which.\n#[derive(Serialize, Deserialize)]\n#[serde(rename_all = \"snake_case\")]\npub enum Which {\n \
                    /// This.\n OneThing,\n /// That.\n Two(crate::file::Record),\n}\n";
        let file = syn::parse_file(text).expect("Rust");
        let page: String = file.items.iter().filter_map(item).collect();
        assert!(page.contains("| `size` | `Option<u64>` | Its size. |"), "{page}");
        assert!(
            page.contains("| `one_thing` | none | This. |") && page.contains("| `two` | `file::Record` | That. |"),
            "{page}"
        );
        assert!(!page.contains("Other"), "{page}");
    }
}
