//! Where codes begin and end.

use lowbit_kernels::Kernels;

use crate::error::Result;
use crate::op::{
    Attribute, Attributes, Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine,
};
use crate::parallel;
use crate::session::codes::Codes;
use crate::session::images::fact;
use crate::tensor::{DType, Tensor};

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
        eval_by_routine(self, x)
    }
    fn prepare(&self, _: &[Operand<'_>]) -> Result<Prepared> {
        Prepared::routine(self.clone())
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
        eval_by_routine(self, x)
    }
    fn prepare(&self, _: &[Operand<'_>]) -> Result<Prepared> {
        Prepared::routine(self.clone())
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
        eval_by_routine(self, x)
    }
    fn prepare(&self, _: &[Operand<'_>]) -> Result<Prepared> {
        Prepared::routine(self.clone())
    }
}

impl Routine for Quantize {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        let (x, Codes { scale, zero }) = (x[0].f32()?, self.codes);
        parallel::chunks(y.u8()?, CHUNK, |i, y| {
            let x = &x[i * CHUNK..][..y.len()];
            Kernels::best().quantize_u8(x, scale, zero, self.lo, self.hi, y);
        });
        Ok(())
    }
}

impl Routine for Dequantize {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        let (x, Codes { scale, zero }) = (x[0].u8()?, self.codes);
        parallel::chunks(y.f32()?, CHUNK, |i, y| {
            Kernels::best().dequantize_u8(&x[i * CHUNK..][..y.len()], scale, zero, y);
        });
        Ok(())
    }
}

impl Routine for FlipSign {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        if self.to == DType::U8 {
            y.u8()?.iter_mut().zip(x[0].i8()?).for_each(|(y, q)| *y = q.cast_unsigned() ^ 0x80);
        } else {
            y.i8()?.iter_mut().zip(x[0].u8()?).for_each(|(y, q)| *y = (q ^ 0x80).cast_signed());
        }
        Ok(())
    }
}
