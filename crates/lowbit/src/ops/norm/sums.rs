//! Sums over slices: over blocks in f32, of these in f64, in an order that does
//! not depend on the number of threads.

use crate::ops::vectorized::vectorized;

/// The sums of `f(x, g)` over all elements of the pairs of slices, which have equal
/// lengths.
pub(super) fn sums<'a, const S: usize>(
    slices: impl IntoIterator<Item = (&'a [f32], &'a [f32])>,
    f: impl Fn(f32, f32) -> [f32; S] + Copy,
) -> [f64; S] {
    let mut sums = Sums { lanes: [[0.0; LANES]; S], added: 0, total: [0.0; S] };
    for (x, g) in slices {
        vectorized(
            #[inline(always)]
            || sums.add(x, g, f),
        );
    }
    sums.close();
    sums.total
}

/// Partial sums.
const LANES: usize = 32;
/// Elements that are summed in f32.
const BLOCK: usize = 1 << 12;

/// Sums in f32 over blocks, and of these in f64.
struct Sums<const S: usize> {
    lanes: [[f32; LANES]; S],
    added: usize,
    total: [f64; S],
}

impl<const S: usize> Sums<S> {
    #[inline(always)]
    fn add(&mut self, x: &[f32], g: &[f32], f: impl Fn(f32, f32) -> [f32; S]) {
        for (x, g) in x.chunks(BLOCK).zip(g.chunks(BLOCK)) {
            if self.added + x.len() > BLOCK {
                self.close();
            }
            self.added += x.len();
            // A copy stays in registers.
            let mut lanes = self.lanes;
            let ((x, last_x), (g, last_g)) = (x.as_chunks::<LANES>(), g.as_chunks::<LANES>());
            for (x, g) in x.iter().zip(g) {
                for j in 0..LANES {
                    let y = f(x[j], g[j]);
                    for s in 0..S {
                        lanes[s][j] += y[s];
                    }
                }
            }
            for (j, (x, g)) in last_x.iter().zip(last_g).enumerate() {
                let y = f(*x, *g);
                for s in 0..S {
                    lanes[s][j] += y[s];
                }
            }
            self.lanes = lanes;
        }
    }

    fn close(&mut self) {
        for (total, lanes) in self.total.iter_mut().zip(&mut self.lanes) {
            *total += lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
            *lanes = [0.0; LANES];
        }
        self.added = 0;
    }
}
