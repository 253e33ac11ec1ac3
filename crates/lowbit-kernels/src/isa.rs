//! The tables of routines, and the choice among them.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
#[cfg(target_arch = "x86_64")]
mod depthwise256;
#[cfg(target_arch = "x86_64")]
mod finish256;
#[cfg(target_arch = "x86_64")]
mod finish512;
#[cfg(target_arch = "x86_64")]
mod gathered;
#[cfg(target_arch = "x86_64")]
mod lookup;
#[cfg(target_arch = "x86_64")]
mod low_bit256;
#[cfg(target_arch = "x86_64")]
mod low_bit512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neondot;
mod scalar;

use std::env;
use std::fmt;
use std::sync::OnceLock;

use crate::block::Multiply;
use crate::loops::Loops;
use crate::product;

/// The environment variable that forces a table: `scalar`; `avx2`, `avxvnni`, `avx512`,
/// `avx512vnni` or `amx` on x86-64; `neon` or `neondot` on AArch64.
pub const ISA_VARIABLE: &str = "LOWBIT_ISA";

/// The routines of one instruction set.
pub struct Kernels {
    name: &'static str,
    detected: fn() -> bool,
    /// The most rows that are computed together.
    pub(crate) tile_rows: usize,
    pub(crate) multiply: Multiply,
    pub(crate) product: product::Tile,
    pub(crate) loops: Loops,
}

/// Best first. A new instruction set is a new file and a new row here.
static ALL: &[Kernels] = &[
    #[cfg(target_arch = "x86_64")]
    amx::KERNELS,
    #[cfg(target_arch = "x86_64")]
    avx512vnni::KERNELS,
    #[cfg(target_arch = "x86_64")]
    avxvnni::KERNELS,
    #[cfg(target_arch = "x86_64")]
    avx512::KERNELS,
    #[cfg(target_arch = "x86_64")]
    avx2::KERNELS,
    #[cfg(target_arch = "aarch64")]
    neondot::KERNELS,
    #[cfg(target_arch = "aarch64")]
    neon::KERNELS,
    scalar::KERNELS,
];

impl Kernels {
    /// Every table that this CPU can run, best first; the last one is `scalar`.
    pub fn available() -> impl Iterator<Item = &'static Kernels> {
        ALL.iter().filter(|table| (table.detected)())
    }

    /// The table that [`ISA_VARIABLE`] names, or without it the best available one.
    ///
    /// # Errors
    ///
    /// The variable holds a name that is unknown or that this CPU cannot run;
    /// the message lists the names that it can.
    pub fn select() -> Result<&'static Kernels, String> {
        match env::var_os(ISA_VARIABLE) {
            Some(name) => Kernels::named(&name.to_string_lossy()),
            None => Ok(Kernels::available().next().expect("scalar is always available")),
        }
    }

    /// [`Kernels::select`], evaluated once per process.
    ///
    /// # Panics
    ///
    /// With the message of [`Kernels::select`] where that is an error. A program
    /// that wants an error instead calls `select` first.
    pub fn best() -> &'static Kernels {
        static BEST: OnceLock<&Kernels> = OnceLock::new();
        BEST.get_or_init(|| Kernels::select().unwrap_or_else(|message| panic!("{message}")))
    }

    /// The table's name: one of the values of [`ISA_VARIABLE`].
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn named(name: &str) -> Result<&'static Kernels, String> {
        Kernels::available().find(|table| table.name == name).ok_or_else(|| {
            let names: Vec<_> = Kernels::available().map(Kernels::name).collect();
            let known = ALL.iter().any(|table| table.name == name);
            format!(
                "{ISA_VARIABLE}={name}: {}; use one of {}, or unset it",
                if known { "this CPU lacks that instruction set" } else { "no such instruction set" },
                names.join(", "),
            )
        })
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kernels").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_their_tables_and_others_are_errors() {
        for table in Kernels::available() {
            assert_eq!(Kernels::named(table.name).unwrap().name, table.name);
        }
        assert_eq!(Kernels::available().last().unwrap().name, "scalar");
        for wrong in ["", "AVX2", "sse9"] {
            let message = Kernels::named(wrong).unwrap_err();
            for part in [ISA_VARIABLE, "no such instruction set", "scalar"] {
                assert!(message.contains(part), "{message}");
            }
        }
    }
}
