//! Numbers that look random and are the same on every machine.

/// SplitMix64 (Steele et al., "Fast splittable pseudorandom number
/// generators", 2014).
#[derive(Clone, Copy, Debug)]
pub struct SplitMix {
    state: u64,
}

impl SplitMix {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> SplitMix {
        SplitMix { state: seed }
    }

    /// The sequence of several numbers together, such as a seed, an epoch and a sample.
    pub fn of(numbers: &[u64]) -> SplitMix {
        let mixed = |state: u64, n: &u64| SplitMix { state: state ^ n }.next_u64();
        SplitMix { state: numbers.iter().fold(0, mixed) }
    }

    /// Any 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number from -1 to below 1.
    #[cfg(test)]
    pub fn signed_unit(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// A number from 0 to below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// The numbers from 0 to below `n` in some order (Fisher-Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }

    /// Puts `items` in some order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// A tensor of numbers from -1 to below 1.
#[cfg(test)]
pub fn values(seed: u64, shape: &[usize]) -> crate::tensor::Tensor {
    let mut numbers = SplitMix::new(seed);
    let count = shape.iter().product();
    crate::tensor::Tensor::new(shape, (0..count).map(|_| numbers.signed_unit()).collect()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_differ_and_repeat() {
        // The first outputs of the reference implementation for seed 1234567.
        let mut r = SplitMix::new(1_234_567);
        assert_eq!([r.next_u64(), r.next_u64()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        let draw = |numbers: &[u64]| SplitMix::of(numbers).next_u64();
        assert_eq!(draw(&[1, 2, 3]), draw(&[1, 2, 3]));
        assert!(draw(&[1, 2, 3]) != draw(&[1, 3, 2]) && draw(&[0, 0]) != draw(&[0]));
        let mut order = SplitMix::new(7).permutation(100);
        assert!(order.windows(2).any(|w| w[0] > w[1]));
        order.sort_unstable();
        assert!(order.into_iter().eq(0..100));
        assert!((0..1000).all(|_| r.below(3) < 3));
    }
}
