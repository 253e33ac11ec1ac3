//! Weights rounded together: the error of one makes up for those of others.

mod feedback;
mod layer;

use std::ops::Range;

use lowbit_kernels::Matrix;
use rayon::prelude::*;

use self::feedback::{Column, Feedback, ROWS};
pub(super) use self::layer::Layer;
use self::layer::samples;
use super::grid::Grid;
use crate::error::{Result, invalid};
use crate::ops::product::{Operand, matmul};
use crate::tensor::Tensor;

/// Inputs of an output whose errors may make up for one another.
const MOST_COLUMNS: usize = 1024;

/// Times that each code of few bits is chosen anew after all others. The finer
/// choice of codes of 8 bits would follow the few positions looked at: the top-1
/// of MobileNet v1 0.25 fell from 59.0 to 57.5 %.
const SWEEPS: usize = 4;

/// Positions of all samples that are looked at.
const MOST_POSITIONS: usize = 2048;

/// Second moments of a layer's inputs over the calibration data, by which the
/// codes of its weight are chosen (docs/quantization.md, equation 19).
///
/// They are taken at no more than 32 positions of a sample, and 2048 in all.
/// Layers of more than 1024 inputs an output are taken in parts, so that no
/// input needs more than 4 KB.
#[derive(Clone, Debug, PartialEq)]
pub struct InputMoments {
    layer: Layer,
    samples: usize,
    positions: usize,
    /// Sums of `x x'`: for each block of inputs a square matrix.
    products: Vec<f32>,
}

/// Inputs of one group that are looked at together.
struct Block {
    group: usize,
    /// Of the inputs of the group.
    columns: Range<usize>,
    /// Where their products lie.
    products: Range<usize>,
}

impl InputMoments {
    /// Those of no samples; `None` if the layer has no inputs.
    pub(super) fn new(layer: Layer) -> Option<InputMoments> {
        let mut moments = InputMoments { layer, samples: 0, positions: 0, products: vec![] };
        moments.products = vec![0.0; moments.blocks().last()?.products.end];
        Some(moments)
    }

    fn blocks(&self) -> Vec<Block> {
        let Layer { groups, columns: n, .. } = self.layer;
        let width = n.div_ceil(n.div_ceil(MOST_COLUMNS).max(1)).max(1);
        let starts = (0..groups).flat_map(|group| (0..n).step_by(width).map(move |start| (group, start)));
        let mut end = 0;
        starts
            .map(|(group, start)| {
                let columns = start..(start + width).min(n);
                let first = end;
                end += columns.len() * columns.len();
                Block { group, columns, products: first..end }
            })
            .collect()
    }

    /// Takes a batch of inputs into account.
    ///
    /// # Errors
    /// If it does not fit the weight.
    pub fn observe(&mut self, x: &Tensor) -> Result<()> {
        let (inputs, positions) = self.layer.inputs(x, self.samples, MOST_POSITIONS - self.positions)?;
        self.samples += samples(x);
        self.positions += positions;
        for Block { group, columns, products } in self.blocks() {
            let first = group * self.layer.columns + columns.start;
            let x = Matrix::new(&inputs[first * positions..], columns.len(), positions);
            matmul(x, Operand::Transposed(x), true, &mut self.products[products], false);
        }
        Ok(())
    }

    /// The mean square of each input, `[groups][columns]`; `None` if nothing
    /// but 0 was seen, or what is not finite.
    fn mean_squares(&self) -> Option<Vec<f32>> {
        let of_block = |Block { columns, products, .. }: Block| {
            let (n, products) = (columns.len(), &self.products[products]);
            (0..n).map(move |i| products[i * n + i] / self.positions.max(1) as f32)
        };
        let squares: Vec<f32> = self.blocks().into_iter().flat_map(of_block).collect();
        let seen = squares.iter().all(|x| x.is_finite()) && squares.iter().any(|x| *x > 0.0);
        seen.then_some(squares)
    }

    /// The root mean square of each input; `None` if nothing but 0 was seen.
    pub fn root_mean_squares(&self) -> Option<Vec<f32>> {
        Some(self.mean_squares()?.into_iter().map(f32::sqrt).collect())
    }

    /// What the squared error of each element of the weight counts: the mean
    /// square of the input that it is multiplied with. `None` if nothing but 0
    /// was seen.
    pub fn importance(&self) -> Option<Vec<f32>> {
        Some(self.layer.spread(&self.mean_squares()?))
    }

    /// The sum of squared errors of the layer's outputs at the positions seen,
    /// if the weight's elements are wrong by `errors`.
    pub(super) fn output_error(&self, errors: &[f32]) -> f64 {
        let layer = &self.layer;
        let of_block = |Block { group, columns, products }: Block| {
            let n = columns.len();
            let rows = group * layer.rows..(group + 1) * layer.rows;
            let e: Vec<f32> =
                rows.flat_map(|row| columns.clone().map(move |c| errors[layer.at(row, c)])).collect();
            let mut product = vec![0.0; e.len()];
            let (left, h) = (Matrix::new(&e, layer.rows, n), Matrix::new(&self.products[products], n, n));
            matmul(left, Operand::Plain(h), false, &mut product, true);
            e.iter().zip(product).map(|(e, p)| f64::from(e * p)).sum::<f64>()
        };
        self.blocks().into_iter().map(of_block).sum()
    }

    /// What belongs to each input at each element of the weight.
    pub(super) fn spread(&self, inputs: &[f32]) -> Vec<f32> {
        self.layer.spread(inputs)
    }

    /// The values that codes stand for in the place of `weight`: for each
    /// output channel `w` and block of inputs, `(w - q) H (w - q)'` is at most
    /// what the nearest codes give. `H` are the moments with 1 % of their mean
    /// diagonal element added to the diagonal.
    ///
    /// # Errors
    /// If the moments are not finite.
    pub fn rounded(&self, weight: &Tensor, grid: &Grid) -> Result<Tensor> {
        let (layer, w) = (&self.layer, weight.to_f32()?);
        let groups = grid.scheme().granularity.groups(weight.shape())?;
        let sweeps = if grid.scheme().format.bits() < 8 { SWEEPS } else { 0 };
        let parts = self.blocks().into_par_iter().map(|Block { group, columns, products }| {
            let Some(feedback) = self.feedback(&self.products[products], columns.len())? else {
                return Ok(vec![]);
            };
            let (first, end) = (group * layer.rows, (group + 1) * layer.rows);
            let part = |first: usize| {
                let rows = first..end.min(first + ROWS);
                let at = |row: usize, column: usize| layer.at(first + row, columns.start + column);
                let nearest = |row: usize, column: usize, x: f32| grid.nearest(groups.of(at(row, column)), x);
                let values = feedback.round(rows.len(), |row, column| w[at(row, column)], nearest, sweeps);
                let placed = |(column, values): (usize, Column)| {
                    (0..rows.len()).map(move |row| (row, column, values[row]))
                };
                let placed = values.into_iter().enumerate().flat_map(placed);
                placed.map(|(row, column, value)| (at(row, column), value)).collect::<Vec<_>>()
            };
            Ok((first..end).into_par_iter().step_by(ROWS).flat_map_iter(part).collect())
        });
        let mut values = grid.fake_quantize(weight)?.to_f32()?;
        for (i, value) in parts.collect::<Result<Vec<_>>>()?.into_iter().flatten() {
            values[i] = value;
        }
        Tensor::new(weight.shape(), values)
    }

    /// What makes up for errors, by `n` by `n` products; `None` if all are 0.
    fn feedback(&self, products: &[f32], n: usize) -> Result<Option<Feedback>> {
        let unit = (0..n).map(|i| f64::from(products[i * n + i])).sum::<f64>() / n as f64;
        if !unit.is_finite() {
            return Err(invalid!("saw inputs that are not finite, or too great to be squared"));
        }
        let moments = || products.iter().map(|x| (f64::from(*x) / unit) as f32).collect();
        Ok((unit > 0.0).then(|| Feedback::new(moments(), n)))
    }
}

#[cfg(test)]
mod tests;
