//! What a probe says.

use std::fmt::Debug;
use std::io::Error;

fn put(fd: i32, text: &str) {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        // SAFETY: the buffer is valid for its length.
        let done = unsafe { libc::write(fd, rest.as_ptr().cast(), rest.len()) };
        match usize::try_from(done) {
            Ok(done) => rest = &rest[done..],
            // Nobody listens: then the exit status alone must tell.
            Err(_) => return,
        }
    }
}

/// Text for stdout, written at once.
pub fn say(text: &str) {
    put(1, text);
}

/// Ends the probe and the children it knows with exit status 1.
pub fn fail(what: &str) -> ! {
    let line = format!("FAIL: {what}\n");
    put(1, &line);
    put(2, &line);
    crate::family::end_children();
    // SAFETY: always allowed.
    unsafe { libc::_exit(1) }
}

/// The value must be this one.
pub fn expect<T: PartialEq + Debug>(what: &str, got: T, want: T) {
    if got != want {
        fail(&format!("{what}: expected {want:?} got {got:?}"));
    }
}

/// The condition must hold; `got` is told when it does not.
pub fn expect_that(what: &str, holds: bool, got: impl Debug) {
    if !holds {
        fail(&format!("{what}: got {got:?}"));
    }
}

/// The result of a call that must not return -1.
pub fn ok<T: PartialEq + From<i8>>(call: &str, result: T) -> T {
    if result == T::from(-1) {
        let error = Error::last_os_error();
        fail(&format!("{call}: {error}"));
    }
    result
}

/// The call must have returned -1 with this errno.
pub fn refused<T: PartialEq + From<i8>>(call: &str, result: T, errno: i32) {
    let error = Error::last_os_error();
    if result != T::from(-1) {
        fail(&format!("{call}: expected errno {errno} got success"));
    }
    expect(call, error.raw_os_error(), Some(errno));
}
