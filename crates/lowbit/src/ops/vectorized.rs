//! Loops compiled for the CPU's vectors.

use pulp::{Arch, NullaryFnOnce};

struct Call<F>(F);

impl<R, F: FnMut() -> R> NullaryFnOnce for Call<F> {
    type Output = R;

    /// Called as `FnMut`, the closure is inlined here; as `FnOnce` it would be
    /// reached through a shim that is not.
    #[inline(always)]
    fn call(mut self) -> R {
        (self.0)()
    }
}

/// `f()` compiled for the best instruction set that the CPU has. `f` must be
/// `#[inline(always)]`, as must be what it calls. Results do not depend on
/// the instruction set: nothing is reordered or contracted.
pub fn vectorized<R>(f: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Call(f))
}
