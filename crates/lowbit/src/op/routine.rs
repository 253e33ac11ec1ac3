//! Operators prepared to run many times: known shapes, given buffers, no
//! allocation.

use std::fmt;

use crate::error::{Result, invalid};
use crate::tensor::{DType, Tensor};

/// What is known of an operand before a [`Routine`] is made.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: &'a [usize],
    /// The value, where the model holds it.
    pub constant: Option<&'a Tensor>,
}

impl<'a> Operand<'a> {
    /// What is known of a tensor's type and shape.
    pub fn of(t: &'a Tensor) -> Operand<'a> {
        Operand { dtype: t.dtype(), shape: t.shape(), constant: None }
    }
}

/// How a plan runs an operator.
#[derive(Debug)]
pub enum Prepared {
    /// By [`Op::eval`](super::Op::eval).
    Eval,
    /// Not at all: the result is operand 0 under another shape.
    Alias,
    /// Not at all, as far as its operands are made where they lie in the result:
    /// one after the other along an axis.
    Join {
        /// The axis.
        axis: usize,
    },
    /// By a routine that writes one result.
    Routine(Box<dyn Routine>),
}

impl Prepared {
    /// The plan's form of `routine`.
    pub fn routine(routine: impl Routine) -> Result<Prepared> {
        Ok(Prepared::Routine(Box::new(routine)))
    }
}

/// An operator at known shapes, with all that depends on shapes and constants
/// alone already computed.
pub trait Routine: fmt::Debug + Send + Sync + 'static {
    /// Writes the result for these operands, which have the types and shapes
    /// that the routine was made for.
    ///
    /// # Errors
    /// If an operand or the result has another type.
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, scratch: &mut [u8]) -> Result<()>;

    /// Bytes of any value that [`Routine::run`] is given to work with.
    fn scratch(&self) -> usize {
        0
    }

    /// Whether the result's rows may lie apart ([`ViewMut::pitch`]).
    fn strided(&self) -> bool {
        false
    }

    /// The algorithm chosen for these shapes, in a few words.
    fn algorithm(&self) -> &'static str {
        ""
    }
}

/// The elements of an operand.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// f32 values.
    F32(&'a [f32]),
    /// u8 values.
    U8(&'a [u8]),
    /// i8 values.
    I8(&'a [i8]),
    /// A constant of another type, known since the routine was made.
    Other,
}

impl<'a> View<'a> {
    /// The elements of `t`.
    pub fn of(t: &'a Tensor) -> View<'a> {
        match t.dtype() {
            DType::F32 => t.slice().map(View::F32),
            DType::U8 => t.slice().map(View::U8),
            DType::I8 => t.slice().map(View::I8),
            _ => return View::Other,
        }
        .unwrap_or(View::Other)
    }
}

/// Where a result goes.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// The elements, from the first to the last one written.
    pub data: DataMut<'a>,
    /// Elements from one row of the last axis to the next.
    pub pitch: usize,
}

/// Elements to be written.
#[derive(Debug)]
pub enum DataMut<'a> {
    /// f32 values.
    F32(&'a mut [f32]),
    /// u8 values.
    U8(&'a mut [u8]),
    /// i8 values.
    I8(&'a mut [i8]),
}

/// The typed slices of a view: one method for each element type.
macro_rules! typed {
    ($($method:ident, $variant:ident, $t:ty;)*) => {
        impl<'a> View<'a> {
            $(#[doc = concat!("The elements, which are ", stringify!($t), ".")]
            ///
            /// # Errors
            /// If they are not.
            pub fn $method(self) -> Result<&'a [$t]> {
                match self {
                    View::$variant(x) => Ok(x),
                    _ => Err(invalid!(concat!("an operand is not ", stringify!($t)))),
                }
            })*
        }

        impl<'a> ViewMut<'a> {
            $(#[doc = concat!("The elements, which are ", stringify!($t), ".")]
            ///
            /// # Errors
            /// If they are not.
            pub fn $method(self) -> Result<&'a mut [$t]> {
                match self.data {
                    DataMut::$variant(y) => Ok(y),
                    _ => Err(invalid!(concat!("the result is not ", stringify!($t)))),
                }
            })*
        }
    };
}

typed! {
    f32, F32, f32;
    u8, U8, u8;
    i8, I8, i8;
}

/// The single output of an operator that has a routine for these operands:
/// [`Op::eval`](super::Op::eval) by way of [`Op::prepare`](super::Op::prepare).
///
/// # Errors
/// If the operator has no routine for them, or it fails.
pub fn eval_by_routine(op: &dyn super::Op, x: &[&Tensor]) -> Result<Vec<Tensor>> {
    let facts: Vec<_> = x.iter().map(|t| super::Fact::of(t)).collect();
    let made = op.infer(&facts.iter().collect::<Vec<_>>())?;
    let operands: Vec<Operand> = x.iter().map(|t| Operand::of(t)).collect();
    let (Prepared::Routine(routine), [made]) = (op.prepare(&operands)?, made.as_slice()) else {
        return Err(invalid!("has no routine for these operands"));
    };
    let shape = made.known_shape().ok_or_else(|| invalid!("the shape of the result is not known"))?;
    let pitch = shape.last().copied().unwrap_or(1);
    let mut scratch = vec![0; routine.scratch()];
    let views: Vec<View> = x.iter().map(|t| View::of(t)).collect();
    macro_rules! run {
        ($t:ty, $variant:ident) => {{
            let mut y = vec![<$t>::default(); crate::tensor::element_count(&shape)?];
            routine.run(&views, ViewMut { data: DataMut::$variant(&mut y), pitch }, &mut scratch)?;
            Tensor::new(&shape, y)
        }};
    }
    Ok(vec![match made.dtype {
        DType::F32 => run!(f32, F32)?,
        DType::U8 => run!(u8, U8)?,
        DType::I8 => run!(i8, I8)?,
        other => return Err(invalid!("no routine makes {other}")),
    }])
}
