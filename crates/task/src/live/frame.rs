//! Signal frames: what `rt_sigreturn` takes a thread's whole state from.

use yendor_sys::xstate;

use crate::regs::Regs;

/// Bytes of `ucontext` on x86_64 without the extended state.
pub(super) const UCONTEXT: usize = 304;

/// The signal frame (`ucontext`, extended state) at `address` that returns a thread to `regs` with `mask` blocked.
pub(super) fn frame(address: u64, regs: &Regs, mask: u64, xstate: &[u8]) -> Vec<u8> {
    let state = (address + UCONTEXT as u64).next_multiple_of(64);
    // None: the kernel clears what there was.
    let fp = if xstate.is_empty() { 0 } else { state };
    let mut f = Vec::with_capacity(UCONTEXT + 64 + xstate.len());
    let mut word = |w: u64| f.extend_from_slice(&w.to_ne_bytes());
    // UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS, no link.
    word(7);
    word(0);
    // An alternate stack that sigaltstack(2) refuses (unknown flags): the thread's own is left as it is.
    word(0);
    word(0x40);
    word(0);
    for w in [
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rdi,
        regs.rsi,
        regs.rbp,
        regs.rbx,
        regs.rdx,
        regs.rax,
        regs.rcx,
        regs.rsp,
        regs.rip,
        regs.eflags,
    ] {
        word(w);
    }
    word(regs.cs & 0xffff | (regs.ss & 0xffff) << 48);
    for _ in 0..4 {
        word(0);
    }
    word(fp);
    for _ in 0..8 {
        word(0);
    }
    word(mask);
    if fp != 0 {
        f.resize(usize::try_from(fp - address).unwrap_or(UCONTEXT), 0);
        f.extend_from_slice(&signal_xstate(xstate));
    }
    f
}

/// The extended state with the marks that the kernel wants in a signal frame (arch/x86/include/uapi/asm/sigcontext.h). It
/// takes no state that is larger than what the task may use: hence only the components that hold something.
fn signal_xstate(xstate: &[u8]) -> Vec<u8> {
    const SW: usize = 464;
    let mut x = xstate.to_vec();
    if x.len() < xstate::LEAST {
        return x;
    }
    let size = u32::try_from(x.len()).unwrap_or(0);
    x[SW..SW + 4].copy_from_slice(&0x4650_5853u32.to_ne_bytes());
    x[SW + 4..SW + 8].copy_from_slice(&(size + 4).to_ne_bytes());
    // With x87 and SSE, as the kernel's own frames: MXCSR belongs to them, and may be all that there is of them.
    let features = xstate::in_use(&x) | xstate::OLD;
    x[SW + 8..SW + 16].copy_from_slice(&features.to_ne_bytes());
    x[SW + 16..SW + 20].copy_from_slice(&size.to_ne_bytes());
    x.extend_from_slice(&0x4650_5845u32.to_ne_bytes());
    x
}
