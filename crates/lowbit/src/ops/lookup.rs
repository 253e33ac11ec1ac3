//! LookupDequantize: codes that index a table of reals.

use std::sync::Arc;

use super::binary::Arithmetic;
use super::cast::Cast;
use super::gather::Gather;
use super::generate::ConstantOfShape;
use super::quantize::{DEFAULT_AXIS, DequantizeLinear, axis, block, params, placement};
use super::shape::Shape;
use crate::error::{Result, invalid};
use crate::graph::{Builder, Graph};
use crate::op::{Attributes, Fact, Op, ReadOp, arity};
use crate::qparams::QParams;
use crate::tensor::{DType, Tensor};

pub(super) const LOWBIT_READERS: &[(&str, ReadOp)] =
    &[("LookupDequantize", |a| Ok(Arc::new(LookupDequantize { axis: axis(a)?, block: block(a)? })))];

/// `x = codebook[q] * scale`: codes of a format whose values are not equally far apart, such as
/// the quantiles of a normal distribution or the means of clusters.
///
/// Inputs: q in uint2, uint4 or uint8; the codebook in f32, with an entry for each code (4, 16 or
/// 256); scale in f32 as DequantizeLinear has it, of shape `[]`, `[channels]`, or blocked.
#[derive(Clone, Debug)]
pub struct LookupDequantize {
    /// The axis of per-channel and blocked scales, negative from the end.
    pub axis: i64,
    /// Elements that share a scale along the axis; 0 where scales are not blocked.
    pub block: usize,
}

impl Default for LookupDequantize {
    fn default() -> LookupDequantize {
        LookupDequantize { axis: DEFAULT_AXIS, block: 0 }
    }
}

impl LookupDequantize {
    /// The parameters of the codes without their codebook: what shares which scale.
    ///
    /// # Errors
    /// If the scale does not fit the codes.
    pub fn params(&self, codes: &Fact, scale: &Tensor) -> Result<QParams> {
        params(codes.rank(), DType::U8, (self.axis, self.block), scale, None)
    }

    /// The same in operators of the standard domain, of opset 21.
    fn body(&self, inputs: &[&Fact]) -> Result<Graph> {
        self.infer(inputs)?;
        let mut b = Builder::default();
        let [codes, codebook, scale] = [("codes", 0), ("codebook", 1), ("scale", 2)]
            .map(|(name, i)| b.input(name, Fact::new(inputs[i].dtype, inputs[i].shape.clone())));
        let index = b.apply("index", Arc::new(Cast { to: DType::I32 }), &[codes])?;
        let value = b.apply("value", Arc::new(Gather { axis: 0 }), &[codebook, index])?;
        // A scale for each code: that of ones.
        let shape = b.apply("shape", Arc::new(Shape { start: 0, end: None }), &[index])?;
        let one = ConstantOfShape { value: Tensor::vector(vec![1i8]) };
        let ones = b.apply("ones", Arc::new(one), &[shape])?;
        let dequantize = DequantizeLinear { axis: self.axis, block: self.block, dtype: None };
        let scales = b.apply("scales", Arc::new(dequantize), &[ones, scale])?;
        let y = b.apply("y", Arc::new(Arithmetic::Mul), &[value, scales])?;
        b.finish([("y".to_string(), y)])
    }
}

impl Op for LookupDequantize {
    fn name(&self) -> &'static str {
        "LookupDequantize"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn opset(&self) -> i64 {
        21
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        arity(x, 3, 3)?;
        if !matches!(x[0].dtype, DType::U2 | DType::U4 | DType::U8) {
            return Err(invalid!("codes are {}, not uint2, uint4 or uint8", x[0].dtype));
        }
        let entries = 1 << x[0].dtype.bits();
        let fits = x[1].known_shape().is_none_or(|shape| shape == [entries]);
        if x[1].dtype != DType::F32 || x[1].rank() != 1 || !fits {
            return Err(invalid!("the codebook is {}, not {entries} elements of f32", x[1]));
        }
        if x[2].dtype != DType::F32 {
            return Err(invalid!("the scale is {}, not f32", x[2].dtype));
        }
        Ok(vec![Fact::new(DType::F32, x[0].shape.clone())])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let facts: Vec<Fact> = x.iter().map(|t| Fact::of(t)).collect();
        self.infer(&facts.iter().collect::<Vec<_>>())?;
        let (codes, codebook) = (x[0].slice::<u8>()?, x[1].slice::<f32>()?);
        let params = self.params(&facts[0], x[2])?;
        let groups = params.scheme.granularity.groups(x[0].shape())?;
        if groups.count() != params.scale.len() {
            let (n, have) = (groups.count(), params.scale.len());
            return Err(invalid!("codes of shape {:?} have {n} groups, and the scale {have}", x[0].shape()));
        }
        let mut y = vec![0.0; codes.len()];
        for (run, group) in groups.runs() {
            for (y, &q) in y[run.clone()].iter_mut().zip(&codes[run]) {
                *y = codebook[usize::from(q)] * params.scale[group];
            }
        }
        Ok(vec![Tensor::new(x[0].shape(), y)?])
    }
    fn attributes(&self) -> Attributes {
        placement(self.axis, self.block, None)
    }
    fn folds(&self) -> bool {
        false
    }
    fn function(&self, inputs: &[&Fact]) -> Option<Result<Graph>> {
        Some(self.body(inputs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(op: &LookupDequantize, x: &[Tensor]) -> Result<Vec<f32>> {
        let y = op.eval(&x.iter().collect::<Vec<_>>())?;
        let facts: Vec<Fact> = x.iter().map(Fact::of).collect();
        let body = op.body(&facts.iter().collect::<Vec<_>>())?;
        assert_eq!(body.run(x)?, y, "{op:?}: {body}");
        assert!(body.applied().all(|(_, _, op, _)| op.domain().is_empty()), "{body}");
        y[0].to_f32()
    }

    #[test]
    fn codes_index_the_codebook() {
        let codes = Tensor::coded(DType::U2, &[2, 3], vec![0u8, 1, 2, 3, 2, 1]).unwrap();
        let codebook = Tensor::vector(vec![-1.0f32, -0.25, 0.5, 1.0]);
        let cases: [(i64, usize, &[usize], &[f32], [f32; 6]); 4] = [
            (1, 0, &[], &[2.0], [-2.0, -0.5, 1.0, 2.0, 1.0, -0.5]),
            (0, 0, &[2], &[1.0, 4.0], [-1.0, -0.25, 0.5, 4.0, 2.0, -1.0]),
            (-1, 0, &[3], &[1.0, 4.0, 2.0], [-1.0, -1.0, 1.0, 1.0, 2.0, -0.5]),
            (1, 2, &[2, 2], &[1.0, 2.0, 4.0, 8.0], [-1.0, -0.25, 1.0, 4.0, 2.0, -2.0]),
        ];
        for (axis, block, shape, scales, want) in cases {
            let op = LookupDequantize { axis, block };
            let scale = Tensor::new(shape, scales.to_vec()).unwrap();
            assert_eq!(run(&op, &[codes.clone(), codebook.clone(), scale]).unwrap(), want, "{op:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let codes = Tensor::coded(DType::U4, &[2, 3], vec![0u8; 6]).unwrap();
        let book = |entries: usize| Tensor::vector(vec![0f32; entries]);
        let one = Tensor::scalar(1f32);
        let cases = [
            ([codes.clone(), book(4), one.clone()], "the codebook is f32[4], not 16 elements"),
            ([codes.clone(), Tensor::vector(vec![0i32; 16]), one.clone()], "the codebook is int32[16]"),
            ([codes.clone(), book(16), Tensor::scalar(1i32)], "the scale is int32, not f32"),
            ([codes, book(16), book(4)], "have 3 groups, and the scale 4"),
            ([Tensor::vector(vec![0i8]), book(16), one], "codes are int8"),
        ];
        for (x, want) in cases {
            let message = LookupDequantize::default().eval(&x.each_ref()).unwrap_err().to_string();
            assert!(message.contains(want), "{message}");
        }
    }
}
