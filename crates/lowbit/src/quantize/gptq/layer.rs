//! Layers as matrix products: where their weights lie, and which inputs these
//! are multiplied with.

use crate::error::{Result, invalid};
use crate::op::Op;
use crate::ops::conv::Conv;
use crate::ops::linear::{Gemm, MatMul};
use crate::tensor::Tensor;

/// Positions of one sample that are looked at.
pub const POSITIONS: usize = 32;

/// A layer that multiplies, for each group, a weight of `[rows][columns]` with inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The groups.
    pub groups: usize,
    /// Output channels of a group.
    pub rows: usize,
    /// Inputs of an output.
    pub columns: usize,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// With a weight of this shape.
    Conv(Conv, Vec<usize>),
    /// Weight `[rows, columns]`, or `[columns, rows]` if flipped.
    Matrix { flipped: bool },
}

impl Layer {
    /// `op` with a weight of shape `weight`; `None` if it is not such a layer.
    pub fn new(op: &dyn Op, weight: &[usize]) -> Option<Layer> {
        if let (Some(conv), [outputs, inputs @ ..]) = (op.is::<Conv>(), weight) {
            let (groups, columns) = (conv.group, inputs.iter().product());
            let kind = Kind::Conv(conv.clone(), weight.to_vec());
            return Some(Layer { groups, rows: outputs.checked_div(groups)?, columns, kind });
        }
        let [first, second] = *weight else { return None };
        let flipped = match (op.is::<Gemm>(), op.is::<MatMul>()) {
            (Some(gemm), _) => !gemm.trans_b,
            (_, Some(MatMul)) => true,
            _ => return None,
        };
        let (rows, columns) = if flipped { (second, first) } else { (first, second) };
        Some(Layer { groups: 1, rows, columns, kind: Kind::Matrix { flipped } })
    }

    /// What belongs to each input, `[groups][columns]` or `[columns]` of every
    /// group, at each element of the weight.
    pub fn spread(&self, inputs: &[f32]) -> Vec<f32> {
        let mut spread = vec![0.0; self.groups * self.rows * self.columns];
        let of_group = inputs.chunks_exact(self.columns.max(1)).cycle();
        for (group, inputs) in of_group.take(self.groups).enumerate() {
            for row in group * self.rows..(group + 1) * self.rows {
                inputs.iter().enumerate().for_each(|(column, x)| spread[self.at(row, column)] = *x);
            }
        }
        spread
    }

    /// Where a weight lies, by output channel of all groups and input of its group.
    pub fn at(&self, row: usize, column: usize) -> usize {
        match self.kind {
            Kind::Matrix { flipped: true } => column * self.rows + row,
            _ => row * self.columns + column,
        }
    }

    /// The inputs at some positions of each sample of `x`, `most` at most, and
    /// the number of positions: `[groups][columns][positions]`. Which positions
    /// is a matter of the sample's index alone, of which the first is `index`.
    ///
    /// # Errors
    /// If `x` does not fit the weight.
    pub fn inputs(&self, x: &Tensor, index: usize, most: usize) -> Result<(Vec<f32>, usize)> {
        let values: &[f32] = x.slice()?;
        let picked = |total: usize| -> Vec<(usize, usize)> {
            let of_sample = |i| positions(total, index + i).map(move |p| (i, p));
            (0..samples(x)).flat_map(of_sample).take(most).collect()
        };
        let rows = self.groups * self.columns;
        let mut inputs = vec![];
        let Kind::Conv(conv, weight) = &self.kind else {
            if x.shape().last() != Some(&rows) {
                return Err(invalid!("has shape {:?}; the weight takes {rows} values", x.shape()));
            }
            let total = values.len() / (samples(x) * rows).max(1);
            let picked = picked(total);
            for column in 0..rows {
                inputs.extend(picked.iter().map(|(i, p)| values[(i * total + p) * rows + column]));
            }
            return Ok((inputs, picked.len()));
        };
        let g = conv.geometry(x.shape(), weight)?;
        let picked = picked(g.outputs());
        let [depth, height, width] = &g.axes;
        let (channels, cells, taps) = (g.group * g.in_channels, g.inputs(), g.taps());
        inputs.resize(rows * picked.len(), 0.0);
        for t in 0..taps {
            let tap =
                [t / (height.kernel * width.kernel), t / width.kernel % height.kernel, t % width.kernel];
            let cell = |p: usize| {
                let at =
                    [p / (height.output * width.output), p / width.output % height.output, p % width.output];
                let [d, h, w] =
                    [depth.at(at[0], tap[0])?, height.at(at[1], tap[1])?, width.at(at[2], tap[2])?];
                Some((d * height.input + h) * width.input + w)
            };
            let seen: Vec<Option<usize>> =
                picked.iter().map(|(i, p)| Some(i * channels * cells + cell(*p)?)).collect();
            for (channel, rows) in inputs.chunks_exact_mut((taps * picked.len()).max(1)).enumerate() {
                let row = &mut rows[t * picked.len()..][..picked.len()];
                for (y, cell) in row.iter_mut().zip(&seen) {
                    *y = cell.map_or(0.0, |cell| values[channel * cells + cell]);
                }
            }
        }
        Ok((inputs, picked.len()))
    }
}

/// How many samples `x` holds.
pub fn samples(x: &Tensor) -> usize {
    if x.rank() > 1 { x.shape()[0] } else { 1 }
}

/// Positions out of `total`, spread evenly (multiples of the golden ratio),
/// others for each sample.
pub fn positions(total: usize, sample: usize) -> impl Iterator<Item = usize> {
    const RATIO: u64 = 0x9E37_79B9_7F4A_7C15;
    (0..total.min(POSITIONS)).map(move |i| {
        if total <= POSITIONS {
            return i;
        }
        let fraction = ((sample * POSITIONS + i) as u64).wrapping_mul(RATIO);
        ((u128::from(fraction) * total as u128) >> 64) as usize
    })
}
