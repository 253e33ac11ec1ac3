//! Which input cells make an output cell of a resampled axis, and how much of
//! each: the formulas of ONNX `Resize`, in f32 as onnxruntime computes them.

/// How output cells come from input cells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// The nearest cell.
    Nearest(Nearest),
    /// Between the two nearest cells of each axis.
    Linear,
    /// Between the four nearest cells of each axis, by Keys' kernel.
    Cubic {
        /// The kernel's coefficient.
        a: f32,
        /// Cells outside have weight 0, and the others are scaled up, instead
        /// of the border's being repeated.
        exclude_outside: bool,
    },
}

macro_rules! named {
    ($(#[$meta:meta])* $type:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[$doc])* $variant,)* }

        impl $type {
            /// Every variant.
            pub const ALL: &[$type] = &[$($type::$variant),*];

            /// The name in ONNX.
            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name),* }
            }

            /// The variant of this ONNX name.
            pub fn parse(name: &str) -> Option<$type> {
                $type::ALL.iter().copied().find(|v| v.name() == name)
            }
        }
    };
}

named! {
    /// How a position becomes the nearest cell.
    Nearest {
        /// Halves go down.
        RoundPreferFloor = "round_prefer_floor",
        /// Halves go up.
        RoundPreferCeil = "round_prefer_ceil",
        /// Down.
        Floor = "floor",
        /// Up.
        Ceil = "ceil",
    }
}

named! {
    /// Where output cell `o` lies in the input, for sizes `n` and `m` of input
    /// and output and scale `s`.
    Coordinates {
        /// `(o + 0.5) / s - 0.5`.
        HalfPixel = "half_pixel",
        /// [`Coordinates::HalfPixel`], centred where `m` is not `n * s`:
        /// `n / 2 * (1 - m / (n * s)) + (o + 0.5) / s - 0.5`.
        HalfPixelSymmetric = "half_pixel_symmetric",
        /// [`Coordinates::HalfPixel`], and 0 where `m` is 1.
        PytorchHalfPixel = "pytorch_half_pixel",
        /// `o * (n - 1) / (m - 1)`, and 0 where `m` is 1.
        AlignCorners = "align_corners",
        /// `o / s`.
        Asymmetric = "asymmetric",
    }
}

/// One axis to resample.
pub(super) struct Resampling {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) scale: f32,
}

/// For each output cell, `each` input cells and their weights.
pub(super) struct Taps {
    pub(super) each: usize,
    pub(super) index: Vec<usize>,
    pub(super) weight: Vec<f32>,
}

impl Taps {
    /// The taps of an axis; `None` if it stays as it is.
    pub(super) fn new(mode: Mode, coordinates: Coordinates, axis: &Resampling) -> Option<Taps> {
        if axis.scale == 1.0 && axis.input == axis.output {
            return None;
        }
        let each = match mode {
            Mode::Nearest(_) => 1,
            Mode::Linear => 2,
            Mode::Cubic { .. } => 4,
        };
        let last = axis.input as i64 - 1;
        let within = |i: i64| i.clamp(0, last) as usize;
        let mut taps = Taps { each, index: vec![], weight: vec![] };
        for o in 0..axis.output {
            let at = position(coordinates, axis, o as f32);
            match mode {
                Mode::Nearest(rounding) => {
                    taps.index.push(within(nearest(rounding, at)));
                    taps.weight.push(1.0);
                }
                Mode::Linear => {
                    let at = at.clamp(0.0, last as f32);
                    let floor = at.floor();
                    taps.index.extend([within(floor as i64), within(floor as i64 + 1)]);
                    taps.weight.extend([1.0 - (at - floor), at - floor]);
                }
                Mode::Cubic { a, exclude_outside } => {
                    let floor = at.floor() as i64;
                    let mut w = cubic(at - at.floor(), a);
                    if exclude_outside {
                        let outside = |i: usize| !(0..=last).contains(&(floor - 1 + i as i64));
                        (0..4).filter(|&i| outside(i)).for_each(|i| w[i] = 0.0);
                        let sum: f32 = w.iter().sum();
                        w = w.map(|w| w / sum);
                    }
                    taps.index.extend((floor - 1..floor + 3).map(within));
                    taps.weight.extend(w);
                }
            }
        }
        Some(taps)
    }
}

fn position(coordinates: Coordinates, axis: &Resampling, o: f32) -> f32 {
    let (n, m, s) = (axis.input as f32, axis.output as f32, axis.scale);
    let half_pixel = (o + 0.5) / s - 0.5;
    match coordinates {
        Coordinates::HalfPixel => half_pixel,
        Coordinates::HalfPixelSymmetric => n / 2.0 * (1.0 - m / (s * n)) + (o + 0.5) / s - 0.5,
        Coordinates::PytorchHalfPixel if axis.output > 1 => half_pixel,
        Coordinates::AlignCorners if axis.output > 1 => o * (n - 1.0) / (m - 1.0),
        Coordinates::PytorchHalfPixel | Coordinates::AlignCorners => 0.0,
        Coordinates::Asymmetric => o / s,
    }
}

fn nearest(rounding: Nearest, at: f32) -> i64 {
    let down = at.floor();
    let cell = match rounding {
        Nearest::RoundPreferFloor if at - down <= 0.5 => down,
        Nearest::RoundPreferCeil if at - down < 0.5 => down,
        Nearest::Floor => down,
        Nearest::RoundPreferFloor | Nearest::RoundPreferCeil | Nearest::Ceil => at.ceil(),
    };
    cell as i64
}

/// Weights of the cells at distances -1, 0, 1 and 2, `t` being the distance
/// from cell 0 (Keys, 1981).
fn cubic(t: f32, a: f32) -> [f32; 4] {
    let near = |d: f32| ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
    let far = |d: f32| ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}
