//! Counts aloud for as long as it lives and looks after itself at every step: memory, registers, a thread, a child,
//! clocks, and calls that nobody may interrupt. Any harm ends it.
//!
//! With PROBE_CONNECTIONS each step also goes through connections in which something always waits: TCP, UDP, a unix stream, with
//! `terminal` a terminal; and a connection that is not accepted yet, in which nothing waits, or, with `unread`, something does.
#![allow(unsafe_code)]

use probe::{
    PAGE, Region, block_all, check_pattern, child, clock, expect, expect_that, fail, fill_pattern, map, own, say,
    transfer,
};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const PAGES: usize = 256;

struct State {
    step: u64,
    memory: Region,
    sum: f64,
    to_child: OwnedFd,
    from_child: OwnedFd,
    beats: Arc<AtomicU64>,
    last_beats: u64,
    time: i128,
    connections: Option<Connections>,
}

static ZERO: i32 = 0;
/// What always waits in each of them: as many messages, of eight bytes.
const WAITING: u64 = 9;

struct Connections {
    _tcp: TcpListener,
    client: TcpStream,
    server: TcpStream,
    udp: [UdpSocket; 2],
    unix: [UnixStream; 2],
    terminal: Option<[std::fs::File; 2]>,
    listener: UnixListener,
    address: SocketAddr,
    /// Those that wait to be accepted, and what each has sent.
    waiting: VecDeque<(UnixStream, Option<u64>)>,
    unread: bool,
    /// Of the sockets that can have one, the place of the next look; each look begins at the front.
    peeks: Vec<i32>,
}

fn must<T>(what: &str, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| fail(&format!("{what}: {error}")))
}

fn option(fd: i32, level: i32, option: i32) -> i32 {
    let (mut value, mut len) = (0_i32, 4);
    let got = unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut len) };
    probe::ok("getsockopt", got);
    value
}

fn terminal() -> [std::fs::File; 2] {
    unsafe {
        let master = own("posix_openpt", libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC));
        probe::ok("unlockpt", libc::unlockpt(master.as_raw_fd()));
        let mut name = [0; 64];
        expect("ptsname", libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr(), name.len()), 0);
        let slave = own("open", libc::open(name.as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC));
        let mut modes: libc::termios = std::mem::zeroed();
        probe::ok("tcgetattr", libc::tcgetattr(slave.as_raw_fd(), &mut modes));
        libc::cfmakeraw(&mut modes);
        probe::ok("tcsetattr", libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &modes));
        [master.into(), slave.into()]
    }
}

impl Connections {
    fn make(how: &str) -> Self {
        let tcp = must("bind", TcpListener::bind("127.0.0.1:0"));
        let client = must("connect", TcpStream::connect(must("name", tcp.local_addr())));
        let server = must("accept", tcp.accept()).0;
        must("TCP_NODELAY", client.set_nodelay(true));
        must("TCP_NODELAY", server.set_nodelay(true));
        let udp = [(); 2].map(|()| must("bind", UdpSocket::bind("127.0.0.1:0")));
        must("connect", udp[0].connect(must("name", udp[1].local_addr())));
        let unix = must("socketpair", UnixStream::pair());
        let address = must("address", SocketAddr::from_abstract_name(format!("ticker-{}", std::process::id())));
        let listener = must("bind", UnixListener::bind_addr(&address));
        must("O_NONBLOCK", listener.set_nonblocking(true));
        let mut made = Self {
            _tcp: tcp,
            client,
            server,
            udp,
            unix: [unix.0, unix.1],
            terminal: how.contains("terminal").then(terminal),
            listener,
            address,
            waiting: VecDeque::new(),
            unread: how.contains("unread"),
            peeks: Vec::new(),
        };
        let with_peeks = [made.server.as_raw_fd(), made.udp[1].as_raw_fd(), made.unix[1].as_raw_fd()];
        let set = |fd: i32| unsafe { libc::setsockopt(fd, 1, libc::SO_PEEK_OFF, (&raw const ZERO).cast(), 4) } == 0;
        made.peeks = with_peeks.into_iter().filter(|fd| set(*fd)).collect();
        expect_that("SO_PEEK_OFF", made.peeks.len() >= 2, made.peeks.len());
        (1..=WAITING).for_each(|step| made.send(step));
        made.call(0);
        made
    }

    fn send(&mut self, step: u64) {
        let bytes = step.to_ne_bytes();
        must("write to TCP", self.client.write_all(&bytes));
        must("write to TCP", self.server.write_all(&bytes));
        must("send by UDP", self.udp[0].send(&bytes));
        must("write to a unix socket", self.unix[0].write_all(&bytes));
        for end in self.terminal.iter_mut().flatten() {
            must("write to a terminal", end.write_all(&bytes));
        }
    }

    /// Makes a connection that waits to be accepted.
    fn call(&mut self, step: u64) {
        let mut client = must("connect", UnixStream::connect_addr(&self.address));
        if self.unread {
            must("write to whoever will accept", client.write_all(&step.to_ne_bytes()));
        }
        self.waiting.push_back((client, self.unread.then_some(step)));
    }

    fn answer(&mut self) {
        let Some((mut client, sent)) = self.waiting.pop_front() else { return };
        let mut bytes = [0; 8];
        match self.listener.accept() {
            Ok((mut server, _)) => {
                must("answer", server.write_all(&9_u64.to_ne_bytes()));
                must("read the answer", client.read_exact(&mut bytes));
                if let Some(sent) = sent {
                    must("read what a connection brought", server.read_exact(&mut bytes));
                    expect("what a connection brought", u64::from_ne_bytes(bytes), sent);
                }
            }
            // A checkpoint that was killed when we had ended has this image of it.
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let error = client.read_exact(&mut bytes).err().map(|e| e.kind());
                expect("what waited has gone", error, Some(ErrorKind::ConnectionReset));
                say("a connection was reset\n");
            }
            Err(e) => fail(&format!("accept: {e}")),
        }
    }

    fn step(&mut self, step: u64) {
        const TCP_REPAIR: i32 = 19;
        self.send(step + WAITING);
        let Self { client, server, udp, unix, terminal, .. } = self;
        let take = |what: &str, from: &mut dyn FnMut(&mut [u8; 8]) -> std::io::Result<()>| {
            let mut bytes = [0; 8];
            must(what, from(&mut bytes));
            expect(what, u64::from_ne_bytes(bytes), step);
        };
        take("read from TCP", &mut |bytes| server.read_exact(bytes));
        take("read from TCP, the client", &mut |bytes| client.read_exact(bytes));
        take("receive by UDP", &mut |bytes| udp[1].recv(bytes).map(drop));
        take("read from a unix socket", &mut |bytes| unix[1].read_exact(bytes));
        for end in terminal.iter_mut().flatten() {
            take("read from a terminal", &mut |bytes| end.read_exact(bytes));
        }
        for fd in [client.as_raw_fd(), server.as_raw_fd()] {
            expect("TCP_REPAIR", option(fd, libc::IPPROTO_TCP, TCP_REPAIR), 0);
        }
        expect("SO_REUSEADDR", option(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR), 1);
        for fd in &self.peeks {
            // Who puts it back may be late on a busy machine: it matters only to who looks without taking.
            let begin = std::time::Instant::now();
            while option(*fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF) != 0 && begin.elapsed().as_secs() < 5 {
                probe::sleep_ms(1);
            }
            expect("SO_PEEK_OFF", option(*fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF), 0);
        }
        self.answer();
        self.call(step);
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    probe::ok("pipe2", unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) });
    (own("pipe2", ends[0]), own("pipe2", ends[1]))
}

/// Ten milliseconds that nobody may cut short but who asks for something.
fn nap() {
    let time = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    let start = clock(libc::CLOCK_MONOTONIC);
    let result = unsafe { libc::syscall(libc::SYS_nanosleep, &time, std::ptr::null_mut::<u8>()) };
    if result != 0 && !probe::requested() {
        fail(&format!("nanosleep: {}", std::io::Error::last_os_error()));
    }
    let slept = clock(libc::CLOCK_MONOTONIC) - start;
    expect_that("sleep", slept >= 10_000_000 || probe::requested(), slept);
}

fn word_from(fd: &OwnedFd) -> Option<u64> {
    // A short read means that the other side is gone; EINTR ends the probe.
    probe::read_at_once(fd, 8)?.try_into().ok().map(u64::from_ne_bytes)
}

/// Answers every number with its square plus the count of answers, which only it knows.
fn answer(from: &OwnedFd, to: &OwnedFd) {
    let mut count = 0_u64;
    while let Some(number) = word_from(from) {
        count += 1;
        transfer(to, &(number.wrapping_mul(number) + count).to_ne_bytes());
    }
}

fn start() -> State {
    let ((child_in, to_child), (from_child, child_out)) = (pipe(), pipe());
    let pid = child(|| {
        // The copies of the parent's ends must go, or nobody would notice its end.
        for fd in [&to_child, &from_child] {
            unsafe { libc::close(std::os::fd::AsRawFd::as_raw_fd(fd)) };
        }
        answer(&child_in, &child_out);
    });
    expect_that("child", pid > 0, pid);
    let memory = map(PAGES * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    for page in 0..PAGES {
        fill_pattern(memory.at(page * PAGE), PAGE, 0);
    }
    let beats = Arc::new(AtomicU64::new(0));
    std::thread::spawn({
        let beats = beats.clone();
        move || {
            block_all();
            loop {
                nap();
                beats.fetch_add(1, SeqCst);
            }
        }
    });
    let connections = std::env::var("PROBE_CONNECTIONS").ok().map(|how| Connections::make(&how));
    let time = clock(libc::CLOCK_MONOTONIC);
    State { step: 0, memory, sum: 0.0, to_child, from_child, beats, last_beats: 0, time, connections }
}

fn step(state: &mut State) {
    state.step += 1;
    let step = state.step;
    // Each step sixteen pages go from the pattern of their last time to the one of this step.
    for number in 0..16 {
        let page = (step as usize * 16 + number) % PAGES;
        let rounds = (PAGES / 16) as u64;
        let (at, last) = (state.memory.at(page * PAGE), step.saturating_sub(rounds));
        check_pattern("memory", at, PAGE, last);
        fill_pattern(at, PAGE, step);
    }
    state.sum += 0.5;
    expect("sum", state.sum, step as f64 * 0.5);
    transfer(&state.to_child, &step.to_ne_bytes());
    expect("answer of the child", word_from(&state.from_child), Some(step.wrapping_mul(step) + step));
    let time = clock(libc::CLOCK_MONOTONIC);
    expect_that("monotonic clock", time >= state.time, (time, state.time));
    state.time = time;
    if let Some(connections) = &mut state.connections {
        connections.step(step);
    }
    if step.is_multiple_of(100) {
        let beats = state.beats.load(SeqCst);
        expect_that("thread goes on", beats > state.last_beats, beats);
        state.last_beats = beats;
    }
    say(&format!("tick {step}\n"));
    nap();
}

fn main() {
    probe::run_working(start(), step, |state| {
        expect("descriptors", std::fs::read_dir("/proc/self/fd").map(|all| all.count() > 4).ok(), Some(state.step > 0))
    })
}
