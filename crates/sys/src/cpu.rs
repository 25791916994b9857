//! What instructions programs can use on this processor: those that it has, that the kernel has enabled, and that neither every
//! processor of the architecture has nor only kernels may use (Intel SDM, volume 2, CPUID; AMD APM, volume 3, appendix E).

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv, CpuidResult};

/// Where the processor says so.
#[derive(Clone, Copy)]
enum Leaf {
    /// 1, ECX.
    Base,
    /// 7, subleaf 0, EBX, ECX and EDX.
    MoreB,
    MoreC,
    MoreD,
    /// 7, subleaf 1, EAX and EDX.
    MostA,
    MostD,
    /// 0xD, subleaf 1, EAX.
    Save,
    /// 0x80000001, ECX and EDX.
    ExtendedC,
    ExtendedD,
    /// 0x80000008, EBX.
    Other,
}
use Leaf::{Base, ExtendedC, ExtendedD, MoreB, MoreC, MoreD, MostA, MostD, Other, Save};

/// Components of the extended state without which instructions fault: bits of XCR0.
const NONE: u64 = 0;
const AVX: u64 = 0b110;
const AVX512: u64 = 0xe6;
const TILES: u64 = 3 << 17;
const APX: u64 = 1 << 19;

type Feature = (&'static str, Leaf, u32, u64);

/// Names as /proc/cpuinfo has them, in the order of their bytes.
const FEATURES: &[Feature] = &[
    ("3dnow", ExtendedD, 31, NONE),
    ("3dnowext", ExtendedD, 30, NONE),
    ("abm", ExtendedC, 5, NONE),
    ("adx", MoreB, 19, NONE),
    ("aes", Base, 25, NONE),
    ("amx_bf16", MoreD, 22, TILES),
    ("amx_complex", MostD, 8, TILES),
    ("amx_fp16", MostA, 21, TILES),
    ("amx_int8", MoreD, 25, TILES),
    ("amx_tile", MoreD, 24, TILES),
    ("apx", MostD, 21, APX),
    ("avx", Base, 28, AVX),
    ("avx10", MostD, 19, AVX512),
    ("avx2", MoreB, 5, AVX),
    ("avx512_4fmaps", MoreD, 3, AVX512),
    ("avx512_4vnniw", MoreD, 2, AVX512),
    ("avx512_bf16", MostA, 5, AVX512),
    ("avx512_bitalg", MoreC, 12, AVX512),
    ("avx512_fp16", MoreD, 23, AVX512),
    ("avx512_vbmi2", MoreC, 6, AVX512),
    ("avx512_vnni", MoreC, 11, AVX512),
    ("avx512_vp2intersect", MoreD, 8, AVX512),
    ("avx512_vpopcntdq", MoreC, 14, AVX512),
    ("avx512bw", MoreB, 30, AVX512),
    ("avx512cd", MoreB, 28, AVX512),
    ("avx512dq", MoreB, 17, AVX512),
    ("avx512er", MoreB, 27, AVX512),
    ("avx512f", MoreB, 16, AVX512),
    ("avx512ifma", MoreB, 21, AVX512),
    ("avx512pf", MoreB, 26, AVX512),
    ("avx512vbmi", MoreC, 1, AVX512),
    ("avx512vl", MoreB, 31, AVX512),
    ("avx_ifma", MostA, 23, AVX),
    ("avx_ne_convert", MostD, 5, AVX),
    ("avx_vnni", MostA, 4, AVX),
    ("avx_vnni_int16", MostD, 10, AVX),
    ("avx_vnni_int8", MostD, 4, AVX),
    ("bmi1", MoreB, 3, NONE),
    ("bmi2", MoreB, 8, NONE),
    ("clflushopt", MoreB, 23, NONE),
    ("clwb", MoreB, 24, NONE),
    ("clzero", Other, 0, NONE),
    ("cmpccxadd", MostA, 7, NONE),
    ("cx16", Base, 13, NONE),
    ("f16c", Base, 29, AVX),
    ("fma", Base, 12, AVX),
    ("fma4", ExtendedC, 16, AVX),
    ("fsgsbase", MoreB, 0, NONE),
    ("gfni", MoreC, 8, NONE),
    ("lahf_lm", ExtendedC, 0, NONE),
    ("misalignsse", ExtendedC, 7, NONE),
    ("mmxext", ExtendedD, 22, NONE),
    ("movbe", Base, 22, NONE),
    ("movdir64b", MoreC, 28, NONE),
    ("movdiri", MoreC, 27, NONE),
    ("movrs", MostA, 31, NONE),
    ("mwaitx", ExtendedC, 29, NONE),
    // Where the kernel has enabled them.
    ("ospke", MoreC, 4, NONE),
    ("osxsave", Base, 27, NONE),
    ("pclmulqdq", Base, 1, NONE),
    ("pni", Base, 0, NONE),
    ("popcnt", Base, 23, NONE),
    ("rao_int", MostA, 3, NONE),
    ("rdpid", MoreC, 22, NONE),
    ("rdpru", Other, 4, NONE),
    ("rdrand", Base, 30, NONE),
    ("rdseed", MoreB, 18, NONE),
    ("rdtscp", ExtendedD, 27, NONE),
    ("rtm", MoreB, 11, NONE),
    ("serialize", MoreD, 14, NONE),
    ("sha512", MostA, 0, AVX),
    ("sha_ni", MoreB, 29, NONE),
    ("sm3", MostA, 1, AVX),
    ("sm4", MostA, 2, AVX),
    ("sse4_1", Base, 19, NONE),
    ("sse4_2", Base, 20, NONE),
    ("sse4a", ExtendedC, 6, NONE),
    ("ssse3", Base, 9, NONE),
    ("tbm", ExtendedC, 21, NONE),
    ("tsxldtrk", MoreD, 16, NONE),
    ("vaes", MoreC, 9, AVX),
    ("vpclmulqdq", MoreC, 10, AVX),
    ("waitpkg", MoreC, 5, NONE),
    ("xgetbv1", Save, 2, NONE),
    ("xop", ExtendedC, 11, AVX),
    ("xsavec", Save, 1, NONE),
    ("xsaveopt", Save, 0, NONE),
];

/// How many there can be in an image.
pub const MOST: usize = 256;

/// Whether a text could be the name of one.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=32).contains(&text.len()) && text.bytes().all(plain)
}

/// The names of those that this processor has. Each question to it takes a virtual machine tens of microseconds.
#[must_use]
pub fn features() -> Vec<&'static str> {
    const NOTHING: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    const EXTENDED: u32 = 0x8000_0000;
    let (last, last_extended) = (__cpuid(0).eax, __cpuid(EXTENDED).eax);
    let ask = |leaf: u32, sub: u32| {
        let there = leaf <= if leaf < EXTENDED { last } else { last_extended };
        if there { __cpuid_count(leaf, sub) } else { NOTHING }
    };
    let base = ask(1, 0);
    let enabled = enabled(&base);
    let more = ask(7, 0);
    let most = if more.eax >= 1 { ask(7, 1) } else { NOTHING };
    let save = if enabled == 0 { NOTHING } else { ask(0xd, 1) };
    let (extended, other) = (ask(EXTENDED + 1, 0), ask(EXTENDED + 8, 0));
    let word = |leaf: Leaf| match leaf {
        Base => base.ecx,
        MoreB => more.ebx,
        MoreC => more.ecx,
        MoreD => more.edx,
        MostA => most.eax,
        MostD => most.edx,
        Save => save.eax,
        ExtendedC => extended.ecx,
        ExtendedD => extended.edx,
        Other => other.ebx,
    };
    // What the processor has and the kernel may not have enabled; that it has (HWCAP2_FSGSBASE) stands here alone.
    // SAFETY: takes a number.
    let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 != 0;
    let has = |(name, leaf, bit, state): &&Feature| {
        word(*leaf) & 1 << bit != 0 && enabled & state == *state && (*name != "fsgsbase" || fsgsbase)
    };
    FEATURES.iter().filter(has).map(|(name, ..)| *name).collect()
}

/// The components of the extended state that the kernel has enabled (XCR0).
fn enabled(base: &CpuidResult) -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if base.ecx & OSXSAVE == 0 {
        return 0;
    }
    // SAFETY: with this bit the processor has the instruction and the kernel lets everybody use it.
    unsafe { _xgetbv(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_compiler_s_library_finds_is_found() {
        let mine = features();
        macro_rules! same {
            ($($theirs:tt $name:literal)*) => {
                $(assert_eq!(std::arch::is_x86_feature_detected!($theirs), mine.contains(&$name), $name);)*
            };
        }
        same!("sse3" "pni" "ssse3" "ssse3" "sse4.1" "sse4_1" "sse4.2" "sse4_2" "popcnt" "popcnt" "movbe" "movbe");
        same!("aes" "aes" "pclmulqdq" "pclmulqdq" "avx" "avx" "avx2" "avx2" "fma" "fma" "f16c" "f16c" "lzcnt" "abm");
        same!("bmi1" "bmi1" "bmi2" "bmi2" "adx" "adx" "rdrand" "rdrand" "rdseed" "rdseed" "sha" "sha_ni" "sse4a" "sse4a");
        same!("avx512f" "avx512f" "avx512bw" "avx512bw" "avx512vl" "avx512vl" "avx512dq" "avx512dq" "avx512cd" "avx512cd");
        same!("avx512vbmi" "avx512vbmi" "avx512bf16" "avx512_bf16" "avx512vnni" "avx512_vnni" "avx512ifma" "avx512ifma");
        same!("gfni" "gfni" "vaes" "vaes" "vpclmulqdq" "vpclmulqdq" "xsavec" "xsavec" "xsaveopt" "xsaveopt" "rtm" "rtm");
        same!("avxvnni" "avx_vnni" "avxifma" "avx_ifma" "sha512" "sha512" "sm3" "sm3" "sm4" "sm4" "cmpxchg16b" "cx16");
    }

    #[test]
    fn names_are_told_once_and_in_order() {
        assert!(FEATURES.is_sorted_by(|a, b| a.0 < b.0));
        assert!(FEATURES.iter().all(|(name, ..)| is_name(name)));
        assert!(FEATURES.len() <= MOST);
    }
}
