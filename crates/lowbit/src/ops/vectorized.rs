//! Loops compiled for the CPU's vectors.

use lowbit_kernels::Grid;
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

/// The function of each element of a matrix, in place; tells the least and the
/// greatest of the results and 0, without NaN.
pub fn map_within(matrix: &mut Grid<'_, f32>, f: impl Fn(f32) -> f32) -> [f32; 2] {
    /// Elements that are taken together.
    const LANES: usize = 32;
    let (rows, columns) = (matrix.rows(), matrix.columns());
    vectorized(
        #[inline(always)]
        || {
            let (mut lo, mut hi) = ([0f32; LANES], [0f32; LANES]);
            for row in 0..rows {
                let (chunks, rest) = matrix.run(row, 0, columns).as_chunks_mut::<LANES>();
                for chunk in chunks {
                    for ((x, lo), hi) in chunk.iter_mut().zip(&mut lo).zip(&mut hi) {
                        *x = f(*x);
                        *lo = if *x < *lo { *x } else { *lo };
                        *hi = if *x > *hi { *x } else { *hi };
                    }
                }
                for ((x, lo), hi) in rest.iter_mut().zip(&mut lo).zip(&mut hi) {
                    *x = f(*x);
                    *lo = if *x < *lo { *x } else { *lo };
                    *hi = if *x > *hi { *x } else { *hi };
                }
            }
            [lo.into_iter().fold(0.0, f32::min), hi.into_iter().fold(0.0, f32::max)]
        },
    )
}
