//! Channels-last layouts: transposes at the borders of integer regions, which
//! cancel inside them.

use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Builder, Var};
use crate::op::Op;
use crate::ops::layout::{Concat, Transpose};
use crate::ops::pad::Pad;
use crate::ops::slice::Slice;
use crate::tensor::Tensor;

const TO_LAST: [usize; 4] = [0, 2, 3, 1];
const TO_FIRST: [usize; 4] = [0, 3, 1, 2];

/// `v` (NCHW) as NHWC.
pub fn channels_last(b: &mut Builder, v: Var) -> Result<Var> {
    if let Some((t, x)) = b.so_far().made_by::<Transpose>(v)
        && t.perm.as_deref() == Some(&TO_FIRST)
    {
        return Ok(x[0]);
    }
    let name = format!("{}_nhwc", b.name(v));
    b.apply(&name, Arc::new(Transpose { perm: Some(TO_LAST.to_vec()) }), &[v])
}

/// `v` (NHWC) as NCHW.
pub fn channels_first(b: &mut Builder, v: Var) -> Result<Var> {
    let name = format!("{}_nchw", b.name(v));
    b.apply(&name, Arc::new(Transpose { perm: Some(TO_FIRST.to_vec()) }), &[v])
}

/// Whether an operator makes NCHW of NHWC.
pub fn is_channels_first(op: &dyn Op) -> bool {
    op.is::<Transpose>().is_some_and(|t| t.perm.as_deref() == Some(&TO_FIRST))
}

/// Whether `v` is the NCHW form of an NHWC value.
pub fn is_first_of_last(b: &Builder, v: Var) -> bool {
    b.so_far().made_by::<Transpose>(v).is_some_and(|(t, _)| t.perm.as_deref() == Some(&TO_FIRST))
}

/// `op`, which moves the values of its first operand: of the NHWC form, where the
/// operand is the NCHW form of one, and it pads or cuts out ranges.
pub fn moved(b: &mut Builder, name: &str, op: &Arc<dyn Op>, operands: &[Var]) -> Result<Var> {
    let plain = |b: &mut Builder| b.apply(name, op.clone(), operands);
    if !is_first_of_last(b, operands[0]) {
        return plain(b);
    }
    if let Some(pad) = op.is::<Pad>() {
        let Some(axes) = pad.axes.clone().map_or(last_axes(&[0, 1, 2, 3]), |axes| last_axes(&axes)) else {
            return plain(b);
        };
        let x = channels_last(b, operands[0])?;
        let mut operands = operands.to_vec();
        operands[0] = x;
        let y = b.apply(name, Arc::new(Pad { axes: Some(axes), ..pad.clone() }), &operands)?;
        return channels_first(b, y);
    }
    let starts = operands.get(1).and_then(|v| b.so_far().constant(*v));
    if let (Some(slice), Some(starts)) = (op.is::<Slice>(), starts) {
        let given = operands.get(3).filter(|v| !b.fact(**v).is_absent());
        let axes = match given.map(|v| b.so_far().constant(*v)) {
            Some(axes) => axes.and_then(|t| t.integers().ok()),
            None => Some((0..starts.len() as i64).collect()),
        };
        let Some(axes) = axes.and_then(|axes| last_axes(&axes)) else { return plain(b) };
        let mut operands = operands.to_vec();
        operands[0] = channels_last(b, operands[0])?;
        let axes = b.constant(&format!("{name}_axes"), Tensor::vector(axes));
        match operands.get_mut(3) {
            Some(operand) => *operand = axes,
            None => operands.push(axes),
        }
        let y = b.apply(name, Arc::new(*slice), &operands)?;
        return channels_first(b, y);
    }
    plain(b)
}

/// Where NHWC has these axes of NCHW, unless there are none such.
fn last_axes(axes: &[i64]) -> Option<Vec<i64>> {
    let last = |&axis: &i64| {
        let axis = usize::try_from(if axis < 0 { axis + 4 } else { axis }).ok()?;
        TO_LAST.iter().position(|&a| a == axis).map(|a| a as i64)
    };
    axes.iter().map(last).collect()
}

/// `op`, a concatenation, of parts given as NCHW or of any other rank.
pub fn concat(b: &mut Builder, name: &str, op: &Arc<dyn Op>, parts: &[Var]) -> Result<Var> {
    let images = parts.iter().all(|v| b.fact(*v).rank() == 4);
    let any_last = parts.iter().any(|v| is_first_of_last(b, *v));
    let Some(concat) = op.is::<Concat>().filter(|_| images && any_last) else {
        return b.apply(name, op.clone(), parts);
    };
    let axis = usize::try_from(if concat.axis < 0 { concat.axis + 4 } else { concat.axis }).unwrap_or(0);
    let axis = TO_LAST.iter().position(|&a| a == axis).unwrap_or(0) as i64;
    let parts = parts.iter().map(|v| channels_last(b, *v)).collect::<Result<Vec<_>>>()?;
    let y = b.apply(name, Arc::new(Concat { axis }), &parts)?;
    channels_first(b, y)
}
