//! One number for each axis.

/// What sizes are given as: one number for all of `D` axes, or one for each.
pub trait Each<const D: usize> {
    /// One for each axis.
    fn each(self) -> [usize; D];
}

impl<const D: usize> Each<D> for usize {
    fn each(self) -> [usize; D] {
        [self; D]
    }
}

impl<const D: usize> Each<D> for [usize; D] {
    fn each(self) -> [usize; D] {
        self
    }
}
