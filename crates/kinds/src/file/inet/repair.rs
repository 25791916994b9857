//! `TCP_REPAIR`: reading and writing the inside of a connection (net/ipv4/tcp.c).
//! *Read from:* queues, sequence numbers, window and negotiated options of the socket under repair.
//! *Made again by:* the same calls in the other direction, then the end of the repair.
//! *Lost:* what the parent module says.
//!
//! While a socket is under repair it sends nothing, not even to its peer's knowledge: whoever left it so would leave it
//! dead. So the mode lasts for the few calls that need it, on a frozen task's socket, and ends even on errors. If the
//! checkpoint is killed between two of these calls, a process that outlives it ends the mode ([`yendor_sys::undo`]).

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use yendor_image::Bytes;
use yendor_sys::undo::{self, Held, Undo};
use yendor_sys::{SysError, inet};

use super::options;
use super::tcp::{self, Agreed, Closing, Connection, Window};
use crate::{Cause, Named, Result};

const SOCKET: i32 = 1;
const REUSEADDR: i32 = 2;
const TCP: i32 = 6;
const MAXSEG: i32 = 2;
const REPAIR: i32 = 19;
const REPAIR_QUEUE: i32 = 20;
const QUEUE_SEQ: i32 = 21;
const REPAIR_OPTIONS: i32 = 22;
const TIMESTAMP: i32 = 24;
const REPAIR_WINDOW: i32 = 29;

const NO_QUEUE: i32 = 0;
const RECEIVE: i32 = 1;
const SEND: i32 = 2;

/// Bits of `tcpi_options`.
const OPTION_TIMESTAMPS: u8 = 1;
const OPTION_SACK: u8 = 2;
const OPTION_SCALES: u8 = 4;

/// Acknowledged segments may still be in the queue in part: room for the largest.
const SLACK: usize = 1 << 17;
/// Bytes per write into a queue.
const PIECE: usize = 1 << 15;
/// How often a connection that moves is read again, a millisecond apart.
const TRIES: u32 = 200;

/// Begins the repair.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` in the socket's network namespace, and for a listening socket.
pub fn enter(fd: BorrowedFd<'_>) -> Result<()> {
    Ok(inet::set_number(fd, TCP, REPAIR, 1)?)
}

/// Off, without a window probe.
const OFF: i32 = -1;

/// Ends the repair without telling the peer. It also clears `SO_REUSEADDR`.
///
/// # Errors
/// The kernel's.
pub fn leave(fd: BorrowedFd<'_>) -> Result<()> {
    Ok(inet::set_number(fd, TCP, REPAIR, OFF)?)
}

/// Begins the repair of a connection that lives: it ends whatever happens in between.
fn begin(fd: BorrowedFd<'_>) -> Result<Held<'_>> {
    let reuse = inet::number(fd, SOCKET, REUSEADDR)?;
    let off = Undo { level: TCP, option: REPAIR, value: OFF };
    let inline = Undo { level: SOCKET, option: tcp::OOB_INLINE, value: inet::number(fd, SOCKET, tcp::OOB_INLINE)? };
    let held = undo::hold(fd, &[off, Undo { level: SOCKET, option: REUSEADDR, value: reuse }, inline])?;
    enter(fd)?;
    // So that nothing is counted to an urgent mark only.
    inet::set_number(fd, SOCKET, tcp::OOB_INLINE, 1)?;
    Ok(held)
}

/// Reads both ends so that they fit: whatever one end thinks the other has, it has.
///
/// # Errors
/// `Unsupported` for a connection that does not come to rest.
pub fn read_both(one: BorrowedFd<'_>, two: BorrowedFd<'_>) -> Result<(Connection, Connection)> {
    for _ in 0..TRIES {
        if let (Some(first), Some(second)) = (read(one)?, read(two)?)
            && fits(&first, &second)
            && fits(&second, &first)
        {
            return Ok((first, second));
        }
        // Timers of the kernel go on: an acknowledgement that was held back, a probe of a window.
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(Cause::unsupported("a TCP connection that does not come to rest"))
}

/// Reads an end whose other end was closed and has got everything.
///
/// # Errors
/// As [`read_both`].
pub fn read_alone(fd: BorrowedFd<'_>) -> Result<Connection> {
    for _ in 0..TRIES {
        let rests = |c: &Connection| {
            let Closing { sends_no_more, peer_sends_no_more, reads_no_more: _ } = c.closing;
            peer_sends_no_more && !sends_no_more && c.sent.0.is_empty() && c.unsent.0.is_empty()
        };
        if let Some(connection) = read(fd)?.filter(rests) {
            return Ok(connection);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(Cause::unsupported("a TCP connection that does not come to rest"))
}

/// Whether the receiver is at a place that the sender can go on from.
fn fits(sender: &Connection, receiver: &Connection) -> bool {
    let len = |bytes: &Bytes| u32::try_from(bytes.0.len()).unwrap_or(u32::MAX);
    let at = receiver.receive_sequence.wrapping_add(len(&receiver.received));
    let ahead = at.wrapping_sub(sender.send_sequence);
    ahead <= len(&sender.sent).saturating_add(len(&sender.unsent))
        && (!receiver.closing.peer_sends_no_more || sender.closing.sends_no_more)
}

/// One end, or none when it moved meanwhile.
fn read(fd: BorrowedFd<'_>) -> Result<Option<Connection>> {
    let peer = super::peer(fd)?.ok_or_else(|| Cause::unsupported("a TCP connection that ends at this moment"))?;
    let tcp::Unread { data: received, reach } = tcp::waiting(fd)?;
    let repair = begin(fd)?;
    let mss = inet::number(fd, TCP, MAXSEG)?;
    let timestamp = inet::number(fd, TCP, TIMESTAMP)?.cast_unsigned();
    let window = window(fd)?;
    let (receive_end, send_end) = (sequence(fd, RECEIVE)?, sequence(fd, SEND)?);
    let room = usize::try_from(inet::unacknowledged(fd)?).unwrap_or(0) + SLACK;
    let mut queue = vec![0; room];
    let peeked = recv(fd, &mut queue[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    let info = tcp::info(fd)?;
    let (pending, unsent) = (inet::unacknowledged(fd)?, inet::unsent(fd)?);
    let still = yendor_sys::sock::waiting(fd)? == reach;
    repair.end()?;
    let (n, _) = peeked.named("recvfrom", || "MSG_PEEK, TCP_SEND_QUEUE".into())?;
    queue.truncate(n);
    let closing = Closing::of(fd, &info)?;
    let queued_fin = u32::from(tcp::has_fin_queued(&info));
    let Some((sent, unsent)) = split(queue, pending - queued_fin.min(pending), unsent, queued_fin) else {
        return Ok(None);
    };
    let own_fin = u32::from(closing.sends_no_more);
    let their_fin = u32::from(closing.peer_sends_no_more);
    let length = |bytes: &Bytes| u32::try_from(bytes.0.len()).unwrap_or(u32::MAX);
    let connection = Connection {
        peer,
        closing,
        send_sequence: send_end.wrapping_sub(own_fin).wrapping_sub(length(&sent)).wrapping_sub(length(&unsent)),
        receive_sequence: receive_end.wrapping_sub(their_fin).wrapping_sub(length(&received)),
        window: without_fins(window, receive_end.wrapping_sub(their_fin), own_fin > queued_fin),
        agreed: agreed(&info, mss, timestamp),
        sent,
        unsent,
        received,
        peer_is_closed: false,
    };
    Ok(still.then_some(connection))
}

/// The send queue's last `pending` bytes, cut where sending has got to. None when the numbers do not go together.
fn split(queue: Vec<u8>, pending: u32, unsent: u32, fin: u32) -> Option<(Bytes, Bytes)> {
    let pending = usize::try_from(pending).ok()?;
    // A FIN that is not sent is counted among what is not sent.
    let unsent = usize::try_from(unsent - fin.min(unsent)).ok()?;
    let queue = queue.get(queue.len().checked_sub(pending)?..)?;
    let (sent, unsent) = queue.split_at_checked(queue.len().checked_sub(unsent)?)?;
    Some((Bytes(sent.to_vec()), Bytes(unsent.to_vec())))
}

fn agreed(info: &tcp::Info, mss: i32, timestamp: u32) -> Agreed {
    let has = |bit: u8| info.options & bit != 0;
    Agreed {
        mss: u16::try_from(mss).unwrap_or(u16::MAX),
        scales: has(OPTION_SCALES).then_some((info.scales & 15, info.scales >> 4)),
        sack: has(OPTION_SACK),
        timestamp: has(OPTION_TIMESTAMPS).then_some(timestamp),
    }
}

/// The queue stays chosen, for the next call.
fn sequence(fd: BorrowedFd<'_>, queue: i32) -> Result<u32> {
    inet::set_number(fd, TCP, REPAIR_QUEUE, queue)?;
    Ok(inet::number(fd, TCP, QUEUE_SEQ)?.cast_unsigned())
}

fn window(fd: BorrowedFd<'_>) -> Result<Window> {
    let mut raw = [0u8; 20];
    inet::get(fd, TCP, REPAIR_WINDOW, &mut raw)?;
    let word = |at: usize| raw.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    Ok(Window { update: word(0), send: word(4), largest: word(8), receive: word(12), told: word(16) })
}

/// Whether a closed socket never had a connection: nothing was received, not even a SYN.
///
/// # Errors
/// As [`enter`].
pub fn never_was(fd: BorrowedFd<'_>) -> Result<bool> {
    let repair = begin(fd)?;
    let received = sequence(fd, RECEIVE);
    repair.end()?;
    Ok(received? == 0)
}

/// The windows as they were before FINs came: their right edges stay.
fn without_fins(window: Window, receive_end: u32, fin_acknowledged: bool) -> Window {
    let Window { update, send, largest, receive, told } = window;
    let ahead = told.wrapping_sub(receive_end);
    let back = if ahead == 1 { 1 } else { 0 };
    let send = send.saturating_add(u32::from(fin_acknowledged));
    Window {
        update: if update.wrapping_sub(receive_end) == 1 { receive_end } else { update },
        send,
        largest: largest.max(send),
        receive: receive.saturating_add(back),
        told: told.wrapping_sub(back),
    }
}

/// Makes an end of a connection, and leaves it under repair: see [`revive`].
///
/// # Errors
/// The kernel's: `EPERM`, `EADDRNOTAVAIL`, `ENETUNREACH`.
pub fn connect(fd: BorrowedFd<'_>, local: SocketAddr, connection: &Connection) -> Result<()> {
    let Connection {
        peer,
        closing: _,
        send_sequence,
        sent,
        unsent: _,
        receive_sequence,
        received,
        window,
        agreed,
        peer_is_closed: _,
    } = connection;
    enter(fd)?;
    for (queue, sequence) in [(SEND, send_sequence), (RECEIVE, receive_sequence)] {
        inet::set_number(fd, TCP, REPAIR_QUEUE, queue)?;
        inet::set_number(fd, TCP, QUEUE_SEQ, sequence.cast_signed())?;
    }
    rustix::net::bind(fd, &local).named("bind", || format!("{local}, under repair"))?;
    rustix::net::connect(fd, peer).named("connect", || format!("{local} to {peer}, under repair"))?;
    agree(fd, agreed)?;
    for (queue, data) in [(RECEIVE, received), (SEND, sent)] {
        inet::set_number(fd, TCP, REPAIR_QUEUE, queue)?;
        put(fd, &data.0).map_err(|e| named_queue(e, queue, data.0.len()))?;
    }
    inet::set_number(fd, TCP, REPAIR_QUEUE, NO_QUEUE)?;
    let Window { update, send, largest, receive, told } = window;
    let raw = [update, send, largest, receive, told].map(|word| word.to_ne_bytes()).concat();
    Ok(inet::set(fd, TCP, REPAIR_WINDOW, &raw)?)
}

fn agree(fd: BorrowedFd<'_>, agreed: &Agreed) -> Result<()> {
    const MSS: u32 = 2;
    const SCALE: u32 = 3;
    const SACK: u32 = 4;
    const TIMESTAMPS: u32 = 8;
    let Agreed { mss, scales, sack, timestamp } = agreed;
    let mut list = vec![(MSS, u32::from(*mss))];
    if let Some((send, receive)) = scales {
        list.push((SCALE, u32::from(*send) | u32::from(*receive) << 16));
    }
    if *sack {
        list.push((SACK, 0));
    }
    if timestamp.is_some() {
        list.push((TIMESTAMPS, 0));
    }
    // An array of struct tcp_repair_opt.
    let raw: Vec<u8> =
        list.iter().flat_map(|(code, value)| [code.to_ne_bytes(), value.to_ne_bytes()]).flatten().collect();
    inet::set(fd, TCP, REPAIR_OPTIONS, &raw)?;
    match timestamp {
        Some(clock) => Ok(inet::set_number(fd, TCP, TIMESTAMP, clock.cast_signed())?),
        None => Ok(()),
    }
}

/// Writes all of `data` without blocking.
fn put(fd: BorrowedFd<'_>, mut data: &[u8]) -> std::result::Result<(), SysError> {
    while !data.is_empty() {
        let piece = &data[..data.len().min(PIECE)];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let n = send(fd, piece, flags).named("sendto", || format!("{} bytes", piece.len()))?;
        data = data.get(n..).unwrap_or_default();
    }
    Ok(())
}

fn named_queue(e: SysError, queue: i32, bytes: usize) -> Cause {
    let name = if queue == SEND { "TCP_SEND_QUEUE" } else { "TCP_RECV_QUEUE" };
    SysError::new(e.call, format!("{} of {bytes}, {name}", e.args), e.errno).into()
}

/// An end of a connection, still under repair.
pub struct Living<'a> {
    /// The socket.
    pub fd: BorrowedFd<'a>,
    /// Its address.
    pub local: SocketAddr,
    /// Its record.
    pub connection: &'a Connection,
}

/// Ends the repair of all connections, now that both ends of each exist; then data flows that had not been sent, and FINs.
///
/// # Errors
/// The kernel's; `Unsupported` when a FIN does not come through.
pub fn revive(all: &[Living<'_>]) -> Result<()> {
    for end in all {
        leave(end.fd)?;
        options::share_port(end.fd)?;
    }
    for end in all {
        let unsent = &end.connection.unsent.0;
        put(end.fd, unsent).map_err(|e| named_queue(e, SEND, unsent.len()))?;
    }
    for end in all.iter().filter(|e| e.connection.closing.sends_no_more) {
        shutdown(end.fd, Shutdown::Write).named("shutdown", || format!("{}, SHUT_WR", end.local))?;
    }
    for end in all.iter().filter(|e| e.connection.closing.peer_sends_no_more) {
        tcp::await_fin(end.fd)?;
    }
    for end in all.iter().filter(|e| e.connection.closing.reads_no_more) {
        shutdown(end.fd, Shutdown::Read).named("shutdown", || format!("{}, SHUT_RD", end.local))?;
    }
    Ok(())
}
