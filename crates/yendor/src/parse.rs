//! Values of options.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use yendor_engine::checkpoint::Wanted;
use yendor_engine::request::Volume;
use yendor_image::{Bytes, Compression};

/// Bytes as `512`, `64K`, `512M`, `2G`, `1T`; powers of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let upper = text.to_ascii_uppercase();
    let plain = upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper);
    let (digits, shift) = match plain.char_indices().last() {
        Some((at, 'K')) => (&plain[..at], 10),
        Some((at, 'M')) => (&plain[..at], 20),
        Some((at, 'G')) => (&plain[..at], 30),
        Some((at, 'T')) => (&plain[..at], 40),
        _ => (plain, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no number of bytes, like 512M"))?;
    number.checked_mul(1 << shift).filter(|n| *n > 0).ok_or_else(|| format!("{text:?} is out of range"))
}

/// As [`size`], or `0`.
pub fn size_or_none(text: &str) -> Result<u64, String> {
    if text.trim() == "0" { Ok(0) } else { size(text) }
}

/// How often memory is read before a stop: `1` to `100`, or `auto`.
pub fn rounds(text: &str) -> Result<Wanted, String> {
    match text.trim() {
        "auto" => Ok(Wanted::Auto),
        number => match number.parse() {
            Ok(n @ 1..=100) => Ok(Wanted::Exactly(n)),
            _ => Err(format!("{text:?} is no number from 1 to 100, and not auto")),
        },
    }
}

/// How an image is compressed: `lz4`, `zstd`, `zstd:LEVEL`.
pub fn compression(text: &str) -> Result<Compression, String> {
    text.trim().parse()
}

/// A time as `30s`, `5m`, `2h`, `1d`, `500ms`; without a unit, seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time, like 30s, 5m or 2h");
    let text = text.trim();
    let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let time = number.checked_mul(milliseconds).filter(|n| *n > 0).ok_or_else(wrong)?;
    Ok(Duration::from_millis(time))
}

/// `UID[:GID]`; without a group, the group with the user's number.
pub fn user(text: &str) -> Result<(u32, u32), String> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    let id = |t: &str| match t.parse::<u32>() {
        Ok(u32::MAX) | Err(_) => Err(format!("{t:?} is no numeric id: user is UID or UID:GID, in numbers")),
        Ok(id) => Ok(id),
    };
    Ok((id(uid)?, id(gid)?))
}

/// `NAME=HOSTPATH:PATH[:ro]`, for `run`.
pub fn volume(text: &str) -> Result<Volume, String> {
    let form = "a volume is NAME=HOSTPATH:PATH or NAME=HOSTPATH:PATH:ro, with absolute paths";
    let (name, rest) = text.split_once('=').ok_or(form)?;
    let (rest, read_only) = rest.strip_suffix(":ro").map_or((rest, false), |rest| (rest, true));
    let (host, inside) = rest.rsplit_once(':').ok_or(form)?;
    if !crate::name::is_valid(name) || !host.starts_with('/') || !inside.starts_with('/') {
        return Err(form.to_owned());
    }
    Ok(Volume { name: name.into(), host: host.into(), inside: Some(inside.into()), read_only })
}

/// `NAME=HOSTPATH` fills a hole of an image, `NAME=HOSTPATH:PATH[:ro]` says where, too.
pub fn filling(text: &str) -> Result<Volume, String> {
    let form = "a volume of an image is NAME=HOSTPATH, with an absolute path: the image says where it is, and whether it is read-only; \
                NAME=HOSTPATH:PATH[:ro] puts it elsewhere";
    let (name, host) = text.split_once('=').ok_or(form)?;
    if host.contains(':') {
        return volume(text).map_err(|_| form.to_owned());
    }
    if !crate::name::is_valid(name) || !host.starts_with('/') {
        return Err(form.to_owned());
    }
    Ok(Volume { name: name.into(), host: host.into(), inside: None, read_only: false })
}

/// A capability's name.
pub fn capability(text: &str) -> Result<String, String> {
    yendor_policy::capability::one(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

/// A path made absolute without looking at it.
pub fn absolute(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The environment of a new program: a small clean set, and what the caller asks for. `K=V` sets, `K` takes over the
/// caller's value if there is one.
pub fn environment(asked: &[OsString], terminal: bool, home: &str) -> Result<Vec<Bytes>, String> {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let pair = |name: &str, value: OsString| [name.as_bytes(), b"=", value.as_bytes()].concat();
    let mut out: Vec<Vec<u8>> = vec![
        pair("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
        pair("HOME", home.into()),
    ];
    if terminal {
        out.push(pair("TERM", of("TERM").unwrap_or_else(|| "xterm".into())));
    }
    out.extend(of("LANG").map(|v| pair("LANG", v)));
    for line in asked_for(asked)? {
        let name = line.split_inclusive(|b| *b == b'=').next().unwrap_or_default().to_vec();
        out.retain(|known| !known.starts_with(&name));
        out.push(line);
    }
    Ok(out.into_iter().map(Bytes).collect())
}

/// Only what the caller asks for: `K=V` as it is, `K` with the caller's value if there is one.
pub fn asked(asked: &[OsString]) -> Result<Vec<Bytes>, String> {
    Ok(asked_for(asked)?.into_iter().map(Bytes).collect())
}

fn asked_for(asked: &[OsString]) -> Result<Vec<Vec<u8>>, String> {
    let mut out = Vec::new();
    for one in asked {
        let text = one.clone().into_vec();
        match text.iter().position(|b| *b == b'=') {
            Some(0) => return Err(format!("{one:?} is no variable: -e takes NAME=VALUE or NAME")),
            Some(_) => out.push(text),
            None if text.is_empty() => return Err(format!("{one:?} is no variable: -e takes NAME=VALUE or NAME")),
            None => out.extend(std::env::var_os(one).map(|v| [&text, &b"="[..], v.as_bytes()].concat())),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let ms = |text: &str| duration(text).map(|time| time.as_millis());
        assert_eq!(
            (ms("30s"), ms("5m"), ms("2h"), ms("1d"), ms("7"), ms("250ms")),
            (Ok(30_000), Ok(300_000), Ok(7_200_000), Ok(86_400_000), Ok(7000), Ok(250))
        );
        for bad in ["", "s", "0", "0s", "-1s", "1.5s", "5 m", "1w", "99999999999999999999s", "9999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(["1", "64k", "2M", "1GiB", "3TB"].map(|t| size(t).unwrap()), [1, 65536, 2 << 20, 1 << 30, 3 << 40]);
        for bad in ["", "0", "-1", "M", "1.5G", "1X", "99999999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!((["0", "1K"].map(size_or_none), size_or_none("-1").is_err()), ([Ok(0), Ok(1024)], true));
    }

    #[test]
    fn users() {
        assert_eq!((user("5"), user("5:0")), (Ok((5, 5)), Ok((5, 0))));
        for bad in ["", "root", "1:", ":1", "1:2:3", "4294967295", "-1"] {
            assert!(user(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volumes() {
        let v = volume("d=/a:b:/c:ro").unwrap();
        assert_eq!((v.name.as_str(), v.host.to_str(), v.inside.unwrap().to_str()), ("d", Some("/a:b"), Some("/c")));
        assert!(v.read_only && !volume("d=/a:/c").unwrap().read_only);
        assert_eq!(filling("d=/a").unwrap().inside, None);
        assert!(filling("d=/a:/b").unwrap().inside.is_some());
        for bad in ["", "d", "d=", "d=a:/b", "d=/a:b", "=/a:/b", "../d=/a:/b", "d=/a"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        assert!(filling("d=a").is_err());
    }

    #[test]
    fn environments() {
        let asked = ["A=1", "PATH=/x", "A=2=3", "YENDOR_NO_SUCH_VARIABLE"].map(OsString::from);
        let env = environment(&asked, false, "/root").unwrap();
        let shown: Vec<String> = env.iter().map(ToString::to_string).filter(|l| !l.starts_with("LANG=")).collect();
        assert_eq!(shown, ["HOME=/root", "PATH=/x", "A=2=3"]);
        assert!(environment(&[], true, "/").unwrap().iter().any(|l| l.0.starts_with(b"TERM=")));
        assert!(environment(&["=x".into()], false, "/").is_err());
    }
}
