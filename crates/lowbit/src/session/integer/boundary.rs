//! Where codes begin and end.

use lowbit_kernels::Kernels;
use rayon::prelude::*;

use super::fact;
use crate::error::Result;
use crate::op::{Attribute, Attributes, Fact, Op};
use crate::session::codes::Codes;
use crate::tensor::{DType, Tensor, element_count};

/// Elements that one task converts.
const CHUNK: usize = 1 << 16;

/// f32 values to codes (docs/quantization.md, equation 1), clamped to `lo..=hi`.
#[derive(Clone, Debug)]
pub struct Quantize {
    /// The codes.
    pub codes: Codes,
    /// Least code.
    pub lo: u8,
    /// Greatest code.
    pub hi: u8,
}

/// Codes to f32 values (docs/quantization.md, equation 2).
#[derive(Clone, Debug)]
pub struct Dequantize {
    /// The codes.
    pub codes: Codes,
}

/// int8 to the engine's u8 and back: the sign bit flipped.
#[derive(Clone, Debug)]
pub struct FlipSign {
    /// The type to make, [`DType::U8`] or [`DType::I8`].
    pub to: DType,
}

fn attributes(codes: Codes) -> Attributes {
    vec![("scale", Attribute::Float(codes.scale)), ("zero", Attribute::Int(i64::from(codes.zero)))]
}

impl Op for Quantize {
    fn name(&self) -> &'static str {
        "Quantize"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        fact(DType::U8, x[0].shape.clone())
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let mut out = vec![0u8; element_count(x[0].shape())?];
        let values = x[0].slice::<f32>()?;
        let Codes { scale, zero } = self.codes;
        values.par_chunks(CHUNK).zip(out.par_chunks_mut(CHUNK)).for_each(|(x, out)| {
            Kernels::best().quantize_u8(x, scale, zero, self.lo, self.hi, out);
        });
        Ok(vec![Tensor::new(x[0].shape(), out)?])
    }
    fn attributes(&self) -> Attributes {
        attributes(self.codes)
    }
}

impl Op for Dequantize {
    fn name(&self) -> &'static str {
        "Dequantize"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        fact(DType::F32, x[0].shape.clone())
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let mut out = vec![0f32; element_count(x[0].shape())?];
        let Codes { scale, zero } = self.codes;
        x[0].slice::<u8>()?.par_chunks(CHUNK).zip(out.par_chunks_mut(CHUNK)).for_each(|(x, out)| {
            Kernels::best().dequantize_u8(x, scale, zero, out);
        });
        Ok(vec![Tensor::new(x[0].shape(), out)?])
    }
    fn attributes(&self) -> Attributes {
        attributes(self.codes)
    }
    fn folds(&self) -> bool {
        false
    }
}

impl Op for FlipSign {
    fn name(&self) -> &'static str {
        "FlipSign"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        fact(self.to, x[0].shape.clone())
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = x[0].shape();
        Ok(vec![if self.to == DType::U8 {
            Tensor::new(
                shape,
                x[0].slice::<i8>()?.iter().map(|q| q.cast_unsigned() ^ 0x80).collect::<Vec<u8>>(),
            )?
        } else {
            Tensor::new(
                shape,
                x[0].slice::<u8>()?.iter().map(|q| (q ^ 0x80).cast_signed()).collect::<Vec<i8>>(),
            )?
        }])
    }
}
