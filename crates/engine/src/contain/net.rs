//! The loopback of a new network namespace (rtnetlink(7)).

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use yendor_kinds::Named;
use yendor_sys::{Errno, SysError};

use super::Caused;

/// Sets `lo` up; the kernel gives it its addresses.
pub(super) fn loopback_up() -> Caused<()> {
    let socket =
        // Protocol 0 is NETLINK_ROUTE.
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .named("socket", || "AF_NETLINK, SOCK_RAW, NETLINK_ROUTE".into())?;
    let shown = || "netlink, RTM_NEWLINK lo up".to_owned();
    rustix::net::send(&socket, &request(), SendFlags::empty()).named("sendto", shown)?;
    let mut answer = [0_u8; 256];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty()).named("recvfrom", shown)?;
    // struct nlmsghdr (16 bytes), then struct nlmsgerr, whose first word is the negative errno.
    let errno = answer.get(16..length.min(20)).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match errno {
        Some(0) => Ok(()),
        Some(e) => Err(SysError::said("sendto", shown(), e.saturating_neg()).into()),
        None => Err(SysError::new("recvfrom", shown(), Errno::BADMSG).into()),
    }
}

fn request() -> [u8; 32] {
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_ACK: u16 = 1 | 4;
    const LO: i32 = 1;
    const IFF_UP: u32 = 1;
    let mut out = [0; 32];
    // struct nlmsghdr: length, type, flags, sequence, port; struct ifinfomsg: family and type 0, index, flags, mask.
    out[0..4].copy_from_slice(&32_u32.to_ne_bytes());
    out[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
    out[6..8].copy_from_slice(&REQUEST_ACK.to_ne_bytes());
    out[8..12].copy_from_slice(&1_u32.to_ne_bytes());
    out[20..24].copy_from_slice(&LO.to_ne_bytes());
    out[24..28].copy_from_slice(&IFF_UP.to_ne_bytes());
    out[28..32].copy_from_slice(&IFF_UP.to_ne_bytes());
    out
}
