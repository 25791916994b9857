//! Regular files and directories: offsets, flags, sharing by dup and fork, O_PATH, deleted files, also of one inode number
//! in two file systems, lost permission.
#![allow(unsafe_code)]

use probe::{Board, Dir, PAGE, Region, child, expect, expect_that, fdinfo, ok, own, read_at_once, succeeded, transfer};
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const GO: usize = 0;
const UP: usize = 1;
const FAR: i64 = 0x1_2345_6789;
const HIGH: i32 = 913;

fn open(path: &Path, flags: i32) -> OwnedFd {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    own("open", unsafe { libc::open(path.as_ptr(), flags, 0o640) })
}

fn seek(fd: &OwnedFd, offset: i64, whence: i32) -> i64 {
    ok("lseek", unsafe { libc::lseek(fd.as_raw_fd(), offset, whence) })
}

fn flags_of(fd: &OwnedFd) -> (i32, i32) {
    unsafe { (libc::fcntl(fd.as_raw_fd(), libc::F_GETFL), libc::fcntl(fd.as_raw_fd(), libc::F_GETFD)) }
}

/// Two deleted files, in two file systems, as far as there are two, that have the same inode number if that can be had soon.
fn alike(dir: &Dir, text: [&[u8]; 2]) -> [OwnedFd; 2] {
    let create = libc::O_CREAT | libc::O_RDWR | libc::O_EXCL;
    let shared = Path::new("/dev/shm").join(format!("probe-regular-{}", std::process::id()));
    let new = |path: &Path| {
        let fd = open(path, create);
        fs::remove_file(path).unwrap();
        fd
    };
    let inode = |fd: &OwnedFd| {
        let data = fs::File::from(fd.try_clone().unwrap()).metadata();
        data.map(|data| std::os::unix::fs::MetadataExt::ino(&data)).unwrap_or(0)
    };
    let places = [dir.at("alike"), shared];
    let mut pair = [new(&places[0]), new(&places[1])];
    for _ in 0..2000 {
        let (one, other) = (inode(&pair[0]), inode(&pair[1]));
        if one == other {
            break;
        }
        // Both count upwards.
        let less = usize::from(other < one);
        pair[less] = new(&places[less]);
    }
    pair.iter().zip(text).for_each(|(fd, text)| transfer(fd, text));
    pair
}

/// The same, mapped and closed.
fn alike_mapped(dir: &Dir, text: [&[u8]; 2]) -> [Region; 2] {
    alike(dir, text).map(|fd| {
        ok("ftruncate", unsafe { libc::ftruncate(fd.as_raw_fd(), PAGE as i64) });
        view(&fd)
    })
}

/// A deleted file that is mapped for writing, and can only be read by the descriptor that is left.
fn read_only(path: &Path) -> (OwnedFd, Region) {
    let writes = open(path, libc::O_CREAT | libc::O_EXCL | libc::O_RDWR);
    transfer(&writes, &[1; PAGE]);
    let reads = open(path, libc::O_RDONLY);
    fs::remove_file(path).unwrap();
    (reads, view(&writes))
}

fn memfd() -> (OwnedFd, Region) {
    let writes = own("memfd_create", unsafe { libc::memfd_create(c"read only".as_ptr(), libc::MFD_CLOEXEC) });
    transfer(&writes, &[1; PAGE]);
    let reads = open(Path::new(&format!("/proc/self/fd/{}", writes.as_raw_fd())), libc::O_RDONLY);
    (reads, view(&writes))
}

fn view(fd: &OwnedFd) -> Region {
    let (rw, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, rw, shared, fd.as_raw_fd(), 0) };
    Region::adopt(at, PAGE)
}

struct State {
    dir: Dir,
    mapped: [Region; 2],
    read_only: [(OwnedFd, Region); 3],
    board: Board,
    child: i32,
    files: Vec<(&'static str, OwnedFd)>,
    before: Vec<(Vec<String>, (i32, i32))>,
}

fn get<'a>(state: &'a State, name: &str) -> &'a OwnedFd {
    &state.files.iter().find(|file| file.0 == name).unwrap().1
}

fn seen(files: &[(&'static str, OwnedFd)]) -> Vec<(Vec<String>, (i32, i32))> {
    files.iter().map(|(_, fd)| (fdinfo(fd), flags_of(fd))).collect()
}

fn setup() -> State {
    let (dir, board) = (Dir::new(), Board::new());
    let create = libc::O_CREAT | libc::O_RDWR;
    let far = open(&dir.at("sp\\a rse\n"), create | libc::O_CLOEXEC);
    transfer(&far, b"start");
    seek(&far, FAR, libc::SEEK_SET);
    transfer(&far, b"end");
    let append = open(&dir.at("append"), libc::O_CREAT | libc::O_WRONLY | libc::O_APPEND | libc::O_NONBLOCK);
    transfer(&append, b"0123456789");
    seek(&append, 3, libc::SEEK_SET);
    let shared = open(&dir.at("shared"), create);
    transfer(&shared, b"abcdefghij");
    seek(&shared, 2, libc::SEEK_SET);
    let twin = own("dup", unsafe { libc::fcntl(shared.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) });
    let apart = open(&dir.at("shared"), libc::O_RDONLY);
    let high = unsafe { OwnedFd::from_raw_fd(ok("dup3", libc::dup3(shared.as_raw_fd(), HIGH, libc::O_CLOEXEC))) };
    let path = open(&dir.at("shared"), libc::O_PATH | libc::O_CLOEXEC);
    let directory = open(dir.path(), libc::O_RDONLY | libc::O_DIRECTORY);
    let gone = open(&dir.at("gone"), create);
    transfer(&gone, b"content of a file without a name");
    seek(&gone, 11, libc::SEEK_SET);
    fs::remove_file(dir.at("gone")).unwrap();
    let secret = open(&dir.at("secret"), create);
    transfer(&secret, b"secret");
    drop(secret);
    let secret = open(&dir.at("secret"), libc::O_RDONLY | libc::O_NOATIME);
    fs::set_permissions(dir.at("secret"), fs::Permissions::from_mode(0o0)).unwrap();
    let temporary = open(dir.path(), libc::O_TMPFILE | libc::O_RDWR);
    transfer(&temporary, b"never named");
    let sync = open(&dir.at("sync"), create | libc::O_DSYNC | libc::O_NOFOLLOW);
    let child = child(|| {
        board.set(UP, 1);
        board.wait(GO, 1);
        expect("offset that a child sees", seek(&shared, 0, libc::SEEK_CUR), 5);
        seek(&shared, 7, libc::SEEK_SET);
    });
    board.wait(UP, 1);
    let [here, there] = alike(&dir, [b"here", b"there"]);
    let mapped = alike_mapped(&dir, [b"mapped here", b"mapped there"]);
    // In a container that one is in the overlay of its root.
    let overlay = Path::new("/var/tmp").join(format!("probe-regular-{}", std::process::id()));
    let read_only = [read_only(&dir.at("read only")), read_only(&overlay), memfd()];
    let files = vec![
        ("here", here),
        ("there", there),
        ("far", far),
        ("append", append),
        ("shared", shared),
        ("twin", twin),
        ("apart", apart),
        ("high", high),
        ("path", path),
        ("directory", directory),
        ("gone", gone),
        ("secret", secret),
        ("temporary", temporary),
        ("sync", sync),
    ];
    let before = seen(&files);
    State { dir, mapped, read_only, board, child, files, before }
}

fn reads(state: &State, name: &str, offset: i64, want: &[u8]) {
    let fd = get(state, name);
    seek(fd, offset, libc::SEEK_SET);
    expect_that(&format!("content of {name}"), read_at_once(fd, 100).as_deref() == Some(want), want);
}

fn check_sharing(state: &State) {
    let offsets = |want: [i64; 4]| {
        expect(
            "offsets of twins, and one apart",
            ["shared", "twin", "high", "apart"].map(|name| seek(get(state, name), 0, libc::SEEK_CUR)),
            want,
        )
    };
    offsets([2, 2, 2, 0]);
    expect("read", read_at_once(get(state, "twin"), 3), Some(b"cde".to_vec()));
    offsets([5, 5, 5, 0]);
    state.board.set(GO, 1);
    succeeded("child", state.child);
    offsets([7, 7, 7, 0]);
}

fn check(state: State) {
    for ((name, _), (now, before)) in state.files.iter().zip(seen(&state.files).into_iter().zip(&state.before)) {
        expect(name, &now, before);
    }
    expect("offset of far", seek(get(&state, "far"), 0, libc::SEEK_CUR), FAR + 3);
    expect("offset of append", seek(get(&state, "append"), 0, libc::SEEK_CUR), 3);
    expect("offset of gone", seek(get(&state, "gone"), 0, libc::SEEK_CUR), 11);
    expect("number of high", get(&state, "high").as_raw_fd(), HIGH);
    check_sharing(&state);
    reads(&state, "far", FAR - 2, b"\0\0end");
    reads(&state, "far", 0, &[b"start".as_slice(), &[0; 95]].concat());
    transfer(get(&state, "append"), b"x");
    expect("appended", fs::read(state.dir.at("append")).ok(), Some(b"0123456789x".to_vec()));
    reads(&state, "gone", 0, b"content of a file without a name");
    reads(&state, "temporary", 0, b"never named");
    reads(&state, "here", 0, b"here");
    reads(&state, "there", 0, b"there");
    for (region, want) in state.mapped.iter().zip([&b"mapped here\0"[..], b"mapped there"]) {
        let got = unsafe { std::slice::from_raw_parts(region.at(0), want.len()) };
        expect("a mapping of a deleted file", got, want);
    }
    for (fd, region) in &state.read_only {
        unsafe { region.at(0).write_volatile(77) };
        seek(fd, 0, libc::SEEK_SET);
        expect("what was written through a mapping", read_at_once(fd, 2), Some(vec![77, 1]));
    }
    reads(&state, "secret", 0, b"secret");
    let links = |name| {
        fs::File::from(get(&state, name).try_clone().unwrap())
            .metadata()
            .map(|data| std::os::unix::fs::MetadataExt::nlink(&data))
            .ok()
    };
    expect("names of files", ["gone", "temporary", "secret"].map(links), [Some(0), Some(0), Some(1)]);
    expect(
        "mode of secret",
        fs::metadata(state.dir.at("secret")).map(|data| data.permissions().mode() & 0o777).ok(),
        Some(0),
    );
    probe::refused(
        "read of an O_PATH descriptor",
        unsafe { libc::read(get(&state, "path").as_raw_fd(), [0_u8; 4].as_mut_ptr().cast(), 4) },
        libc::EBADF,
    );
    let inside = unsafe { libc::openat(get(&state, "directory").as_raw_fd(), c"append".as_ptr(), libc::O_RDONLY) };
    drop(own("openat", inside));
    // The same file, by descriptor and by name.
    let numbers =
        |data: fs::Metadata| (std::os::unix::fs::MetadataExt::dev(&data), std::os::unix::fs::MetadataExt::ino(&data));
    let held = fs::File::from(get(&state, "shared").try_clone().unwrap()).metadata().map(numbers).ok();
    expect("file behind the name", fs::metadata(state.dir.at("shared")).map(numbers).ok(), held);
}

fn main() {
    probe::run(setup, check)
}
