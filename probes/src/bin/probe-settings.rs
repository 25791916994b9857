//! Settings of namespaces below /proc/sys that its root has changed: of the network, of message queues, of the user namespace. Some change
//! others, some have no value at first. Outside of a container it changes nothing; what it may not write stays as it is.
#![allow(unsafe_code)]

use probe::{expect, expect_that};
use std::net::TcpListener;

/// In this order.
const WANTED: [(&str, &str); 14] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/lo/forwarding", "0"),
    ("net/ipv4/conf/all/rp_filter", "2"),
    ("net/ipv4/ip_local_port_range", "20000 20003"),
    ("net/ipv4/ip_local_reserved_ports", "20001,30000-30009"),
    ("net/ipv4/ping_group_range", "0 0"),
    ("net/ipv4/tcp_rmem", "4096 99999 6000000"),
    ("net/core/somaxconn", "7"),
    ("net/ipv6/conf/default/stable_secret", "2001:db8:1:2:3:4:5:6"),
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/lo/disable_ipv6", "0"),
    ("fs/mqueue/msg_max", "23"),
    ("user/max_inotify_watches", "1234"),
    ("user/max_user_namespaces", "0"),
];

fn read(name: &str) -> String {
    // One without a value cannot be read.
    std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_else(|error| error.to_string())
}

fn all() -> Vec<(&'static str, String)> {
    WANTED.iter().map(|(name, _)| (*name, read(name))).collect()
}

struct Held {
    settings: Vec<(&'static str, String)>,
    ports: bool,
}

fn setup() -> Held {
    // The first task of a container has the second id.
    let inside = std::process::id() == 2;
    // With the host's ids the last of them would be the host's.
    let own_users = probe::read_file("/proc/self/uid_map").split_whitespace().nth(2) != Some("4294967295");
    for (name, value) in WANTED.iter().filter(|(name, _)| inside && (own_users || !name.starts_with("user/"))) {
        let _ = std::fs::write(format!("/proc/sys/{name}"), value);
    }
    let settings = all();
    let ports = settings.iter().any(|(_, value)| value.trim() == "20000\t20003");
    Held { settings, ports }
}

fn check(Held { settings, ports }: Held) {
    expect("settings", all(), settings);
    if ports {
        // They are the kernel's, not only the file's.
        let listener = TcpListener::bind("127.0.0.1:0");
        let port = listener.as_ref().ok().and_then(|l| l.local_addr().ok()).map_or(0, |a| a.port());
        expect_that("a port in the range", [20000, 20002, 20003].contains(&port), port);
    }
}

fn main() {
    probe::run(setup, check)
}
