//! The geometry of sliding windows, shared by convolution and pooling.

use std::ops::Range;

use crate::error::{Error, Result, invalid};
use crate::op::{Attribute, Attributes, Dim, Reading};

/// How the input is padded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Cells before and after each axis; empty means none.
    Explicit(Vec<(usize, usize)>),
    /// As many that `output = ceil(input / stride)`, an odd one after.
    SameUpper,
    /// As many that `output = ceil(input / stride)`, an odd one before.
    SameLower,
    /// None.
    Valid,
}

/// Strides, dilations and padding of a window, one entry for each spatial
/// axis; empty lists stand for ONNX's defaults of 1, 1 and 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Steps between windows.
    pub strides: Vec<usize>,
    /// Steps between the taps of a window.
    pub dilations: Vec<usize>,
    /// Cells added around the input.
    pub padding: Padding,
}

impl Default for Window {
    fn default() -> Window {
        Window { strides: vec![], dilations: vec![], padding: Padding::Explicit(vec![]) }
    }
}

/// One axis of a window at a known input size: output `o` reads inputs
/// `o * stride + t * dilation - before` for taps `t` in `0..kernel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Input size.
    pub input: usize,
    /// Number of taps.
    pub kernel: usize,
    /// Step between windows.
    pub stride: usize,
    /// Step between taps.
    pub dilation: usize,
    /// Padding before the input.
    pub before: usize,
    /// Padding after the input.
    pub after: usize,
    /// Output size.
    pub output: usize,
}

impl Axis {
    /// An axis that windows leave as it is.
    pub const UNIT: Axis =
        Axis { input: 1, kernel: 1, stride: 1, dilation: 1, before: 0, after: 0, output: 1 };

    /// Cells from the first tap to the last, both included.
    pub fn span(&self) -> usize {
        self.dilation * (self.kernel - 1) + 1
    }

    /// The outputs whose tap `t` lies within the input.
    pub fn inside(&self, t: usize) -> Range<usize> {
        let at = t * self.dilation;
        let start = self.before.saturating_sub(at).div_ceil(self.stride);
        let end = (self.input + self.before).saturating_sub(at).div_ceil(self.stride);
        let end = end.min(self.output);
        start.min(end)..end
    }

    /// The taps of output `o` that lie within `-before..input + after`.
    pub fn taps_padded(&self, o: usize) -> Range<usize> {
        let end = (self.input + self.before + self.after).saturating_sub(o * self.stride);
        0..end.div_ceil(self.dilation).min(self.kernel)
    }

    /// The taps of output `o` that lie within the input.
    pub fn taps(&self, o: usize) -> Range<usize> {
        let at = o * self.stride;
        let start = self.before.saturating_sub(at).div_ceil(self.dilation);
        let end = (self.input + self.before).saturating_sub(at).div_ceil(self.dilation).min(self.kernel);
        start.min(end)..end
    }

    /// The input that tap `t` of output `o` reads, if it is not padding.
    pub fn at(&self, o: usize, t: usize) -> Option<usize> {
        (o * self.stride + t * self.dilation).checked_sub(self.before).filter(|&i| i < self.input)
    }
}

/// `y[i] = x[i * stride]` for each `y[i]` that has such an `x`.
#[inline(always)]
pub fn copy_steps<T: Copy>(y: &mut [T], x: &[T], stride: usize) {
    /// Elements that are written at once.
    const LANES: usize = 16;
    match stride {
        1 => y.iter_mut().zip(x).for_each(|(y, x)| *y = *x),
        2 if y.len() >= LANES && x.len() >= 2 * y.len() => {
            let last = y.len() - LANES;
            for at in (0..y.len()).step_by(LANES) {
                // The last step may overlap the one before.
                let at = at.min(last);
                let x: &[T; 2 * LANES] = x[2 * at..].first_chunk().expect("two for each that is written");
                let y: &mut [T; LANES] = y[at..].first_chunk_mut().expect("y has so many");
                for j in 0..LANES {
                    y[j] = x[2 * j];
                }
            }
        }
        _ => y.iter_mut().zip(x.iter().step_by(stride)).for_each(|(y, x)| *y = *x),
    }
}

/// Sizes, strides and paddings stay below this, so that sums and products of
/// two of them cannot overflow.
const LIMIT: usize = 1 << 31;

impl Window {
    /// Takes `strides`, `dilations`, `pads` and `auto_pad` from an ONNX node.
    ///
    /// # Errors
    /// If a value is negative, zero where it must not be, or unknown.
    pub fn read(r: &mut Reading) -> Result<Window> {
        let pads = r.sizes("pads")?.unwrap_or_default();
        let auto_pad = r.text("auto_pad")?.unwrap_or_else(|| "NOTSET".into());
        let padding = match auto_pad.as_str() {
            "NOTSET" => Padding::Explicit(pairs(&pads)?),
            _ if pads.iter().any(|&p| p > 0) => {
                return Err(invalid!("attributes auto_pad = {auto_pad} and pads exclude each other"));
            }
            "SAME_UPPER" => Padding::SameUpper,
            "SAME_LOWER" => Padding::SameLower,
            "VALID" => Padding::Valid,
            _ => return Err(invalid!("attribute auto_pad = {auto_pad} is not one that ONNX defines")),
        };
        let window = Window {
            strides: r.sizes("strides")?.unwrap_or_default(),
            dilations: r.sizes("dilations")?.unwrap_or_default(),
            padding,
        };
        window.check()?;
        Ok(window)
    }

    /// The attributes that [`Window::read`] reads.
    pub fn attributes(&self) -> Attributes {
        let ints = |x: &[usize]| Attribute::Ints(x.iter().map(|&x| x as i64).collect());
        let mut a = vec![];
        if !self.dilations.is_empty() {
            a.push(("dilations", ints(&self.dilations)));
        }
        if !self.strides.is_empty() {
            a.push(("strides", ints(&self.strides)));
        }
        let auto = |s: &str| ("auto_pad", Attribute::Text(s.into()));
        match &self.padding {
            Padding::Explicit(pads) if pads.is_empty() => {}
            Padding::Explicit(pads) => {
                let ends = pads.iter().map(|p| p.0).chain(pads.iter().map(|p| p.1));
                a.push(("pads", ints(&ends.collect::<Vec<_>>())));
            }
            Padding::SameUpper => a.push(auto("SAME_UPPER")),
            Padding::SameLower => a.push(auto("SAME_LOWER")),
            Padding::Valid => a.push(auto("VALID")),
        }
        a
    }

    fn check(&self) -> Result<()> {
        for (name, values) in [("strides", &self.strides), ("dilations", &self.dilations)] {
            if values.iter().any(|&x| x == 0 || x >= LIMIT) {
                return Err(invalid!("{name} {values:?} must be at least 1 (and below 2^31)"));
            }
        }
        if let Padding::Explicit(pads) = &self.padding
            && pads.iter().any(|&(a, b)| a >= LIMIT || b >= LIMIT)
        {
            return Err(invalid!("pads {pads:?} are too large"));
        }
        Ok(())
    }

    /// Stride, dilation and explicit padding of each of `kernel`'s axes.
    pub(super) fn axes(&self, kernel: &[usize]) -> Result<Vec<Axis>> {
        self.check()?;
        let rank = kernel.len();
        let pads: &[(usize, usize)] = if let Padding::Explicit(p) = &self.padding { p } else { &[] };
        for (name, n) in
            [("strides", self.strides.len()), ("dilations", self.dilations.len()), ("pads", pads.len())]
        {
            if n != 0 && n != rank {
                return Err(invalid!("{name} has {n} spatial axes, the kernel {kernel:?} has {rank}"));
            }
        }
        let axis = |(i, &kernel): (usize, &usize)| {
            let (stride, dilation) =
                (*self.strides.get(i).unwrap_or(&1), *self.dilations.get(i).unwrap_or(&1));
            if kernel == 0 || kernel >= LIMIT {
                return Err(invalid!("a kernel size of {kernel} is not within 1..2^31"));
            }
            if (kernel - 1) * dilation >= LIMIT {
                return Err(invalid!("a kernel of {kernel} taps, {dilation} apart, is too wide"));
            }
            let (before, after) = *pads.get(i).unwrap_or(&(0, 0));
            Ok(Axis { kernel, stride, dilation, before, after, ..Axis::UNIT })
        };
        kernel.iter().enumerate().map(axis).collect()
    }

    /// The geometry for inputs of the spatial sizes `input`. With `ceil`,
    /// a last window that begins within the input or the padding before it
    /// counts even where it reaches beyond the padding after it.
    ///
    /// # Errors
    /// If ranks differ, a size is out of range, or the kernel does not fit
    /// into the padded input.
    pub fn resolve(&self, kernel: &[usize], input: &[usize], ceil: bool) -> Result<Vec<Axis>> {
        check_rank(kernel, input.len())?;
        let mut axes = self.axes(kernel)?;
        for (axis, &n) in axes.iter_mut().zip(input) {
            *axis = self.resolve_axis(*axis, n, ceil)?;
        }
        Ok(axes)
    }

    fn resolve_axis(&self, mut axis: Axis, input: usize, ceil: bool) -> Result<Axis> {
        if input >= LIMIT {
            return Err(invalid!("an input size of {input} is too large"));
        }
        axis.input = input;
        let span = axis.span();
        if matches!(self.padding, Padding::SameUpper | Padding::SameLower) {
            axis.output = input.div_ceil(axis.stride);
            let needed = (axis.output.max(1) - 1) * axis.stride + span;
            let total = needed.saturating_sub(input);
            axis.before = if self.padding == Padding::SameUpper { total / 2 } else { total.div_ceil(2) };
            axis.after = total - axis.before;
        }
        let padded = input + axis.before + axis.after;
        let free = padded.checked_sub(span).ok_or_else(|| {
            invalid!(
                "a kernel of {} taps, {} apart, does not fit into {input} cells padded by {} and {}",
                axis.kernel,
                axis.dilation,
                axis.before,
                axis.after
            )
        })?;
        axis.output = free / axis.stride + 1;
        if ceil {
            let begin_inside = (input + axis.before).div_ceil(axis.stride);
            axis.output = (free.div_ceil(axis.stride) + 1).min(begin_inside);
        }
        Ok(axis)
    }

    /// The output sizes; a named input size gives the formula of its output.
    ///
    /// # Errors
    /// As [`Window::resolve`].
    pub fn dims(&self, kernel: &[usize], input: &[Dim], ceil: bool) -> Result<Vec<Dim>> {
        check_rank(kernel, input.len())?;
        let axes = self.axes(kernel)?;
        axes.iter()
            .zip(input)
            .map(|(axis, n)| match n {
                Dim::Known(n) => Ok(Dim::Known(self.resolve_axis(*axis, *n, ceil)?.output)),
                Dim::Named(s) => Ok(Dim::Named(self.formula(axis, s, ceil))),
            })
            .collect()
    }

    fn formula(&self, axis: &Axis, s: &str, ceil: bool) -> String {
        let stride = axis.stride;
        if matches!(self.padding, Padding::SameUpper | Padding::SameLower) {
            return if stride == 1 { s.into() } else { format!("ceil({s}/{stride})") };
        }
        let (span, before, after) = (axis.span(), axis.before, axis.after);
        let free = (before + after) as i64 - span as i64;
        match (stride, ceil) {
            (1, _) if free == -1 => s.into(),
            (1, _) => format!("({s}{:+})", free + 1),
            (_, false) => format!("(floor(({s}{free:+})/{stride})+1)"),
            // The last window also depends on where the input ends.
            (_, true) => format!("min(ceil(({s}{free:+})/{stride})+1,ceil(({s}{before:+})/{stride}))"),
        }
    }
}

fn check_rank(kernel: &[usize], spatial: usize) -> Result<()> {
    if kernel.len() == spatial {
        return Ok(());
    }
    Err(invalid!("the kernel {kernel:?} has {} spatial axes, the input {spatial}", kernel.len()))
}

fn pairs(pads: &[usize]) -> Result<Vec<(usize, usize)>> {
    if !pads.len().is_multiple_of(2) {
        return Err(invalid!("attribute pads = {pads:?} has an odd number of values"));
    }
    let (before, after) = pads.split_at(pads.len() / 2);
    Ok(before.iter().copied().zip(after.iter().copied()).collect())
}

/// A window's axes as depth, height and width: missing ones in front are
/// [`Axis::UNIT`].
///
/// # Errors
/// If there are more than three.
pub fn three(op: &str, axes: &[Axis]) -> Result<[Axis; 3]> {
    let mut out = [Axis::UNIT; 3];
    let Some(free) = out.len().checked_sub(axes.len()) else {
        return Err(Error::unsupported(op, format!("{} spatial axes (at most 3)", axes.len())));
    };
    out[free..].copy_from_slice(axes);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn read(attributes: Vec<(&str, Attribute)>) -> Result<Window> {
        let map: BTreeMap<String, Attribute> =
            attributes.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        let mut r = Reading::new("Conv", 13, map, vec![], 1);
        let w = Window::read(&mut r)?;
        r.finish().map(|_| w)
    }

    fn ints(x: &[i64]) -> Attribute {
        Attribute::Ints(x.to_vec())
    }

    fn text(x: &str) -> Attribute {
        Attribute::Text(x.into())
    }

    #[test]
    fn outputs_have_onnx_sizes() {
        use Padding::{Explicit, SameLower, SameUpper, Valid};
        // input, kernel, stride, dilation, padding, ceil => before, after, output
        let cases = [
            (5, 3, 1, 1, Explicit(vec![(0, 0)]), false, (0, 0, 3)),
            (5, 3, 1, 1, Explicit(vec![(1, 1)]), false, (1, 1, 5)),
            (5, 3, 2, 1, Explicit(vec![(1, 0)]), false, (1, 0, 2)),
            (7, 3, 1, 2, Explicit(vec![(0, 2)]), false, (0, 2, 5)),
            (3, 3, 1, 1, Explicit(vec![]), false, (0, 0, 1)),
            (6, 3, 2, 1, SameUpper, false, (0, 1, 3)),
            (6, 3, 2, 1, SameLower, false, (1, 0, 3)),
            (5, 3, 2, 1, SameUpper, false, (1, 1, 3)),
            (4, 1, 2, 1, SameUpper, false, (0, 0, 2)),
            (6, 3, 1, 2, SameUpper, false, (2, 2, 6)),
            (6, 3, 2, 1, Valid, false, (0, 0, 2)),
            (6, 3, 2, 1, Valid, true, (0, 0, 3)),
            // A window that would begin in the padding after the input is dropped.
            (4, 2, 2, 1, Explicit(vec![(1, 1)]), true, (1, 1, 3)),
            (2, 1, 2, 1, Explicit(vec![(0, 1)]), true, (0, 1, 1)),
            (0, 1, 1, 1, Explicit(vec![(1, 0)]), false, (1, 0, 1)),
        ];
        for (input, kernel, stride, dilation, padding, ceil, want) in cases {
            let w = Window { strides: vec![stride], dilations: vec![dilation], padding };
            let a = w.resolve(&[kernel], &[input], ceil).unwrap()[0];
            assert_eq!((a.before, a.after, a.output), want, "{w:?} kernel {kernel} over {input}");
            let dims = w.dims(&[kernel], &[Dim::Known(input)], ceil).unwrap();
            assert_eq!(dims, [Dim::Known(want.2)]);
        }
    }

    #[test]
    fn named_sizes_give_formulas() {
        let pads = |a, b| Padding::Explicit(vec![(a, b)]);
        let cases = [
            (3, 1, pads(1, 1), false, "H"),
            (3, 1, pads(0, 0), false, "(H-2)"),
            (1, 1, pads(2, 1), false, "(H+3)"),
            (3, 2, pads(1, 1), false, "(floor((H-1)/2)+1)"),
            (3, 2, pads(0, 0), true, "min(ceil((H-3)/2)+1,ceil((H+0)/2))"),
            (3, 2, Padding::SameUpper, false, "ceil(H/2)"),
            (3, 1, Padding::SameLower, false, "H"),
        ];
        for (kernel, stride, padding, ceil, want) in cases {
            let w = Window { strides: vec![stride], padding, ..Window::default() };
            let got = w.dims(&[kernel], &[Dim::Named("H".into())], ceil).unwrap();
            assert_eq!(got, [Dim::Named(want.into())], "{w:?}");
        }
    }

    #[test]
    fn attributes_round_trip() {
        let cases = [
            vec![],
            vec![("strides", ints(&[2, 1]))],
            vec![("dilations", ints(&[2, 3])), ("strides", ints(&[2, 1])), ("pads", ints(&[1, 2, 3, 4]))],
            vec![("auto_pad", text("SAME_UPPER"))],
            vec![("auto_pad", text("SAME_LOWER"))],
            vec![("auto_pad", text("VALID"))],
        ];
        for case in cases {
            assert_eq!(read(case.clone()).unwrap().attributes(), case);
        }
        let w = read(vec![("auto_pad", text("VALID")), ("pads", ints(&[0, 0]))]).unwrap();
        assert_eq!(w.padding, Padding::Valid);
    }

    #[test]
    fn hostile_geometry_is_an_error() {
        let cases = [
            (vec![("strides", ints(&[0]))], "at least 1"),
            (vec![("dilations", ints(&[0]))], "at least 1"),
            (vec![("strides", ints(&[-1]))], "negative"),
            (vec![("pads", ints(&[-1, 0]))], "negative"),
            (vec![("pads", ints(&[i64::MAX, 0]))], "huge"),
            (vec![("pads", ints(&[1]))], "odd"),
            (vec![("auto_pad", text("SAME"))], "not one that ONNX defines"),
            (vec![("auto_pad", text("VALID")), ("pads", ints(&[1, 0]))], "exclude"),
            (vec![("auto_pad", ints(&[1]))], "wrong type"),
        ];
        for (attributes, want) in cases {
            let message = read(attributes.clone()).unwrap_err().to_string();
            assert!(message.contains(want), "{attributes:?}: {message}");
        }
        let w = |strides: &[usize], dilations: &[usize], pads: &[(usize, usize)]| Window {
            strides: strides.to_vec(),
            dilations: dilations.to_vec(),
            padding: Padding::Explicit(pads.to_vec()),
        };
        let cases = [
            (w(&[0], &[], &[]), [3], [5], "at least 1"),
            (w(&[], &[], &[(usize::MAX, 0)]), [3], [5], "too large"),
            (w(&[], &[usize::MAX], &[]), [3], [5], "below 2^31"),
            (w(&[], &[1 << 30], &[]), [1 << 30], [5], "too wide"),
            (w(&[], &[], &[]), [0], [5], "kernel size of 0"),
            (w(&[], &[], &[]), [6], [5], "does not fit"),
            (w(&[], &[3], &[]), [3], [6], "does not fit"),
            (w(&[], &[], &[]), [1], [0], "does not fit"),
            (w(&[], &[], &[]), [1], [usize::MAX], "too large"),
            (w(&[1, 1], &[], &[]), [3], [5], "spatial axes"),
        ];
        for (w, kernel, input, want) in cases {
            let message = w.resolve(&kernel, &input, false).unwrap_err().to_string();
            assert!(message.contains(want), "{w:?}: {message}");
        }
        assert!(Window::default().resolve(&[3, 3], &[5], false).is_err());
        assert!(three("X", &[Axis::UNIT; 4]).is_err());
    }

    proptest! {
        #[test]
        fn ranges_agree_with_positions(
            input in 0usize..12, kernel in 1usize..5, stride in 1usize..4, dilation in 1usize..4,
            before in 0usize..4, after in 0usize..4, ceil: bool,
        ) {
            let w = Window {
                strides: vec![stride],
                dilations: vec![dilation],
                padding: Padding::Explicit(vec![(before, after)]),
            };
            if let Ok(axes) = w.resolve(&[kernel], &[input], ceil) {
                let a = axes[0];
                for t in 0..kernel {
                    let want: Vec<usize> = (0..a.output).filter(|&o| a.at(o, t).is_some()).collect();
                    prop_assert_eq!(a.inside(t).collect::<Vec<_>>(), want);
                }
                for o in 0..a.output {
                    let want: Vec<usize> = (0..kernel).filter(|&t| a.at(o, t).is_some()).collect();
                    prop_assert_eq!(a.taps(o).collect::<Vec<_>>(), want);
                    let padded = input + before + after;
                    let want = (0..kernel).filter(|t| o * stride + t * dilation < padded).count();
                    prop_assert_eq!(a.taps_padded(o).len(), want);
                }
            }
        }
    }
}
