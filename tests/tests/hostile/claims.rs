//! What hostile images claim. One line each: a name, what may become of it, and the lie.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use ciborium::Value;
use yendor_tests::{Forge, seal};

/// What may become of an image.
#[derive(Clone, Copy, Debug)]
pub enum May {
    /// Exit code 4.
    Damaged,
    /// Exit code 5.
    Denied,
    /// Exit code 5, and these words: the option that fills a hole.
    Named(&'static str),
    /// It runs, and has nothing.
    Run,
}

/// What is changed.
pub enum On {
    /// The records, put together with right digests.
    Records(fn(&mut Forge, &Path)),
    /// The same, restored by somebody who wants its labels kept.
    Kept(fn(&mut Forge)),
    /// The bytes of the records.
    Bytes(fn(&Forge) -> Vec<u8>),
    /// The files of the image.
    Files(fn(&Path, &Path, &Forge)),
}

/// One lie.
pub struct Claim {
    pub name: &'static str,
    pub may: May,
    pub on: On,
}

const P: &str = "processes/0/state/alive";
const T: &str = "processes/0/state/alive/threads/0";
const M: &str = "processes/0/state/alive/memory";

fn number(n: u64) -> Value {
    Value::Integer(n.into())
}

fn negative(n: i64) -> Value {
    Value::Integer(n.into())
}

fn bytes(path: impl AsRef<Path>) -> Value {
    use std::os::unix::ffi::OsStrExt;
    Value::Bytes(path.as_ref().as_os_str().as_bytes().to_vec())
}

fn map(entries: &[(&str, Value)]) -> Value {
    Value::Map(entries.iter().map(|(k, v)| (Value::Text((*k).into()), v.clone())).collect())
}

fn p(rest: &str) -> String {
    format!("{P}/{rest}")
}

fn t(rest: &str) -> String {
    format!("{T}/{rest}")
}

fn m(rest: &str) -> String {
    format!("{M}/{rest}")
}

/// The path of the first file of a kind.
fn file(forge: &mut Forge, kind: &str) -> String {
    let count = forge.list("files").len();
    let found = (0..count).map(|i| format!("files/{i}/record/{kind}")).find(|path| forge.has(path));
    found.unwrap_or_else(|| panic!("no {kind} in the good image"))
}

fn ghost(forge: &mut Forge) -> String {
    let count = forge.list("files").len();
    let paths = (0..count).map(|i| format!("files/{i}/record/regular"));
    let found = paths.into_iter().find(|path| forge.has(&format!("{path}/ghost/inode")));
    found.expect("a ghost in the good image")
}

/// Another field in a map.
fn field(forge: &mut Forge, path: &str, name: &str, value: Value) {
    let Value::Map(map) = forge.at(path) else { panic!("{path} is no map") };
    map.push((Value::Text(name.into()), value));
}

/// Gives the second process another thread of its parent for parent.
fn borne_by(forge: &mut Forge, thread: Value) {
    forge.set("processes/1/parent_thread", thread);
}

/// One more thread of a process, where its first one is.
fn another_thread(forge: &mut Forge, process: usize, tid: u64) {
    let path = format!("processes/{process}/state/alive/threads");
    let copy = forge.at(&format!("{path}/0")).clone();
    forge.list(&path).push(copy);
    forge.set(&format!("{path}/1/tid"), number(tid));
}

fn ids(forge: &mut Forge, what: &str, id: u64) {
    forge.set(&t(&format!("credentials/{what}")), Value::Array(vec![number(id); 4]));
}

fn capabilities(forge: &mut Forge, sets: [u64; 5]) {
    forge.set(&t("credentials/capabilities"), Value::Array(sets.map(number).to_vec()));
}

fn layer_entry(path: &[u8], what: Value, mode: u64, owner: u64) -> Value {
    map(&[
        ("path", Value::Bytes(path.to_vec())),
        ("what", what),
        ("mode", number(mode)),
        ("owner", Value::Array(vec![number(owner), number(owner)])),
        ("modified", Value::Array(vec![number(1), number(1)])),
        ("attributes", Value::Array(Vec::new())),
        ("flags", number(0)),
    ])
}

/// Its extended attributes.
fn attributes_of(entry: &mut Value) -> Option<&mut Value> {
    let Value::Map(fields) = entry else { return None };
    fields.iter_mut().find(|(name, _)| *name == Value::Text("attributes".into())).map(|(_, value)| value)
}

/// Puts an entry into the layer of the root, and one into that of /tmp.
fn layer(forge: &mut Forge, path: &[u8], what: &Value, mode: u64, owner: u64) {
    for index in 0..2 {
        let entry = layer_entry(path, what.clone(), mode, owner);
        forge.list(&format!("container/layers/{index}/entries")).push(entry);
    }
}

/// A unix socket with a name, or with none, in the place of a file.
fn socket(f: &mut Forge, network: u64, name: Value) {
    let times = Value::Array(vec![number(0), number(0)]);
    let options =
        [("numbers", Value::Array(Vec::new())), ("linger", Value::Null), ("timeouts", Value::Array(vec![times; 2]))];
    let path = file(f, "regular").replace("/regular", "");
    let record = map(&[
        ("kind", Value::Text("stream".into())),
        ("name", name),
        ("state", Value::Text("plain".into())),
        ("shutdown", number(0)),
        ("queue", Value::Array(Vec::new())),
        ("options", map(&options)),
        ("peer", Value::Null),
    ]);
    f.set(&path, map(&[("unix", record)]));
    f.set(&path.replace("record", "network"), number(network));
}

/// The same of the container's own network; `inode`: whether the name leads to it still.
fn named_socket(f: &mut Forge, address: impl AsRef<Path>, directory: &str, root: Value, inode: bool) {
    let inode = if inode { Value::Array([0o777, 0, 0].map(number).to_vec()) } else { Value::Null };
    let name = [("address", bytes(address)), ("directory", bytes(directory)), ("root", root), ("inode", inode)];
    socket(f, 0, map(&name));
    let path = file(f, "unix").replace("record/unix", "network");
    f.set(&path, Value::Null);
}

/// A link that the image brings to /tmp.
fn link_in_tmp(f: &mut Forge, name: &str, to: impl AsRef<Path>) {
    let link = layer_entry(name.as_bytes(), map(&[("symlink", bytes(to))]), 0o777, 0);
    f.list("container/layers/1/entries").push(link);
}

fn epoll(target: Value) -> Value {
    let busy_poll = Value::Array(vec![number(0), number(0), number(0)]);
    map(&[("targets", Value::Array(vec![target])), ("busy_poll", busy_poll)])
}

fn setting(f: &mut Forge, name: &str, value: &[u8]) {
    f.list("container/settings").push(map(&[("name", bytes(name)), ("value", Value::Bytes(value.to_vec()))]));
}

fn whiteout() -> Value {
    Value::Text("whiteout".into())
}

fn directory() -> Value {
    map(&[("directory", Value::Bool(false))])
}

fn empty_file(size: u64) -> Value {
    map(&[("file", map(&[("start", number(0)), ("size", number(size)), ("extents", Value::Array(Vec::new()))]))])
}

fn beneath(bait: &Path, name: &str) -> Vec<u8> {
    format!("{}/{name}", bait.strip_prefix("/").expect("absolute").display()).into_bytes()
}

fn lie(name: &'static str, may: May, change: fn(&mut Forge, &Path)) -> Claim {
    Claim { name, may, on: On::Records(change) }
}

fn bad(name: &'static str, bytes: fn(&Forge) -> Vec<u8>) -> Claim {
    Claim { name, may: May::Damaged, on: On::Bytes(bytes) }
}

fn files(name: &'static str, change: fn(&Path, &Path, &Forge)) -> Claim {
    Claim { name, may: May::Damaged, on: On::Files(change) }
}

fn replace(image: &Path, name: &str, make: impl FnOnce(&Path)) {
    let path = image.join(name);
    fs::remove_file(&path).expect("it is there");
    make(&path);
}

/// A manifest that lists what it likes.
fn manifest(image: &Path, change: impl FnOnce(String) -> String) {
    let path = image.join("manifest.json");
    let text = fs::read_to_string(&path).expect("a manifest");
    let body = text.split(",\n  \"blake3\": \"").next().map(str::to_owned).unwrap_or_default();
    // The seal is the last one, at two spaces; those of files are deeper.
    let end = text.rfind(",\n  \"blake3\": \"").expect("a seal");
    assert!(text.get(..end).is_some_and(|b| b.starts_with(&body)));
    let body = change(text[..end].to_owned());
    fs::write(&path, seal(&body)).expect("write");
}

/// All lies.
pub static CLAIMS: std::sync::LazyLock<Vec<Claim>> = std::sync::LazyLock::new(|| {
    [
        identity(),
        restrictions(),
        namespaces(),
        pid_namespaces(),
        queues(),
        processes(),
        memory(),
        descriptors(),
        paths(),
        ways_out(),
        layers(),
        surroundings(),
        encoding(),
        own_mounts(),
        disk(),
    ]
    .into_iter()
    .flatten()
    .collect()
});

fn identity() -> Vec<Claim> {
    const ALL: u64 = (1 << 41) - 1;
    vec![
        lie("a user id without a mapping", May::Denied, |f, _| ids(f, "uids", 4_000_000_000)),
        lie("a group id without a mapping", May::Denied, |f, _| ids(f, "gids", 4_000_000_000)),
        lie("the user id of nobody", May::Damaged, |f, _| ids(f, "uids", u64::from(u32::MAX))),
        lie("a user id of 64 bits", May::Damaged, |f, _| ids(f, "uids", 1 << 32)),
        lie("groups without a mapping", May::Denied, |f, _| {
            f.set(&t("credentials/groups"), Value::Array(vec![number(4_000_000_000)]));
        }),
        lie("a million groups", May::Damaged, |f, _| {
            f.set(&t("credentials/groups"), Value::Array(vec![number(0); 1_000_000]));
        }),
        lie("uid 0 with all capabilities", May::Run, |f, _| {
            ids(f, "gids", 0);
            capabilities(f, [ALL, ALL, ALL, ALL, ALL]);
        }),
        lie("capabilities that no kernel has", May::Denied, |f, _| capabilities(f, [u64::MAX; 5])),
        lie("effective without permitted", May::Denied, |f, _| capabilities(f, [0, 0, ALL, ALL, 0])),
        lie("ambient without permitted", May::Denied, |f, _| capabilities(f, [0, 0, 0, ALL, ALL])),
        lie("securebits that do not exist", May::Denied, |f, _| {
            f.set(&t("credentials/securebits"), number(u64::from(u32::MAX)));
        }),
        lie("limits without an end", May::Run, |f, _| {
            f.set(&p("limits/limits"), Value::Array(vec![Value::Array(vec![number(u64::MAX), number(u64::MAX)]); 16]));
            f.set(&p("attributes/coredump_filter"), number(511));
        }),
        lie("a lower oom_score_adj", May::Denied, |f, _| {
            f.set(&p("attributes/oom_score_adj"), negative(-1000));
        }),
        lie("a foreign label", May::Run, |f, _| f.list(&t("labels")).push(label("current"))),
        lie("a foreign label for the next program", May::Run, |f, _| f.list(&t("labels")).push(label("exec"))),
        lie("a foreign label of a file", May::Run, |f, _| f.list("files/3/labels").push(label("socket"))),
        lie("a label that is none", May::Damaged, |f, _| {
            f.list(&t("labels")).push(Value::Array(vec![Value::Text("selinux".into()), bytes("x")]));
        }),
        lie("other security modules", May::Run, |f, _| {
            f.set("machine/security/active", Value::Array(vec![Value::Text("selinux".into())]));
        }),
        keep("a label to be kept, of a module that is not there", |f| f.list(&t("labels")).push(label("current"))),
        keep("a label to be kept, for the next program", |f| f.list(&t("labels")).push(label("exec"))),
        keep("a label to be kept, of a file", |f| f.list("files/3/labels").push(label("socket"))),
        // A published hole: the flag was skipped, and the task kept the label of the runtime.
        keep("labels to be kept where the image carries no label", |f| {
            f.set(&t("labels"), Value::Array(Vec::new()));
            policies(f, &["selinux"]);
        }),
        keep("labels to be kept under a policy that says nothing", |f| {
            f.set(&t("labels"), Value::Array(vec![label("current")]));
            policies(f, &["selinux"]);
        }),
        keep("labels to be kept under a policy of every module", |f| policies(f, &["apparmor", "selinux", "smack"])),
    ]
}

fn keep(name: &'static str, change: fn(&mut Forge)) -> Claim {
    Claim { name, may: May::Named("labels cannot be kept"), on: On::Kept(change) }
}

/// Policies of these modules, without a part and without a load.
fn policies(f: &mut Forge, modules: &[&str]) {
    let policy = |module: &&str| {
        let (name, none) = (Value::Text((*module).to_owned()), Value::Array(Vec::new()));
        map(&[("module", name), ("parts", none), ("load", Value::Null)])
    };
    f.set("machine/security/policies", Value::Array(modules.iter().map(policy).collect()));
}

fn label(attribute: &str) -> Value {
    map(&[
        ("module", Value::Text("selinux".into())),
        ("attribute", Value::Text(attribute.into())),
        ("label", bytes("system_u:system_r:init_t:s0")),
    ])
}

/// What tasks have forbidden themselves, and what they have switched on.
fn restrictions() -> Vec<Claim> {
    /// A filter of the first thread.
    fn filter(f: &mut Forge, flags: u64, program: &[u8]) {
        let filter = map(&[("flags", number(flags)), ("program", Value::Bytes(program.to_vec()))]);
        f.list("restrictions/filters").push(filter);
        f.list(&t("restricted/filters")).push(number(0));
    }
    fn domain(f: &mut Forge, rules: Vec<Value>) {
        let layer = map(&[
            ("fs", number(1 << 2)),
            ("net", number(0)),
            ("scoped", number(0)),
            ("flags", number(0)),
            ("rules", Value::Array(rules)),
        ]);
        f.list("restrictions/domains").push(layer);
        f.list(&t("restricted/domains")).push(number(0));
    }
    fn beneath(access: u64, path: &str) -> Value {
        map(&[("beneath", map(&[("access", number(access)), ("path", bytes(path))]))])
    }
    /// Return ALLOW.
    const ALLOW: &[u8] = &[6, 0, 0, 0, 0, 0, 0xff, 0x7f];
    vec![
        lie("a filter that is not there", May::Damaged, |f, _| f.list(&t("restricted/filters")).push(number(7))),
        lie("a domain that is not there", May::Damaged, |f, _| f.list(&t("restricted/domains")).push(number(7))),
        lie("a filter of seven bytes", May::Damaged, |f, _| filter(f, 0, &ALLOW[1..])),
        lie("a filter of a MiB", May::Damaged, |f, _| filter(f, 0, &ALLOW.repeat(1 << 17))),
        lie("a filter with a listener", May::Damaged, |f, _| filter(f, 8, ALLOW)),
        lie("a filter for all threads, and all other flags", May::Damaged, |f, _| {
            filter(f, u64::from(u32::MAX), ALLOW)
        }),
        lie("a filter that asks a supervisor", May::Run, |f, _| filter(f, 0, &[6, 0, 0, 0, 0, 0, 0xc0, 0x7f])),
        lie("a filter that kills", May::Run, |f, _| filter(f, 0, &[6, 0, 0, 0, 0, 0, 0, 0x80])),
        lie("a filter that jumps behind its end", May::Damaged, |f, _| {
            filter(f, 0, &[5, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])
        }),
        lie("a domain above the root", May::Run, |f, _| domain(f, vec![beneath(4, "/../../../..")])),
        lie("a domain for a file of the host", May::Run, |f, bait| {
            domain(f, vec![beneath(4, bait.join("secret").to_str().expect("UTF-8"))]);
        }),
        lie("a domain for a magic link", May::Damaged, |f, _| domain(f, vec![beneath(4, "/proc/1/root")])),
        lie("a domain for what is not there", May::Named("--volume or --rootfs"), |f, _| {
            domain(f, vec![beneath(4, "/no/such")]);
        }),
        lie("a domain of all accesses", May::Damaged, |f, _| domain(f, vec![beneath(u64::MAX, "/")])),
        lie("large registers that no processor has", May::Damaged, |f, _| {
            f.set(&p("controls/large"), Value::Array(vec![number(u64::MAX); 2]));
        }),
        lie("to be served first when memory is short", May::Denied, |f, _| {
            f.set(&t("controls/io_flusher"), Value::Bool(true));
        }),
        lie("no memory to be written and executed, and all other bits", May::Damaged, |f, _| {
            f.set(&p("controls/deny_write_execute"), number(u64::MAX));
        }),
        lie("a time stamp counter of 99", May::Damaged, |f, _| f.set(&t("controls/tsc"), number(99))),
        lie("machine checks of 2^64-1", May::Damaged, |f, _| f.set(&t("controls/machine_check"), number(u64::MAX))),
        lie("speculation of 2^64-1", May::Damaged, |f, _| {
            f.set(&t("controls/speculation"), Value::Array(vec![number(u64::MAX); 3]));
        }),
    ]
}

fn queues() -> Vec<Claim> {
    /// A queue that nobody has open; these fields are otherwise.
    fn queue(f: &mut Forge, id: u64, other: &[(&str, Value)]) {
        let mut content = vec![
            ("name", bytes("q")),
            ("unlinked", Value::Bool(false)),
            ("mode", number(0o600)),
            ("owner", Value::Array(vec![number(0), number(0)])),
            ("most", number(2)),
            ("size", number(9)),
            ("messages", Value::Array(Vec::new())),
        ];
        for (name, value) in &mut content {
            if let Some((_, wrong)) = other.iter().find(|(other, _)| other == name) {
                *value = wrong.clone();
            }
        }
        let record = map(&[("mqueue", map(&[("queue", number(id)), ("content", map(&content))]))]);
        let entry = [
            ("id", number(3_000_000)),
            ("flags", number(2)),
            ("owner", Value::Null),
            ("mounts", Value::Null),
            ("network", Value::Null),
            ("labels", Value::Array(Vec::new())),
            ("record", record),
        ];
        f.list("files").push(map(&entry));
    }
    fn lies(f: &mut Forge, name: &str, value: Value) {
        queue(f, 3_000_000, &[(name, value)]);
    }
    fn notifies(f: &mut Forge) {
        f.list(&p("notifications")).push(map(&[("number", number(0)), ("signal", Value::Null)]));
    }
    vec![
        lie("a notification by what is no queue", May::Damaged, |f, _| notifies(f)),
        lie("a notification", May::Run, |f, _| {
            queue(f, 3_000_000, &[]);
            f.set(&p("descriptors/0/file"), number(3_000_000));
            notifies(f);
        }),
        lie("a queue that notifies twice", May::Damaged, |f, _| {
            queue(f, 3_000_000, &[]);
            f.set(&p("descriptors/0/file"), number(3_000_000));
            (0..2).for_each(|_| notifies(f));
        }),
        lie("a queue", May::Run, |f, _| queue(f, 3_000_000, &[])),
        lie("a queue that is another file", May::Damaged, |f, _| queue(f, 0, &[])),
        lie("a queue that is not there", May::Damaged, |f, _| queue(f, 2_999_999, &[])),
        lie("a queue with a path", May::Damaged, |f, _| lies(f, "name", bytes("../../tmp/q"))),
        lie("a queue with no name", May::Damaged, |f, _| lies(f, "name", bytes(""))),
        lie("a queue of 2^32-1 messages", May::Damaged, |f, _| lies(f, "most", number(0xffff_ffff))),
        lie("a queue of large messages", May::Damaged, |f, _| lies(f, "size", number(0xffff_ffff))),
        lie("a queue of another's", May::Denied, |f, _| {
            lies(f, "owner", Value::Array(vec![number(4_000_000_000), number(4_000_000_000)]));
        }),
        lie("a queue with all bits of a mode", May::Run, |f, _| lies(f, "mode", number(0xffff_ffff))),
        lie("a message that does not fit", May::Damaged, |f, _| {
            let message = map(&[("priority", number(0)), ("body", Value::Bytes(vec![b'x'; 4096]))]);
            lies(f, "messages", Value::Array(vec![message]));
        }),
        lie("more messages than there may be", May::Damaged, |f, _| {
            let message = map(&[("priority", number(0)), ("body", Value::Bytes(Vec::new()))]);
            lies(f, "messages", Value::Array(vec![message; 3]));
        }),
        lie("a message of a priority that is none", May::Damaged, |f, _| {
            let message = map(&[("priority", number(0xffff_ffff)), ("body", Value::Bytes(Vec::new()))]);
            lies(f, "messages", Value::Array(vec![message]));
        }),
    ]
}

fn namespaces() -> Vec<Claim> {
    fn inside(f: &mut Forge, all: &[Value], ids: &[u64]) {
        f.list("namespaces").extend_from_slice(all);
        f.list(&t("namespaces")).extend(ids.iter().copied().map(number));
    }
    fn namespace(owner: Value, kind: &str, fields: &[(&str, Value)]) -> Value {
        map(&[("owner", owner), ("content", map(&[(kind, map(fields))]))])
    }
    fn uts_of(owner: Value, name: &[u8]) -> Value {
        let (name, none) = (Value::Bytes(name.to_vec()), Value::Bytes(Vec::new()));
        namespace(owner, "uts", &[("hostname", name), ("domainname", none)])
    }
    fn uts(name: &[u8]) -> Value {
        uts_of(Value::Null, name)
    }
    /// Of one range for users, one for groups.
    fn users(owner: Value, maker: u64, range: [u64; 3]) -> Value {
        let [inside, outside, count] = range.map(number);
        let range = || map(&[("inside", inside.clone()), ("outside", outside.clone()), ("count", count.clone())]);
        let fields = [
            ("maker", number(maker)),
            ("uids", Value::Array(vec![range()])),
            ("gids", Value::Array(vec![range()])),
            ("setgroups", Value::Bool(true)),
            ("settings", Value::Array(Vec::new())),
        ];
        namespace(owner, "user", &fields)
    }
    fn net(setting: &str) -> Value {
        let setting = map(&[("name", bytes(setting)), ("value", bytes("1"))]);
        let links = map(&["links", "addresses", "routes"].map(|name| (name, Value::Array(Vec::new()))));
        let fields = [("loopback", Value::Bool(true)), ("links", links), ("settings", Value::Array(vec![setting]))];
        namespace(Value::Null, "net", &fields)
    }
    /// What is outside at `root`, and on it, at `point`, what is outside at `path`.
    fn mounts(root: &str, point: &str, path: &str) -> Value {
        let one = |on: Value, point: &str, path: &str| {
            map(&[
                ("on", on),
                ("point", bytes(point)),
                ("what", map(&[("outside", bytes(path))])),
                ("attributes", number(0)),
                ("shared", Value::Bool(false)),
                ("unbindable", Value::Bool(false)),
            ])
        };
        let all = vec![one(Value::Null, "/", root), one(number(0), point, path)];
        namespace(Value::Null, "mount", &[("mounts", Value::Array(all))])
    }
    vec![
        lie("a namespace that is not there", May::Damaged, |f, _| inside(f, &[], &[0])),
        lie("a namespace of 2^32-1", May::Damaged, |f, _| inside(f, &[uts(b"x")], &[u64::from(u32::MAX)])),
        lie("in two namespaces of a kind", May::Damaged, |f, _| inside(f, &[uts(b"x"), uts(b"y")], &[0, 1])),
        lie("in one namespace twice", May::Damaged, |f, _| inside(f, &[uts(b"x")], &[0, 0])),
        lie("a namespace for nobody", May::Run, |f, _| inside(f, &[uts(b"x")], &[])),
        lie("a name of a KiB inside", May::Damaged, |f, _| inside(f, &[uts(&[b'x'; 1024])], &[0])),
        lie("too many namespaces", May::Damaged, |f, _| inside(f, &vec![uts(b"x"); 1025], &[0])),
        lie("a setting of the whole machine inside", May::Damaged, |f, _| {
            inside(f, &[net("kernel/core_pattern")], &[0]);
        }),
        lie("a setting of the container's inside", May::Damaged, |f, _| {
            inside(f, &[net("user/max_net_namespaces")], &[0])
        }),
        lie("a setting of another kind inside", May::Damaged, |f, _| inside(f, &[net("fs/mqueue/msg_max")], &[0])),
        lie("a network that forwards inside", May::Run, |f, _| inside(f, &[net("net/ipv4/ip_forward")], &[0])),
        lie("a namespace by its path", May::Damaged, |f, _| {
            inside(f, &[namespace(Value::Null, "net", &[("path", bytes("/proc/1/ns/net"))])], &[0]);
        }),
        lie("mounts of the host", May::Damaged, |f, _| inside(f, &[mounts("/", "/etc", "/proc/1/root")], &[0])),
        lie("mounts below nothing", May::Damaged, |f, _| inside(f, &[mounts("/", "/../etc", "/etc")], &[0])),
        lie("mounts of nothing", May::Damaged, |f, _| inside(f, &[mounts("/", "/etc", "../etc")], &[0])),
        lie("a root that is not there", May::Named("--volume or --rootfs"), |f, _| {
            inside(f, &[mounts("/no/such", "/etc", "/etc")], &[0]);
        }),
        lie("no mounts at all", May::Damaged, |f, _| {
            inside(f, &[namespace(Value::Null, "mount", &[("mounts", Value::Array(Vec::new()))])], &[0]);
        }),
        lie("clocks before there was time", May::Damaged, |f, _| {
            let far = [("monotonic", number(0)), ("boottime", negative(i64::MIN))];
            inside(f, &[namespace(Value::Null, "time", &far)], &[0]);
        }),
        lie("clocks beyond all numbers", May::Damaged, |f, _| {
            let far = [("monotonic", number(u64::MAX)), ("boottime", number(0))];
            inside(f, &[namespace(Value::Null, "time", &far)], &[0]);
        }),
        lie("control groups with a path", May::Damaged, |f, _| {
            inside(f, &[namespace(Value::Null, "cgroup", &[("path", bytes("/"))])], &[0]);
        }),
        lie("control groups", May::Named("--userns host"), |f, _| {
            inside(f, &[namespace(Value::Null, "cgroup", &[])], &[0])
        }),
        lie("users inside", May::Run, |f, _| inside(f, &[users(Value::Null, 0, [0, 0, 1])], &[0])),
        lie("all users of the host", May::Denied, |f, _| {
            inside(f, &[users(Value::Null, 0, [0, 0, 0xffff_fffe])], &[0]);
        }),
        lie("users that nobody is", May::Denied, |f, _| {
            inside(f, &[users(Value::Null, 0, [0, 4_000_000_000, 9])], &[0])
        }),
        lie("users made by one of the host's", May::Damaged, |f, _| {
            inside(f, &[users(Value::Null, 4_000_000_000, [0, 0, 1])], &[0]);
        }),
        lie("no users at all", May::Damaged, |f, _| inside(f, &[users(Value::Null, 0, [0, 0, 0])], &[0])),
        lie("users beyond all numbers", May::Damaged, |f, _| {
            inside(f, &[users(Value::Null, 0, [9, 9, 0xffff_ffff])], &[0])
        }),
        lie("users made by nobody", May::Damaged, |f, _| {
            inside(f, &[users(Value::Null, 0xffff_ffff, [0, 0, 1])], &[0])
        }),
        lie("a namespace that owns itself", May::Damaged, |f, _| inside(f, &[users(number(0), 0, [0, 0, 1])], &[0])),
        lie("namespaces that own each other", May::Damaged, |f, _| {
            inside(f, &[users(number(1), 0, [0, 0, 1]), users(number(0), 0, [0, 0, 1])], &[0]);
        }),
        lie("users in users", May::Run, |f, _| {
            inside(f, &[users(Value::Null, 0, [5, 0, 1]), users(number(0), 0, [0, 0, 1])], &[1]);
        }),
        lie("users in users that do not have them", May::Damaged, |f, _| {
            inside(f, &[users(Value::Null, 0, [5, 0, 1]), users(number(0), 0, [0, 0, 2])], &[1]);
        }),
        lie("users in users made by one who is not there", May::Damaged, |f, _| {
            inside(f, &[users(Value::Null, 0, [5, 0, 1]), users(number(0), 1, [0, 0, 1])], &[1]);
        }),
        lie("users in names", May::Damaged, |f, _| inside(f, &[uts(b"x"), users(number(0), 0, [0, 0, 1])], &[1])),
        lie("a socket in a network that is not there", May::Damaged, |f, _| {
            socket(f, 7, Value::Null);
        }),
        lie("a socket in names", May::Damaged, |f, _| {
            inside(f, &[uts(b"x")], &[]);
            socket(f, 0, Value::Null);
        }),
        lie("a file in a network", May::Damaged, |f, _| {
            inside(f, &[net("net/ipv4/ip_default_ttl")], &[]);
            let path = file(f, "regular").replace("record/regular", "network");
            f.set(&path, number(0));
        }),
        lie("a device without its other end", May::Damaged, |f, _| {
            let link = map(&[
                ("index", number(5)),
                ("name", bytes("x")),
                ("kind", map(&[("veth", number(9))])),
                ("address", Value::Bytes(vec![2; 6])),
                ("mtu", number(1500)),
                ("queue", number(9)),
                ("flags", number(1)),
                ("settings", Value::Array(Vec::new())),
                ("port", Value::Null),
            ]);
            f.list("container/links/links").push(link);
        }),
        lie("an address with what is none of it", May::Damaged, |f, _| {
            let attribute = Value::Array(vec![number(77), Value::Bytes(vec![0; 4])]);
            let address = [("header", Value::Bytes(vec![0; 8])), ("attributes", Value::Array(vec![attribute]))];
            f.list("container/links/addresses").push(map(&address));
        }),
        lie("a route that is cut off", May::Damaged, |f, _| {
            let route = [("header", Value::Bytes(vec![2; 4])), ("attributes", Value::Array(Vec::new()))];
            f.list("container/links/routes").push(map(&route));
        }),
        lie("names that belong to names", May::Damaged, |f, _| inside(f, &[uts(b"x"), uts_of(number(0), b"y")], &[0])),
        lie("names that belong to users", May::Run, |f, _| {
            inside(f, &[users(Value::Null, 0, [0, 0, 1]), uts_of(number(0), b"y")], &[0, 1]);
        }),
        lie("names that belong to users to come", May::Damaged, |f, _| {
            inside(f, &[uts_of(number(1), b"y"), users(Value::Null, 0, [0, 0, 1])], &[0]);
        }),
        lie("a setting of the container's for users", May::Damaged, |f, _| {
            inside(f, &[users(Value::Null, 0, [0, 0, 1])], &[0]);
            let setting = map(&[("name", bytes("net/ipv4/ip_forward")), ("value", bytes("1"))]);
            f.list("namespaces/0/content/user/settings").push(setting);
        }),
    ]
}

/// Pid namespaces, and the ids that processes have in them.
fn pid_namespaces() -> Vec<Claim> {
    fn pids(f: &mut Forge, parents: &[Value]) {
        let one = |parent: &Value| {
            let content = map(&[("pid", map(&[("parent", parent.clone())]))]);
            map(&[("owner", Value::Null), ("content", content)])
        };
        let all: Vec<Value> = parents.iter().map(one).collect();
        f.list("namespaces").extend(all);
    }
    /// The first process lives in `namespace`, with these ids, group and session at each level, and so does its first thread.
    fn lives(f: &mut Forge, namespace: u64, levels: &[[u64; 3]]) {
        let level = |[pid, group, session]: &[u64; 3]| {
            map(&[("pid", number(*pid)), ("group", number(*group)), ("session", number(*session))])
        };
        f.set("processes/0/namespace", number(namespace));
        f.set("processes/0/levels", Value::Array(levels.iter().map(level).collect()));
        f.set(&t("levels"), Value::Array(levels.iter().map(|[pid, ..]| number(*pid)).collect()));
    }
    vec![
        lie("a pid namespace that nobody lives in", May::Damaged, |f, _| pids(f, &[Value::Null])),
        lie("a pid namespace that is not there", May::Damaged, |f, _| lives(f, 0, &[[1, 1, 1]])),
        lie("a pid namespace of 2^32-1", May::Damaged, |f, _| {
            pids(f, &[Value::Null]);
            lives(f, 0xffff_ffff, &[[1, 1, 1]]);
        }),
        lie("a pid namespace below itself", May::Damaged, |f, _| {
            pids(f, &[number(0)]);
            lives(f, 0, &[[1, 1, 1]]);
        }),
        lie("pid namespaces below each other", May::Damaged, |f, _| {
            pids(f, &[number(1), number(0)]);
            lives(f, 0, &[[1, 1, 1]]);
        }),
        lie("33 pid namespaces", May::Damaged, |f, _| {
            pids(f, &(0..33).map(|n: u64| n.checked_sub(1).map_or(Value::Null, number)).collect::<Vec<_>>());
            lives(f, 32, &[[1, 1, 1]; 33]);
        }),
        lie("ids at levels that do not exist", May::Damaged, |f, _| {
            pids(f, &[Value::Null]);
            lives(f, 0, &[[1, 1, 1], [1, 1, 1]]);
        }),
        lie("no id in its pid namespace", May::Damaged, |f, _| {
            pids(f, &[Value::Null]);
            lives(f, 0, &[]);
        }),
        lie("the id 0 in its pid namespace", May::Damaged, |f, _| {
            pids(f, &[Value::Null]);
            lives(f, 0, &[[0, 0, 0]]);
        }),
        lie("a pid namespace without pid 1", May::Damaged, |f, _| {
            pids(f, &[Value::Null]);
            lives(f, 0, &[[7, 7, 7]]);
        }),
        lie("another group in its pid namespace", May::Damaged, |f, _| {
            pids(f, &[Value::Null]);
            lives(f, 0, &[[1, 9, 1]]);
        }),
        lie("a thread elsewhere than its process", May::Damaged, |f, _| {
            pids(f, &[Value::Null]);
            lives(f, 0, &[[1, 1, 1]]);
            f.set(&t("levels"), Value::Array(vec![number(9)]));
        }),
        lie("a child outside of its parent's pid namespace", May::Damaged, |f, _| {
            pids(f, &[Value::Null]);
            lives(f, 0, &[[1, 1, 1]]);
        }),
        lie("children in a pid namespace that is not there", May::Damaged, |f, _| f.set(&p("children"), number(0))),
        lie("a thread that lives in a pid namespace", May::Damaged, |f, _| {
            pids(f, &[Value::Null]);
            f.list(&t("namespaces")).push(number(0));
        }),
    ]
}

fn processes() -> Vec<Claim> {
    let mut out = Vec::new();
    for (name, field, id) in [
        ("pid 1", "pid", 1),
        ("pid 0", "pid", 0),
        ("pid -1", "pid", -1),
        ("pid 2^31-1", "pid", 2_147_483_647),
        ("a parent that does not exist", "parent", 31_000),
        ("a parent of -1", "parent", -1),
        ("the group of pid 0", "group", -5),
        ("a session of 2^31-1", "session", 2_147_483_647),
    ] {
        // Function pointers cannot capture: a table of its own.
        let change: fn(&mut Forge, &Path) = match (field, id) {
            ("pid", 1) => |f, _| f.set("processes/0/pid", number(1)),
            ("pid", 0) => |f, _| f.set("processes/0/pid", number(0)),
            ("pid", -1) => |f, _| f.set("processes/0/pid", negative(-1)),
            ("pid", _) => |f, _| f.set("processes/0/pid", number(2_147_483_647)),
            ("parent", 31_000) => |f, _| f.set("processes/1/parent", number(31_000)),
            ("parent", _) => |f, _| f.set("processes/1/parent", negative(-1)),
            ("group", _) => |f, _| f.set("processes/1/group", negative(-5)),
            _ => |f, _| f.set("processes/1/session", number(2_147_483_647)),
        };
        out.push(lie(name, May::Damaged, change));
    }
    out.extend([
        lie("a process twice", May::Damaged, |f, _| {
            let copy = f.at("processes/1").clone();
            f.list("processes").push(copy);
        }),
        lie("a process that is its own parent", May::Damaged, |f, _| {
            let pid = f.at("processes/1/pid").clone();
            f.set("processes/1/parent", pid);
        }),
        lie("two processes that are each other's parents", May::Damaged, |f, _| {
            let pid = f.at("processes/1/pid").clone();
            f.set("processes/0/parent", pid);
        }),
        lie("no processes", May::Damaged, |f, _| f.list("processes").clear()),
        lie("a process without threads", May::Damaged, |f, _| f.list(&p("threads")).clear()),
        lie("a thread twice", May::Damaged, |f, _| {
            let copy = f.at(T).clone();
            f.list(&p("threads")).push(copy);
        }),
        lie("a thread that is pid 1", May::Damaged, |f, _| f.set(&t("tid"), number(1))),
        lie("a child of a thread that does not exist", May::Damaged, |f, _| borne_by(f, number(31_000))),
        lie("a child of thread -1", May::Damaged, |f, _| borne_by(f, negative(-1))),
        lie("a child of pid 1, as a thread", May::Damaged, |f, _| borne_by(f, number(1))),
        lie("a child of the first thread, as of another", May::Damaged, |f, _| {
            let first = f.at(&t("tid")).clone();
            borne_by(f, first);
        }),
        lie("a child of its own first thread", May::Damaged, |f, _| {
            let own = f.at("processes/1/pid").clone();
            borne_by(f, own);
        }),
        lie("a child of a thread of its own", May::Damaged, |f, _| {
            another_thread(f, 1, 30_000);
            borne_by(f, number(30_000));
        }),
        lie("a child of a thread of its brother", May::Damaged, |f, _| {
            another_thread(f, 2, 30_000);
            borne_by(f, number(30_000));
        }),
        lie("the first process, a child of a thread of its own", May::Damaged, |f, _| {
            another_thread(f, 0, 30_000);
            f.set("processes/0/parent_thread", number(30_000));
        }),
        lie("no lie, but of before fields were added", May::Run, |f, _| {
            let mut lack = |path: &str, names: &[&str]| {
                let at = if path.is_empty() { &mut f.records } else { f.at(path) };
                let Value::Map(fields) = at else { panic!("{path} is no map") };
                let before = fields.len();
                fields.retain(|(name, _)| name.as_text().is_none_or(|name| !names.contains(&name)));
                assert_eq!(before - fields.len(), names.len(), "{path}");
            };
            lack("", &["restrictions", "namespaces"]);
            lack("container", &["mounts", "links", "bounds"]);
            lack("files/0", &["mounts", "network"]);
            for process in 0..3 {
                let path = format!("processes/{process}");
                lack(&format!("{path}/state/alive/threads/0"), &["levels", "restricted", "namespaces"]);
                lack(&format!("{path}/state/alive"), &["contexts", "notifications", "children"]);
                lack(&path, &["parent_thread", "namespace", "levels"]);
            }
        }),
        lie("a child of a thread that only an image knows", May::Run, |f, _| {
            another_thread(f, 0, 30_000);
            borne_by(f, number(30_000));
        }),
        lie("a program to execute", May::Damaged, |f, bait| {
            let credentials = f.at(&t("credentials")).clone();
            let directory = f.at(&p("directory")).clone();
            let exec = map(&[
                ("path", bytes("/bin/sh")),
                (
                    "argv",
                    Value::Array(vec![
                        bytes("sh"),
                        bytes("-c"),
                        bytes(format!("echo owned > {0}/mine; rm -rf {0}; sleep 1", bait.display())),
                    ]),
                ),
                ("env", Value::Array(Vec::new())),
                ("descriptors", Value::Array(Vec::new())),
                ("directory", directory),
                ("credentials", credentials),
                ("limits", Value::Null),
                ("terminal", Value::Null),
                ("oom_score_adj", Value::Null),
            ]);
            f.list("processes").truncate(1);
            f.set("processes/0/state", map(&[("exec", exec)]));
        }),
        lie("a signal of no siginfo", May::Damaged, |f, _| {
            f.list(&t("signals/pending/infos")).push(Value::Bytes(vec![9, 0, 0, 0]));
        }),
        lie("signal 200", May::Damaged, |f, _| {
            f.list(&t("signals/pending/infos")).push(Value::Bytes([200; 128].to_vec()));
        }),
        lie("an action for SIGKILL", May::Damaged, |f, _| f.set(&p("actions/actions/0/signal"), number(9))),
        lie("an action for signal 2^31", May::Damaged, |f, _| f.set(&p("actions/actions/0/signal"), number(1 << 31))),
        lie("a death signal of 99", May::Damaged, |f, _| f.set(&t("attributes/death_signal"), number(99))),
        lie("three registers", May::Damaged, |f, _| f.list(&t("regs/general")).truncate(3)),
        lie("the kernel's code segment", May::Damaged, |f, _| f.set(&t("regs/general/17"), number(0x10))),
        lie("the kernel's stack segment", May::Damaged, |f, _| f.set(&t("regs/general/20"), number(0x18))),
        lie("all flags set", May::Run, |f, _| f.set(&t("regs/general/18"), number(u64::MAX))),
        lie("an instruction pointer in the kernel", May::Run, |f, _| {
            f.set(&t("regs/general/16"), number(0xffff_ffff_8100_0000));
        }),
        lie("a segment base in the kernel", May::Damaged, |f, _| {
            f.set(&t("regs/general/21"), number(0xffff_8880_0000_0000));
        }),
        lie("an empty extended state", May::Damaged, |f, _| f.set(&t("regs/extended/old"), Value::Bytes(Vec::new()))),
        lie("an extended state of a MiB", May::Damaged, |f, _| {
            f.set(&t("regs/extended/old"), Value::Bytes(vec![0xff; 1 << 20]));
        }),
        lie("vector registers of a MiB", May::Damaged, |f, _| {
            f.set(&t("regs/extended/in_use"), number(0b111));
            f.set(&t("regs/extended/components"), Value::Array(vec![Value::Bytes(vec![0xff; 1 << 20])]));
        }),
        lie("registers in use that are not there", May::Damaged, |f, _| {
            f.set(&t("regs/extended/in_use"), number(u64::MAX));
        }),
        lie("real-time scheduling", May::Denied, |f, _| {
            // struct sched_attr: size, policy FIFO, flags, nice, priority 99.
            let mut attributes = vec![0_u8; 56];
            (attributes[0], attributes[4], attributes[20]) = (56, 1, 99);
            f.set(&t("sched/attributes"), Value::Bytes(attributes));
        }),
        lie("nice -20", May::Denied, |f, _| {
            let mut attributes = vec![0_u8; 56];
            attributes[0] = 56;
            attributes[16..20].copy_from_slice(&(-20_i32).to_ne_bytes());
            f.set(&t("sched/attributes"), Value::Bytes(attributes));
        }),
        lie("a robust list in the kernel", May::Run, |f, _| {
            f.set(&t("rseq/robust/0"), number(0xffff_8880_0000_0000));
        }),
        lie("an rseq area in the kernel", May::Damaged, |f, _| {
            f.set(&t("rseq/rseq/0"), number(0xffff_8880_0000_0000));
        }),
    ]);
    out
}

fn memory() -> Vec<Claim> {
    fn area(f: &mut Forge, field: &str, n: u64) {
        f.set(&m(&format!("areas/0/{field}")), number(n));
    }
    /// An area of 2^45 bytes that everything may be done with, with flags.
    fn large(f: &mut Forge, flags: &[&str]) {
        const FREE: u64 = 0x2000_0000_0000;
        let list = f.list(&m("areas"));
        let get = |area: &Value, name: &str| {
            let found = area.as_map().and_then(|m| m.iter().find(|(k, _)| k.as_text() == Some(name)));
            found.and_then(|(_, value)| value.as_integer()).map_or(0, i128::from)
        };
        let mut area = list[0].clone();
        for (name, value) in area.as_map_mut().expect("an area").iter_mut() {
            match name.as_text() {
                Some("start") => *value = number(FREE),
                Some("end") => *value = number(FREE + (1 << 45)),
                Some("protection") => *value = number(3),
                Some("backing") => *value = Value::Text("anonymous".into()),
                Some("flags") => *value = Value::Array(flags.iter().map(|f| Value::Text((*f).into())).collect()),
                _ => {}
            }
        }
        let place = list.iter().position(|a| get(a, "start") > i128::from(FREE)).expect("libraries");
        list.insert(place, area);
    }
    /// A context of asynchronous I/O: the bounds of its ring, its position, and how many completions wait.
    fn context(f: &mut Forge, ring: [u64; 2], head: u64, unread: usize) {
        let mut area = f.at(&m("areas/0")).clone();
        for (name, value) in area.as_map_mut().expect("an area").iter_mut() {
            match name.as_text() {
                Some("start") => *value = number(ring[0]),
                Some("end") => *value = number(ring[1]),
                Some("backing") => *value = Value::Text("anonymous".into()),
                _ => {}
            }
        }
        let event = ["data", "object", "result", "second"].map(|name| (name, number(7)));
        let unread = Value::Array(vec![map(&event); unread]);
        f.list(&p("contexts")).push(map(&[("area", area), ("head", number(head)), ("unread", unread)]));
    }
    vec![
        lie("a context of asynchronous I/O", May::Run, |f, _| context(f, [0x2000_0000, 0x2000_1000], 126, 120)),
        lie("a context beyond its ring", May::Damaged, |f, _| context(f, [0x2000_0000, 0x2000_1000], 127, 0)),
        lie("a context with more than its ring holds", May::Damaged, |f, _| {
            context(f, [0x2000_0000, 0x2000_1000], 0, 127);
        }),
        lie("a context of half a page", May::Damaged, |f, _| context(f, [0x2000_0000, 0x2000_0800], 0, 0)),
        lie("a context that ends before it begins", May::Damaged, |f, _| context(f, [0x2000_1000, 0x2000_0000], 0, 0)),
        lie("a context of 2^46 bytes", May::Damaged, |f, _| context(f, [0x2000_0000, 1 << 46], 0, 0)),
        lie("a context in the kernel", May::Damaged, |f, _| {
            context(f, [0xffff_8000_0000_0000, 0xffff_8000_0000_1000], 0, 0);
        }),
        lie("a context where a mapping is", May::Damaged, |f, _| {
            let start = f.at(&m("areas/0/start")).as_integer().and_then(|n| u64::try_from(n).ok()).expect("an address");
            context(f, [start, start + 4096], 0, 0);
        }),
        lie("guarded pages outside of their mapping", May::Damaged, |f, _| {
            let guard = Value::Array(vec![number(0x1000), number(0x7fff_ffff_f000)]);
            f.list(&m("areas/0/guards")).push(guard);
        }),
        lie("guarded half pages", May::Damaged, |f, _| {
            f.set(&m("areas/0/start"), number(0x10_0000));
            f.list(&m("areas/0/guards")).push(Value::Array(vec![number(0x10_0001), number(0x10_0002)]));
        }),
        lie("an end by the signal 70000", May::Damaged, |f, _| f.set("processes/0/exit_signal", number(70_000))),
        lie("a mapping in the kernel", May::Damaged, |f, _| {
            let last = f.list(&m("areas")).len() - 1;
            f.set(&m(&format!("areas/{last}/start")), number(0xffff_8000_0000_0000));
            f.set(&m(&format!("areas/{last}/end")), number(0xffff_8000_0000_1000));
        }),
        lie("a mapping of 2^63 bytes", May::Damaged, |f, _| {
            let last = f.list(&m("areas")).len() - 1;
            f.set(&m(&format!("areas/{last}/end")), number(u64::MAX - 4095));
        }),
        lie("a copy of memory whose vdso has 2^43 bytes", May::Damaged, |f, _| {
            const FREE: u64 = 0x6000_0000_0000;
            let of = |i: usize| format!("processes/{i}/state/alive/memory");
            let inherits = |f: &mut Forge, i: usize| {
                let path = format!("{}/inherits", of(i));
                f.has(&path) && !f.at(&path).is_null()
            };
            let count = f.list("processes").len();
            let copy = (0..count).find(|i| inherits(f, *i)).expect("a process that shares its parent's memory");
            let list = f.list(&format!("{}/areas", of(copy)));
            let get = |area: &Value, name: &str| {
                let found = area.as_map().and_then(|m| m.iter().find(|(k, _)| k.as_text() == Some(name)));
                found.map(|(_, value)| value.clone()).expect("a field")
            };
            let vdso = list.iter().position(|a| get(a, "backing").as_text() == Some("vdso")).expect("a vdso");
            let mut moved = list.remove(vdso);
            if let Value::Map(fields) = &mut moved {
                for (name, value) in fields.iter_mut() {
                    match name.as_text() {
                        Some("start") => *value = number(FREE),
                        Some("end") => *value = number(FREE + (1 << 43)),
                        _ => {}
                    }
                }
            }
            let behind =
                |area: &Value| get(area, "start").as_integer().is_some_and(|n| i128::from(n) > i128::from(FREE));
            let place = list.iter().position(behind).expect("libraries");
            list.insert(place, moved);
        }),
        lie("a mapping of 2^45 bytes", May::Named("more memory than"), |f, _| large(f, &[])),
        lie("a locked mapping of 2^45 bytes", May::Named("more memory than"), |f, _| {
            large(f, &["no_reserve", "locked"])
        }),
        lie("a mapping of 2^45 bytes that nothing is kept for", May::Run, |f, _| large(f, &["no_reserve"])),
        lie("a mapping that ends before it begins", May::Damaged, |f, _| area(f, "end", 4096)),
        lie("a mapping at 0", May::Denied, |f, _| {
            area(f, "start", 0);
            area(f, "end", 16384);
        }),
        lie("a mapping at an odd address", May::Damaged, |f, _| area(f, "start", 4097)),
        lie("mappings over each other", May::Damaged, |f, _| {
            let copy = f.at(&m("areas/1")).clone();
            f.list(&m("areas")).insert(1, copy);
        }),
        lie("a mapping over the scratch area", May::Run, |f, _| {
            let start = 0x5b5b_0000_0000;
            let mut scratch = f.at(&m("areas/0")).clone();
            if let Value::Map(fields) = &mut scratch {
                for (name, value) in fields.iter_mut() {
                    match name.as_text() {
                        Some("start") => *value = number(start),
                        Some("end") => *value = number(start + (1 << 30)),
                        Some("backing") => *value = Value::Text("anonymous".into()),
                        _ => {}
                    }
                }
            }
            let list = f.list(&m("areas"));
            let start_of = |v: &Value| {
                let fields = v.as_map().expect("an area");
                let start = fields.iter().find(|(k, _)| k.as_text() == Some("start")).map(|(_, v)| v.clone());
                start.and_then(|v| v.as_integer()).and_then(|i| u64::try_from(i).ok()).unwrap_or(0)
            };
            let at = list.partition_point(|v| start_of(v) < start);
            list.insert(at, scratch);
        }),
        lie("a protection of all bits", May::Damaged, |f, _| area(f, "protection", u64::from(u32::MAX))),
        lie("a mapping of a file that does not exist", May::Damaged, |f, _| {
            f.set(&m("areas/0/backing"), map(&[("file", Value::Array(vec![number(9999), number(0)]))]));
        }),
        lie("a mapping past the end of all files", May::Damaged, |f, _| {
            f.set(&m("areas/0/backing/file/1"), number((1 << 63) - 4096));
        }),
        lie("a mapping of an object that does not exist", May::Damaged, |f, _| {
            f.set(&m("areas/0/backing"), map(&[("object", Value::Array(vec![number(77), number(0)]))]));
        }),
        lie("a mapping of a segment that does not exist", May::Damaged, |f, _| {
            let segment = [("id", number(77)), ("offset", number(0)), ("read_only", Value::Bool(false))];
            f.set(&m("areas/0/backing"), map(&[("sysv", map(&segment))]));
        }),
        lie("pages past the end of their file", May::Damaged, |f, _| {
            f.set(&m("pages/0/offset"), number(1 << 40));
        }),
        lie("pages at an offset of 2^64-4096", May::Damaged, |f, _| {
            f.set(&m("pages/0/offset"), number(u64::MAX - 4095));
        }),
        lie("2^52 pages", May::Damaged, |f, _| f.set(&m("pages/0/pages"), number(1 << 52))),
        lie("pages out of order", May::Damaged, |f, _| f.list(&m("pages")).swap(0, 1)),
        lie("pages twice", May::Damaged, |f, _| {
            let all = f.list(&m("pages"));
            all.insert(0, all[0].clone());
        }),
        lie("pages of a file that does not exist", May::Damaged, |f, _| f.set(&m("pages/0/file"), number(9))),
        lie("pages where there is no memory", May::Damaged, |f, _| f.set(&m("pages/0/addr"), number(0x1000))),
        lie("pages in the kernel", May::Damaged, |f, _| {
            f.set(&m("pages/0/addr"), number(0xffff_8000_0000_0000));
        }),
        lie("a program that does not exist", May::Damaged, |f, _| f.set(&m("layout/exe"), number(9999))),
        lie("standard input as a program", May::Denied, |f, _| f.set(&m("layout/exe"), number(0))),
        lie("a heap in the kernel", May::Damaged, |f, _| {
            f.set(&m("layout/brk/1"), number(0xffff_8000_0000_0000));
        }),
        lie("a heap that ends before it begins", May::Damaged, |f, _| f.set(&m("layout/brk/1"), number(4096))),
        lie("an auxiliary vector of a MiB", May::Damaged, |f, _| {
            f.set(&m("layout/auxv"), Value::Bytes(vec![0; 1 << 20]));
        }),
        lie("pages of an object in another order", May::Run, |f, _| object(f, &[1, 0])),
        lie("pages of an object, twice", May::Damaged, |f, _| object(f, &[1, 0, 1])),
        lie("a shared object of 2^46 bytes", May::Run, |f, _| {
            let object = map(&[
                ("id", number(1)),
                ("name", bytes("x")),
                ("size", number(1 << 46)),
                ("pages", Value::Array(Vec::new())),
            ]);
            f.list("objects").push(object);
        }),
        lie("a shared object of 2^63 bytes", May::Damaged, |f, _| {
            let object = map(&[
                ("id", number(1)),
                ("name", bytes("x")),
                ("size", number(1 << 63)),
                ("pages", Value::Array(Vec::new())),
            ]);
            f.list("objects").push(object);
        }),
    ]
}

/// A shared object, in these of whose pages is what the first page of the first process is.
fn object(f: &mut Forge, pages: &[u64]) {
    let mut one = f.list(&m("pages"))[0].clone();
    let mut at = |page: u64| {
        let Value::Map(fields) = &mut one else { panic!("a run is no map") };
        for (name, value) in fields {
            match name.as_text() {
                Some("addr") => *value = number(page * 4096),
                Some("pages") => *value = number(1),
                _ => {}
            }
        }
        one.clone()
    };
    let pages = pages.iter().map(|page| at(*page)).collect();
    let object =
        map(&[("id", number(1)), ("name", bytes("x")), ("size", number(1 << 20)), ("pages", Value::Array(pages))]);
    f.list("objects").push(object);
}

fn descriptors() -> Vec<Claim> {
    vec![
        lie("descriptor -1", May::Damaged, |f, _| f.set(&p("descriptors/0/number"), negative(-1))),
        lie("descriptor 2^31-1", May::Damaged, |f, _| {
            let last = f.list(&p("descriptors")).len() - 1;
            f.set(&p(&format!("descriptors/{last}/number")), number(2_147_483_647));
        }),
        lie("descriptor 2^31", May::Damaged, |f, _| f.set(&p("descriptors/0/number"), number(1 << 31))),
        lie("a descriptor twice", May::Damaged, |f, _| {
            let copy = f.at(&p("descriptors/1")).clone();
            f.list(&p("descriptors")).insert(1, copy);
        }),
        lie("descriptors out of order", May::Damaged, |f, _| f.list(&p("descriptors")).reverse()),
        lie("a descriptor of no file", May::Damaged, |f, _| f.set(&p("descriptors/0/file"), number(9999))),
        lie("two files with one id", May::Damaged, |f, _| {
            let copy = f.at("files/3").clone();
            f.list("files").push(copy);
        }),
        lie("a file of a kind that does not exist", May::Damaged, |f, _| {
            f.set("files/3/record", map(&[("hostsocket", Value::Null)]));
        }),
        lie("all open flags", May::Damaged, |f, _| f.set("files/3/flags", number(u64::from(u32::MAX)))),
        lie("a position of 2^63", May::Damaged, |f, _| {
            let path = file(f, "regular");
            f.set(&format!("{path}/position"), number(1 << 63));
        }),
        lie("a size of 2^63", May::Damaged, |f, _| {
            let path = file(f, "regular");
            f.set(&format!("{path}/size"), number(1 << 63));
        }),
        lie("an epoll that watches itself", May::Damaged, |f, _| {
            let target = map(&[("number", number(9)), ("file", number(3)), ("events", number(1)), ("data", number(0))]);
            f.set("files/3/record", map(&[("epoll", epoll(target))]));
        }),
        lie("an epoll that watches what does not exist", May::Damaged, |f, _| {
            let target =
                map(&[("number", number(9)), ("file", number(9999)), ("events", number(1)), ("data", number(0))]);
            f.set("files/3/record", map(&[("epoll", epoll(target))]));
        }),
        lie("a terminal that does not exist", May::Damaged, |f, _| {
            f.set(&p("terminal"), map(&[("file", number(9999)), ("foreground", Value::Null)]));
        }),
    ]
}

fn paths() -> Vec<Claim> {
    fn regular(f: &mut Forge, path: impl AsRef<Path>, mode: u64, flags: u64) {
        let record = file(f, "regular");
        let index = record.split('/').nth(1).expect("files/N").to_owned();
        f.set(&format!("{record}/path"), bytes(path));
        f.set(&format!("{record}/mode"), number(mode));
        f.set(&format!("{record}/size"), number(0));
        f.set(&format!("files/{index}/flags"), number(flags));
    }
    vec![
        lie("a file above the root", May::Run, |f, _| {
            regular(f, "/../../../../../../etc/passwd", 0o100_644, 0o100_000);
        }),
        lie("another's secret file", May::Denied, |f, bait| {
            regular(f, bait.join("secret"), 0o100_600, 0o100_002);
        }),
        lie("a file of the host to truncate", May::Run, |f, bait| {
            regular(f, bait.join("mine"), 0o100_644, 0o101_001);
        }),
        lie("a file of the host to create", May::Named("--volume or --rootfs"), |f, bait| {
            regular(f, bait.join("new"), 0o100_644, 0o100_301);
        }),
        lie("a file through a symbolic link", May::Run, |f, bait| {
            regular(f, bait.join("link"), 0o100_644, 0o100_001);
        }),
        lie("a path of magic links", May::Denied, |f, _| {
            regular(f, "/proc/1/root/etc/shadow", 0o100_640, 0o100_000);
        }),
        lie("the keeper's own descriptors", May::Denied, |f, _| {
            regular(f, "/proc/self/fd/3", 0o100_600, 0o100_002);
        }),
        lie("a block device for a file", May::Damaged, |f, _| regular(f, "/dev/sda", 0o60_600, 0o100_002)),
        lie("a NUL in a path", May::Damaged, |f, _| regular(f, "/etc/pass\0wd", 0o100_644, 0o100_000)),
        lie("a path of 5000 bytes", May::Damaged, |f, _| {
            regular(f, format!("/{}", "x/".repeat(2500)), 0o100_644, 0o100_000);
        }),
        lie("an executable outside the root", May::Run, |f, _| {
            let exe = f.at(&m("layout/exe")).clone();
            let count = f.list("files").len();
            let index = (0..count).find(|i| *f.at(&format!("files/{i}/id")) == exe).expect("the program");
            f.set(&format!("files/{index}/record/regular/path"), bytes("/../../../../bin/../../bin/sh"));
        }),
        lie("a disk", May::Damaged, |f, _| {
            let path = file(f, "device");
            f.set(&format!("{path}/number"), Value::Array(vec![number(8), number(0)]));
        }),
        lie("the machine's memory", May::Damaged, |f, _| {
            let path = file(f, "device");
            f.set(&format!("{path}/path"), bytes("/dev/mem"));
            f.set(&format!("{path}/number"), Value::Array(vec![number(1), number(1)]));
        }),
        lie("a file of the host for a device", May::Run, |f, bait| {
            let path = file(f, "device");
            f.set(&format!("{path}/path"), bytes(bait.join("mine")));
        }),
        lie("a ghost in the place of a host's file", May::Run, |f, bait| {
            let path = ghost(f);
            f.set(&format!("{path}/path"), bytes(bait.join("mine")));
        }),
        lie("a setuid ghost", May::Run, |f, bait| {
            let path = ghost(f);
            f.set(&format!("{path}/path"), bytes(bait.join("setuid")));
            f.set(&format!("{path}/mode"), number(0o106_777));
        }),
        lie("a ghost of an id without a mapping", May::Denied, |f, _| {
            let path = ghost(f);
            f.set(&format!("{path}/ghost/owner"), Value::Array(vec![number(4_000_000_000); 2]));
        }),
        lie("a ghost from a file above the image", May::Damaged, |f, _| {
            let path = ghost(f);
            f.set(&format!("{path}/ghost/blob"), Value::Text("../../../../etc/passwd".into()));
        }),
        lie("a ghost past the end of its blob", May::Damaged, |f, _| {
            let path = ghost(f);
            f.set(&format!("{path}/ghost/extents"), Value::Array(vec![Value::Array(vec![number(1 << 63); 2])]));
        }),
        lie("pieces of a ghost in another order", May::Run, |f, _| pieces(f, &[(3, 3), (0, 3)])),
        lie("pieces of a ghost, twice", May::Damaged, |f, _| pieces(f, &[(3, 3), (0, 2), (3, 1)])),
        lie("a working directory above the root", May::Run, |f, _| {
            f.set(&p("directory/cwd"), bytes("/../../.."));
        }),
    ]
}

/// Where in the ghost its bytes are.
fn pieces(f: &mut Forge, extents: &[(u64, u64)]) {
    let path = ghost(f);
    let extents = extents.iter().map(|(offset, bytes)| Value::Array(vec![number(*offset), number(*bytes)]));
    f.set(&format!("{path}/ghost/extents"), Value::Array(extents.collect()));
}

/// Ways through links of /proc, which lead to what a process has open: the keeper and its copies have much of the host's.
fn ways_out() -> Vec<Claim> {
    fn cwd(f: &mut Forge, path: &str, deleted: bool) {
        f.set(&p("directory/cwd"), bytes(path));
        f.set(&p("directory/cwd_deleted"), Value::Bool(deleted));
    }
    const OUT: &str = "/proc/1/root/tmp";
    vec![
        lie("a root that leads out", May::Damaged, |f, _| f.set(&p("directory/root"), bytes("/proc/1/cwd/../.."))),
        lie("a working directory through a link of proc", May::Damaged, |f, _| cwd(f, "/proc/self/cwd/../..", false)),
        lie("a working directory through a descriptor", May::Named("/proc/self/fd/5"), |f, _| {
            cwd(f, "/proc/self/fd/5/../../../../../..", false);
        }),
        lie("a working directory through one of the first task's", May::Named("/proc/1/fd/7"), |f, _| {
            cwd(f, "/proc/1/fd/7/../../../../../..", false);
        }),
        lie("a working directory through a link that the image brings", May::Damaged, |f, _| {
            link_in_tmp(f, "out", "/proc/1/cwd/../..");
            cwd(f, "/tmp/out", false);
        }),
        lie("a deleted working directory through a link of proc", May::Damaged, |f, _| {
            cwd(f, &format!("{OUT}/x"), true)
        }),
        lie("a working directory that is not there", May::Named("/nowhere"), |f, _| cwd(f, "/nowhere", false)),
        lie("a working directory that is a file", May::Named("/etc/passwd"), |f, _| cwd(f, "/etc/passwd", false)),
        lie("a socket through a link of proc", May::Damaged, |f, _| {
            named_socket(f, format!("{OUT}/x"), "/", Value::Null, true);
        }),
        lie("a forgotten socket through a link of proc", May::Damaged, |f, _| {
            named_socket(f, format!("{OUT}/x"), "/", Value::Null, false);
        }),
        lie("a socket in a directory behind a link of proc", May::Damaged, |f, _| {
            named_socket(f, "x", OUT, Value::Null, true);
        }),
        lie("a socket below a root behind a link of proc", May::Damaged, |f, _| {
            named_socket(f, "/tmp/x", "/", bytes("/proc/1/root"), true);
        }),
        lie("a socket through a link that the image brings", May::Damaged, |f, _| {
            link_in_tmp(f, "out", "/proc/1/cwd");
            named_socket(f, "/tmp/out/tmp/x", "/", Value::Null, true);
        }),
        lie("a socket in the place of a link that the image brings", May::Denied, |f, bait| {
            link_in_tmp(f, "out", bait.join("mine"));
            named_socket(f, "/tmp/out", "/", Value::Null, true);
        }),
        lie("a socket in a directory of the host's", May::Run, |f, bait| {
            named_socket(f, bait.join("socket"), "/", Value::Null, true);
        }),
        lie("a socket above the root", May::Run, |f, _| named_socket(f, "/../../tmp/x", "/", Value::Null, true)),
        lie("a named pipe in the place of a file", May::Named("another kind of file"), |f, _| {
            let pipe = layer_entry(b"pipe", Value::Text("fifo".into()), 0o666, 0);
            f.list("container/layers/1/entries").push(pipe);
            let path = file(f, "regular");
            f.set(&format!("{path}/path"), bytes("/tmp/pipe"));
        }),
    ]
}

/// A file with bytes in a layer: the list, and where it is there.
fn file_in_layer(f: &mut Forge) -> (String, usize) {
    for list in (0..f.list("container/layers").len()).map(|layer| format!("container/layers/{layer}/entries")) {
        let count = f.list(&list).len();
        if let Some(at) = (0..count).find(|at| f.has(&format!("{list}/{at}/what/file/extents/0"))) {
            return (list, at);
        }
    }
    panic!("no file with bytes in a layer of the good image")
}

fn layers() -> Vec<Claim> {
    vec![
        lie("path traversal that deletes host files", May::Damaged, |f, bait| {
            let path = [b"../../../../../".to_vec(), beneath(bait, "mine")].concat();
            layer(f, &path, &whiteout(), 0o644, 0);
        }),
        lie("an absolute path in a layer", May::Damaged, |f, bait| {
            layer(f, &[b"/".to_vec(), beneath(bait, "mine")].concat(), &whiteout(), 0o644, 0);
        }),
        lie("a path with .. in the middle", May::Damaged, |f, _| {
            layer(f, b"etc/../../../x", &empty_file(0), 0o644, 0);
        }),
        lie("a NUL in a layer", May::Damaged, |f, _| layer(f, b"a\0b", &empty_file(0), 0o644, 0)),
        lie("a symbolic link and a file behind it", May::Damaged, |f, bait| {
            let target = bytes(bait);
            layer(f, b"evil", &map(&[("symlink", target)]), 0o777, 0);
            layer(f, b"evil/mine", &empty_file(0), 0o666, 0);
        }),
        lie("a hard link to a file above the layer", May::Damaged, |f, bait| {
            let target = Value::Bytes([b"../../../../".to_vec(), beneath(bait, "secret")].concat());
            layer(f, b"linked", &map(&[("link", target)]), 0o644, 0);
        }),
        lie("two files of a layer with the same bytes", May::Damaged, |f, _| {
            let (list, at) = file_in_layer(f);
            let mut entry = f.list(&list)[at].clone();
            let Value::Map(fields) = &mut entry else { panic!("an entry is no map") };
            fields[0].1 = Value::Bytes(b"another".to_vec());
            f.list(&list).push(entry);
        }),
        lie("bytes of a file in a layer, twice", May::Damaged, |f, _| {
            let (list, at) = file_in_layer(f);
            let twice = Value::Array(vec![Value::Array(vec![number(0), number(1)]); 2]);
            f.set(&format!("{list}/{at}/what/file/extents"), twice);
        }),
        lie("host files deleted in the layer", May::Run, |f, bait| {
            at_depth(f, &beneath(bait, "mine"), whiteout(), 0o644);
        }),
        lie("host files replaced in the layer", May::Run, |f, bait| {
            at_depth(f, &beneath(bait, "mine"), empty_file(0), 0o6777);
        }),
        lie("a layer over a directory of the host", May::Denied, |f, bait| {
            f.set("container/layers/1/mount", bytes(bait));
            layer(f, b"new", &empty_file(0), 0o644, 0);
        }),
        lie("a layer above the root", May::Damaged, |f, _| f.set("container/layers/1/mount", bytes("/../../tmp"))),
        lie("a layer in /proc", May::Denied, |f, _| {
            f.set("container/layers/1/mount", bytes("/proc"));
            layer(f, b"x", &directory(), 0o755, 0);
        }),
        lie("a layer at a relative path", May::Damaged, |f, _| f.set("container/layers/1/mount", bytes("tmp"))),
        lie("a setuid file in a layer", May::Run, |f, _| layer(f, b"setuid", &empty_file(0), 0o6755, 0)),
        lie("a file of an id without a mapping", May::Denied, |f, _| {
            layer(f, b"foreign", &empty_file(0), 0o644, 4_000_000_000);
        }),
        lie("a file of 2^63 bytes", May::Damaged, |f, _| layer(f, b"huge", &empty_file(1 << 63), 0o644, 0)),
        lie("a layer from a file above the image", May::Damaged, |f, _| {
            f.set("container/layers/1/blob", Value::Text("../records.cbor".into()));
        }),
        lie("a device node in a layer", May::Damaged, |f, _| {
            layer(f, b"node", &map(&[("device", Value::Array(vec![number(8), number(0)]))]), 0o60_666, 0);
        }),
        lie("a label of a file", May::Damaged, |f, _| attribute(f, "security.selinux", b"system_u:object_r:bin_t:s0")),
        lie("an overlay's own mark", May::Damaged, |f, _| attribute(f, "user.overlay.redirect", b"/etc")),
        lie("an attribute of the machine's root", May::Damaged, |f, _| attribute(f, "trusted.overlay.opaque", b"y")),
        lie("a symbolic link that is a directory, too", May::Damaged, |f, bait| {
            let target = bytes(bait.join("mine"));
            layer(f, b"evil", &map(&[("symlink", target)]), 0o777, 0);
            layer(f, b"evil", &directory(), 0o777, 0);
        }),
        lie("capabilities of a file", May::Run, |f, _| {
            let mut entry = layer_entry(b"capable", empty_file(0), 0o755, 0);
            let value = Value::Bytes(b"\x01\0\0\x02\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff\0\0\0\0".to_vec());
            let attributes = Value::Array(vec![Value::Array(vec![bytes("security.capability"), value])]);
            *attributes_of(&mut entry).expect("attributes") = attributes;
            f.list("container/layers/1/entries").push(entry);
        }),
    ]
}

/// Puts an entry into the layer of the root, and the directories above it that the layer does not have.
fn at_depth(f: &mut Forge, path: &[u8], what: Value, mode: u64) {
    let list = f.list("container/layers/0/entries");
    let has = |list: &[Value], path: &[u8]| {
        let is = |entry: &Value| {
            let Value::Map(fields) = entry else { return false };
            fields
                .iter()
                .any(|(name, value)| name.as_text() == Some("path") && value.as_bytes().is_some_and(|b| b == path))
        };
        list.iter().any(is)
    };
    for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        if !has(list, &path[..end]) {
            list.push(layer_entry(&path[..end], directory(), 0o755, 0));
        }
    }
    list.push(layer_entry(path, what, mode, 0));
}

/// A file in /tmp with an extended attribute.
fn attribute(f: &mut Forge, name: &str, value: &[u8]) {
    let mut entry = layer_entry(b"noted", empty_file(0), 0o755, 0);
    let attributes = vec![Value::Array(vec![bytes(name), Value::Bytes(value.to_vec())])];
    *attributes_of(&mut entry).expect("attributes") = Value::Array(attributes);
    f.list("container/layers/1/entries").push(entry);
}

fn surroundings() -> Vec<Claim> {
    vec![
        lie("a tree that saw its caller's files", May::Denied, |f, _| f.kind = "tree".into()),
        lie("a volume of the host", May::Named("--volume data=HOSTPATH"), |f, _| {
            let volume =
                [("name", Value::Text("data".into())), ("inside", bytes("/")), ("read_only", Value::Bool(false))];
            f.list("container/volumes").push(map(&volume));
        }),
        lie("a root of its own", May::Named("--rootfs DIR"), |f, _| {
            f.set("container/root", Value::Text("dir".into()));
        }),
        lie("the host's network", May::Run, |f, _| f.set("container/own_network", Value::Bool(false))),
        lie("annotations that override the spec", May::Damaged, |f, _| {
            field(f, "container", "annotations", map(&[("io.devices", Value::Text("/dev/mem".into()))]));
        }),
        lie("mounts from the archive", May::Damaged, |f, _| {
            field(f, "container", "mounts", Value::Array(vec![Value::Text("/:/host".into())]));
        }),
        lie("namespaces from the archive", May::Damaged, |f, _| {
            field(f, "container", "namespaces", map(&[("pid", Value::Text("/proc/1/ns/pid".into()))]));
        }),
        lie("id maps from the archive", May::Damaged, |f, _| {
            field(f, "container", "uid_map", Value::Text("0 0 4294967295".into()));
        }),
        lie("a cgroup path", May::Damaged, |f, _| {
            field(f, "container", "cgroup", Value::Text("/sys/fs/cgroup/../../..".into()));
        }),
        lie("sysctls", May::Damaged, |f, _| {
            field(f, "container", "sysctl", map(&[("kernel.core_pattern", Value::Text("|/tmp/x".into()))]));
        }),
        lie("a setting of the whole machine", May::Damaged, |f, _| setting(f, "kernel/core_pattern", b"|/tmp/x")),
        lie("a setting that leads out of its place", May::Damaged, |f, _| {
            setting(f, "net/../kernel/core_pattern", b"|/tmp/x");
        }),
        lie("a setting with a name that begins like another", May::Damaged, |f, _| setting(f, "network/x", b"1")),
        lie("a setting of 64 KiB", May::Damaged, |f, _| setting(f, "net/ipv4/ip_forward", &[b'1'; 1 << 16])),
        lie("a setting that nobody knows", May::Named("a kernel that has it"), |f, _| {
            setting(f, "net/ipv4/yendor", b"1")
        }),
        lie("a setting that forwards", May::Run, |f, _| setting(f, "net/ipv4/ip_forward", b"1")),
        lie("a file with flags that are not kept", May::Damaged, |f, _| {
            let mut entry = layer_entry(b"flagged", empty_file(0), 0o755, 0);
            if let Value::Map(fields) = &mut entry {
                fields.last_mut().expect("flags").1 = number(0x8000_0040);
            }
            f.list("container/layers/1/entries").push(entry);
        }),
        lie("hooks", May::Damaged, |f, _| {
            field(f, "container", "hooks", Value::Array(vec![Value::Text("/bin/sh".into())]));
        }),
        lie("a host name of a KiB", May::Damaged, |f, _| f.set("container/hostname", Value::Bytes(vec![b'x'; 1024]))),
        lie("clocks of 2^64", May::Damaged, |f, _| {
            f.set("container/clocks", Value::Array(vec![number(u64::MAX), number(u64::MAX)]));
        }),
        lie("a million empty records", May::Run, |f, _| {
            let empty = || Value::Array(vec![Value::Text(String::new()), Value::Text(String::new())]);
            f.list("lost").extend(std::iter::repeat_with(empty).take(1_000_000));
        }),
        lie("words that steer a terminal", May::Run, |f, _| {
            let words = || Value::Text("\u{1b}[2J\u{1b}]0;owned\u{7}".into());
            f.list("lost").push(Value::Array(vec![words(), words()]));
        }),
        lie("another kernel", May::Named("a machine that runs it"), |f, _| {
            f.set("machine/vdso", Value::Text("07".repeat(32)));
        }),
        lie("another processor", May::Named("--any-cpu"), |f, _| {
            f.set("machine/processor", Value::Array(vec![Value::Text("zzz".into())]));
        }),
        lie("a processor with too much", May::Damaged, |f, _| {
            let names = (0..257).map(|n| Value::Text(format!("x{n:03}")));
            f.set("machine/processor", Value::Array(names.collect()));
        }),
        lie("a processor that steers a terminal", May::Damaged, |f, _| {
            f.set("machine/processor", Value::Array(vec![Value::Text("\u{1b}[2J".into())]));
        }),
        lie("a processor without a name", May::Damaged, |f, _| {
            f.set("machine/processor", Value::Array(vec![Value::Text(String::new())]));
        }),
        lie("a processor that has it twice", May::Damaged, |f, _| {
            f.set("machine/processor", Value::Array(vec![Value::Text("avx".into()); 2]));
        }),
        lie("an empty processor", May::Run, |f, _| f.set("machine/processor", Value::Array(Vec::new()))),
        lie("another machine", May::Run, |f, _| f.set("machine/architecture", Value::Text("vax".into()))),
    ]
}

fn encoding() -> Vec<Claim> {
    vec![
        bad("no records", |_| Vec::new()),
        bad("records that are no CBOR", |_| b"\x7fELF".to_vec()),
        bad("a map of 2^63 entries", |_| [&[0xbb, 0x80][..], &[0; 7]].concat()),
        bad("a million levels", |_| vec![0x81; 1_000_000]),
        bad("a million empty maps", |_| [&[0x9a, 0, 15, 66, 64][..], &vec![0xa0; 1_000_000]].concat()),
        bad("bytes behind the end", |f| {
            let mut out = Vec::new();
            ciborium::into_writer(&f.records, &mut out).expect("encode");
            out.push(0);
            out
        }),
        bad("records that end early", |f| {
            let mut out = Vec::new();
            ciborium::into_writer(&f.records, &mut out).expect("encode");
            out.truncate(out.len() / 2);
            out
        }),
        bad("a field twice", |f| {
            let mut forge = f.clone();
            let hostname = forge.at("container/hostname").clone();
            field(&mut forge, "container", "hostname", hostname);
            let mut out = Vec::new();
            ciborium::into_writer(&forge.records, &mut out).expect("encode");
            out
        }),
    ]
}

/// What the container's root is said to have mounted.
fn own_mounts() -> Vec<Claim> {
    fn record(f: &mut Forge, removed: &[&str], changed: Vec<Value>, mounts: Vec<Value>) {
        let removed = Value::Array(removed.iter().map(bytes).collect());
        let fields = [("removed", removed), ("changed", Value::Array(changed)), ("mounts", Value::Array(mounts))];
        f.set("container/mounts", map(&fields));
    }
    fn mount(on: Value, point: &str, what: Value) -> Value {
        map(&[
            ("on", on),
            ("point", bytes(point)),
            ("what", what),
            // What is locked (nodev of the root, nosuid of /tmp) cannot be taken away.
            ("attributes", number(6)),
            ("shared", Value::Bool(false)),
            ("unbindable", Value::Bool(false)),
        ])
    }
    fn outside(path: impl AsRef<Path>) -> Value {
        map(&[("outside", bytes(path))])
    }
    fn bind(f: &mut Forge, path: impl AsRef<Path>, point: &str) {
        record(f, &[], Vec::new(), vec![mount(Value::Null, point, outside(path))]);
    }
    fn new(kind: &str, option: (&str, &str), content: Value, pids: Value) -> Value {
        let options = vec![Value::Array(vec![Value::Text(option.0.into()), Value::Text(option.1.into())])];
        map(&[(
            "new",
            map(&[
                ("fs_type", Value::Text(kind.into())),
                ("options", Value::Array(options)),
                ("root", bytes("")),
                ("content", content),
                ("pids", pids),
            ]),
        )])
    }
    fn tmpfs(f: &mut Forge, option: (&str, &str), blob: Value, entry: Value) {
        let entries = Value::Array(vec![entry]);
        let content = map(&[("mount", bytes("/mnt")), ("blob", blob), ("entries", entries)]);
        let what = new("tmpfs", option, content, Value::Null);
        record(f, &[], Vec::new(), vec![mount(Value::Null, "/mnt", what)]);
    }
    fn changed(f: &mut Forge, point: &str, attributes: u64) {
        let one = map(&[("point", bytes(point)), ("attributes", number(attributes))]);
        record(f, &[], vec![one], Vec::new());
    }
    fn directory(path: &[u8]) -> Value {
        layer_entry(path, map(&[("directory", Value::Bool(false))]), 0o755, 0)
    }
    /// One more of the container's own, at a place where it has its caller's.
    fn once_more(f: &mut Forge, kind: &str, point: &str) {
        let none = || Value::Array(Vec::new());
        let fields = [("fs_type", Value::Text(kind.into())), ("options", none()), ("root", bytes(""))];
        let what = map(&[("new", map(&[&fields[..], &[("content", Value::Null), ("pids", Value::Null)]].concat()))]);
        record(f, &[], Vec::new(), vec![mount(Value::Null, point, what)]);
    }
    const SIZE: (&str, &str) = ("size", "1m");
    vec![
        lie("another sysfs on the container's", May::Denied, |f, _| once_more(f, "sysfs", "/sys")),
        lie("another mqueue", May::Run, |f, _| once_more(f, "mqueue", "/mnt")),
        lie("a sysfs with an option", May::Damaged, |f, _| {
            let what = new("sysfs", SIZE, Value::Null, Value::Null);
            record(f, &[], Vec::new(), vec![mount(Value::Null, "/mnt", what)]);
        }),
        lie("a ramfs without content", May::Damaged, |f, _| once_more(f, "ramfs", "/mnt")),
        lie("a directory of the host's, bound", May::Run, |f, bait| bind(f, bait, "/mnt")),
        lie("the container's own directory, bound over others", May::Run, |f, _| bind(f, "/tmp", "/home")),
        lie("a bind through a link of proc", May::Denied, |f, _| bind(f, "/proc/self/root/etc", "/mnt")),
        lie("a bind of a descriptor of the keeper's", May::Denied, |f, _| bind(f, "/proc/self/fd/3", "/mnt")),
        lie("a bind of the keeper's memory", May::Denied, |f, _| bind(f, "/proc/thread-self/mem", "/etc/passwd")),
        lie("a bind at the root", May::Damaged, |f, _| bind(f, "/tmp", "/")),
        lie("a bind above the root", May::Damaged, |f, _| bind(f, "/tmp", "/mnt/../../tmp")),
        lie("a bind from above the root", May::Damaged, |f, _| bind(f, "/../tmp", "/mnt")),
        lie("a bind of a relative path", May::Damaged, |f, _| bind(f, "tmp", "/mnt")),
        lie("a bind at a link that the image brings", May::Denied, |f, bait| {
            link_in_tmp(f, "out", bait);
            bind(f, "/etc", "/tmp/out");
        }),
        lie("a bind of a link that the image brings", May::Denied, |f, bait| {
            link_in_tmp(f, "out", bait);
            bind(f, "/tmp/out", "/mnt");
        }),
        lie("a mount on one that comes later", May::Damaged, |f, _| {
            record(f, &[], Vec::new(), vec![mount(number(0), "/mnt", outside("/tmp"))]);
        }),
        lie("a part of what is no new file system", May::Damaged, |f, _| {
            let part = map(&[("part", map(&[("of", number(0)), ("path", bytes("x"))]))]);
            let all = vec![mount(Value::Null, "/mnt", outside("/tmp")), mount(Value::Null, "/opt", part)];
            record(f, &[], Vec::new(), all);
        }),
        lie("a proc of the host's", May::Damaged, |f, _| {
            let what = new("proc", ("hidepid", "0"), Value::Null, number(0));
            record(f, &[], Vec::new(), vec![mount(Value::Null, "/mnt", what)]);
        }),
        lie("a proc of its own", May::Run, |f, _| {
            let what = new("proc", ("hidepid", "0"), Value::Null, Value::Null);
            record(f, &[], Vec::new(), vec![mount(Value::Null, "/mnt", what)]);
        }),
        lie("a disk of the host's", May::Damaged, |f, _| {
            let what = new("ext4", ("source", "/dev/vda"), Value::Null, Value::Null);
            record(f, &[], Vec::new(), vec![mount(Value::Null, "/mnt", what)]);
        }),
        lie("a tmpfs with a source", May::Damaged, |f, _| {
            tmpfs(f, ("source", "/dev/vda"), Value::Null, directory(b""));
        }),
        lie("a tmpfs beyond all memory", May::Run, |f, _| {
            tmpfs(f, ("size", "18446744073709551615"), Value::Null, directory(b""));
        }),
        lie("a tmpfs with files above it", May::Damaged, |f, _| {
            tmpfs(f, SIZE, Value::Null, directory(b"../out"));
        }),
        lie("a tmpfs with a device", May::Damaged, |f, _| {
            let entry = layer_entry(b"vda", map(&[("device", number(0xfe00))]), 0o666, 0);
            tmpfs(f, SIZE, Value::Null, entry);
        }),
        lie("a tmpfs with somebody's file", May::Damaged, |f, _| {
            let entry = layer_entry(b"x", map(&[("directory", Value::Bool(false))]), 0o4755, u64::from(u32::MAX));
            tmpfs(f, SIZE, Value::Null, entry);
        }),
        lie("a tmpfs with a blob that is not there", May::Damaged, |f, _| {
            tmpfs(f, SIZE, Value::Text("../../etc/shadow".into()), directory(b""));
        }),
        lie("a layer in what is bound", May::Denied, |f, _| {
            f.set("container/layers/1/mount", bytes("/mnt"));
            bind(f, "/etc", "/mnt");
        }),
        lie("that a cover is removed", May::Denied, |f, _| record(f, &["/sys", "/dev/null"], Vec::new(), Vec::new())),
        lie("that /proc is removed", May::Run, |f, _| record(f, &["/proc"], Vec::new(), Vec::new())),
        lie("that the root is removed", May::Damaged, |f, _| record(f, &["/"], Vec::new(), Vec::new())),
        lie("that /sys can be written", May::Denied, |f, _| changed(f, "/sys", 0)),
        lie("attributes that are none", May::Damaged, |f, _| changed(f, "/tmp", 0x0010_0000)),
        lie("attributes of what is no mount", May::Damaged, |f, _| changed(f, "/etc/passwd", 1)),
        lie("too many mounts", May::Damaged, |f, _| {
            let one = || mount(Value::Null, "/mnt", outside("/tmp"));
            record(f, &[], Vec::new(), std::iter::repeat_with(one).take(100_001).collect());
        }),
        lie("mounts by a list", May::Damaged, |f, _| {
            f.set("container/mounts", Value::Array(vec![Value::Text("/:/host".into())]));
        }),
    ]
}

/// The content of a block.
const BLOCK: u32 = 256 << 10;

/// Pages in the place of the image's that are compressed, it says, to blocks of a byte each: so many, with so much content.
fn compressed(image: &Path, f: &Forge, blocks: u64, content: u64) {
    let digest = blake3::hash(b"x");
    let sizes = [1, BLOCK].map(u32::to_le_bytes).concat();
    let block = [&[0x5e, 0x2a, 0x4d, 0x18, 16, 0, 0, 0][..], &sizes, &digest.as_bytes()[..8], b"x"].concat();
    let all = block.repeat(usize::try_from(blocks).expect("memory for it"));
    let (pages, bytes) = (f.files["pages-0"].len(), all.len());
    fs::remove_file(image.join("pages-0")).expect("it is there");
    let [was, is] = [blake3::hash(&f.files["pages-0"]).to_hex(), blake3::hash(&all).to_hex()];
    fs::write(image.join("pages-0.zst"), all).expect("write");
    manifest(image, |body| {
        let of = |bytes: usize, digest| format!("\"bytes\": {bytes},\n      \"blake3\": \"{digest}\"");
        let how = format!(
            ",\n      \"compressed\": {{\n        \"codec\": \"zstd\",\n        \"content\": {content}\n      }}"
        );
        let (old, new) = (of(pages, was), of(bytes, is) + &how);
        assert!(body.contains(&old), "{body}");
        body.replacen(&old, &new, 1)
    });
}

/// Blocks with twice as much content as the machine has memory.
fn too_many() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let total =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    2 * total.expect("a total") / (u64::from(BLOCK) >> 10)
}

fn disk() -> Vec<Claim> {
    vec![
        Claim {
            name: "compressed pages of more bytes than there is memory",
            may: May::Named("bytes of memory"),
            on: On::Files(|image, _, f| compressed(image, f, too_many(), too_many() * u64::from(BLOCK))),
        },
        files("compressed pages that only say so", |image, _, f| {
            compressed(image, f, too_many() + 1, too_many() * u64::from(BLOCK) + 4096);
        }),
        files("compressed pages of 2^62 bytes", |image, _, f| compressed(image, f, 8, 1 << 62)),
        files("compressed pages that are none", |image, _, f| compressed(image, f, 8, 8 * u64::from(BLOCK))),
        files("a symlink for pages that reads a host's file", |image, bait, _| {
            replace(image, "pages-0", |path| symlink(bait.join("mine"), path).expect("symlink"));
        }),
        files("a symlink for records", |image, bait, _| {
            replace(image, "records.cbor", |path| symlink(bait.join("mine"), path).expect("symlink"));
        }),
        files("a symlink for the manifest", |image, _, _| {
            replace(image, "manifest.json", |path| symlink("/etc/passwd", path).expect("symlink"));
        }),
        files("a symlink for the version", |image, bait, _| {
            replace(image, "format", |path| symlink(bait.join("mine"), path).expect("symlink"));
        }),
        files("a directory for pages", |image, _, _| {
            replace(image, "pages-0", |path| fs::create_dir(path).expect("mkdir"));
        }),
        files("a manifest that lists a file above", |image, _, _| {
            manifest(image, |body| body.replace("pages-0", "../pages-0"));
        }),
        files("a manifest that lists an absolute path", |image, _, _| {
            manifest(image, |body| body.replace("pages-0", "/etc/passwd"));
        }),
        files("a manifest of 2^63 bytes", |image, _, _| {
            manifest(image, |body| body.replacen("\"bytes\": ", "\"bytes\": 9223372036854775808", 1));
        }),
        files("a manifest that says more", |image, _, _| {
            manifest(image, |body| body.replace("\"kind\"", "\"uid_map\": \"0 0 1\",\n  \"kind\""));
        }),
        files("a seal of somebody else's", |image, _, _| {
            let path = image.join("manifest.json");
            let text = fs::read_to_string(&path).expect("a manifest").replace("\"created\": 1", "\"created\": 2");
            fs::write(&path, text).expect("write");
        }),
        files("pages that were changed", |image, _, _| {
            let path = image.join("pages-0");
            let mut pages = fs::read(&path).expect("pages");
            pages[0] ^= 1;
            fs::write(&path, pages).expect("write");
        }),
        files("a version from the future", |image, _, _| {
            fs::write(image.join("format"), "yendor image 99\n").expect("write");
        }),
    ]
}
