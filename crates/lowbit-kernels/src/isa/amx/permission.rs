//! Whether this process may use AMX.

/// Whether the CPU multiplies tiles of 8-bit integers, and the kernel lets this process: it has to be
/// asked, since tiles are 8 KiB of state for each thread. Only Linux is.
#[cfg(target_os = "linux")]
pub(super) fn granted() -> bool {
    use std::arch::x86_64::__cpuid_count;

    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    // From the kernel's `asm/prctl.h`, and the number of the state that holds tiles.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    let features = __cpuid_count(7, 0).edx;
    if features & TILE == 0 || features & INT8 == 0 {
        return false;
    }
    // SAFETY: this call reads and writes no memory of the process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn granted() -> bool {
    false
}
