//! Modules that move values.

use super::module::Module;
use super::scope::Scope;
use crate::error::{Result, invalid};
use crate::graph::Var;
use crate::ops::resize::{Coordinates, Mode, Nearest, Resize, Target};
use crate::ops::shape::{Dropout as DropoutOp, Flatten as FlattenOp};

/// `x`
#[derive(Clone, Debug, Default)]
pub struct Identity;

impl Module for Identity {
    fn forward(&self, _: &mut Scope<'_>, x: Var) -> Result<Var> {
        Ok(x)
    }
}

/// `x`: dropout as it is in inference ([`Network`](crate::train::Network) makes it that of training).
#[derive(Clone, Debug)]
pub struct Dropout {
    /// The probability with which training drops an element.
    pub p: f32,
}

impl Default for Dropout {
    fn default() -> Dropout {
        Dropout { p: 0.5 }
    }
}

impl Module for Dropout {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        if g.is_quantizing() { Ok(x) } else { g.layer(DropoutOp::new(self.p), &[x]) }
    }
}

/// The axes from `start_dim` to `end_dim` as one.
#[derive(Clone, Debug)]
pub struct Flatten {
    /// The first; negative ones count from the end.
    pub start_dim: i64,
    /// The last.
    pub end_dim: i64,
}

impl Default for Flatten {
    fn default() -> Flatten {
        Flatten { start_dim: 1, end_dim: -1 }
    }
}

impl Module for Flatten {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let shape = g.fact(x).shape.clone();
        let rank = shape.len();
        let axis = |i: i64| {
            usize::try_from(if i < 0 { i + rank as i64 } else { i }).ok().filter(|&i| i < rank.max(1))
        };
        let (Some(start), Some(end)) = (axis(self.start_dim), axis(self.end_dim)) else {
            return Err(
                invalid!("flattens axes {}..{} of rank {rank}", self.start_dim, self.end_dim).at(g.place())
            );
        };
        if start == 1 && end + 1 == rank {
            return g.layer(FlattenOp { axis: 1 }, &[x]);
        }
        let mut sizes = vec![0; start];
        sizes.push(-1);
        for d in shape.iter().skip(end + 1) {
            let known =
                d.known().ok_or_else(|| invalid!("the axes after those flattened have no fixed size"));
            sizes.push(known.map_err(|e| e.at(g.place()))? as i64);
        }
        if start > end {
            return Err(invalid!("flattens axes {start}..{end}").at(g.place()));
        }
        g.reshape(x, &sizes)
    }
}

/// Images, or lines or volumes, with more cells: nearest neighbours, or between the
/// neighbours.
#[derive(Clone, Debug)]
pub struct Upsample {
    target: To,
    linear: bool,
    align_corners: bool,
}

#[derive(Clone, Debug)]
enum To {
    Scale(Vec<f32>),
    Sizes(Vec<usize>),
}

impl Upsample {
    /// As many times the cells along every spatial axis: one number for each, or one for
    /// all.
    pub fn scale(factors: &[f32]) -> Upsample {
        Upsample { target: To::Scale(factors.to_vec()), linear: false, align_corners: false }
    }

    /// To these sizes of the spatial axes.
    pub fn size(sizes: &[usize]) -> Upsample {
        Upsample { target: To::Sizes(sizes.to_vec()), linear: false, align_corners: false }
    }

    /// Between the neighbours (PyTorch's `linear`, `bilinear` and `trilinear`), the outermost
    /// cells kept in place if corners are aligned.
    pub fn linear(self, align_corners: bool) -> Upsample {
        Upsample { linear: true, align_corners, ..self }
    }
}

impl Module for Upsample {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let spatial = g.fact(x).rank().saturating_sub(2);
        let fits = |n: usize| match n == spatial {
            true => Ok(()),
            false => Err(invalid!("lists {n} sizes for {spatial} axes").at(g.place())),
        };
        let target = match &self.target {
            To::Scale(factors) => {
                let factors = if factors.len() == 1 { &vec![factors[0]; spatial] } else { factors };
                fits(factors.len())?;
                Target::Scales([&[1.0; 2], &factors[..]].concat())
            }
            To::Sizes(sizes) => {
                fits(sizes.len())?;
                Target::Sizes(sizes.clone())
            }
        };
        let axes = match target {
            Target::Sizes(_) => Some((2..2 + spatial as i64).collect()),
            _ => None,
        };
        let (mode, coordinates) = match (self.linear, self.align_corners) {
            (false, _) => (Mode::Nearest(Nearest::Floor), Coordinates::Asymmetric),
            (true, false) => (Mode::Linear, Coordinates::HalfPixel),
            (true, true) => (Mode::Linear, Coordinates::AlignCorners),
        };
        g.layer(Resize { mode, coordinates, axes, target }, &[x])
    }
}
