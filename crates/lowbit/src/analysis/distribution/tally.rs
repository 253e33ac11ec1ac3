//! The sums of a distribution: ranges in a first pass, counts and errors in a second.

use super::{BINS, ChannelRange, Distribution, Mapped};
use crate::analysis::Place;
use crate::analysis::elements::elements;
use crate::error::{Result, invalid};
use crate::qparams::{QParams, Range};
use crate::scheme::{Granularity, Mapping, Scheme};
use crate::tensor::Tensor;

/// What has been seen of the elements of one value.
pub struct Tally {
    params: QParams,
    /// The finite elements of each group.
    groups: Vec<Option<Range>>,
    /// Places on the axis.
    lo: f64,
    hi: f64,
    counts: Vec<u64>,
    clipped: u64,
    not_finite: u64,
    power: f64,
    noise: f64,
    mapped: Vec<(QParams, f64)>,
}

impl Tally {
    /// Nothing so far of a value with these codes.
    pub fn new(params: QParams) -> Tally {
        Tally {
            groups: vec![None; params.scale.len()],
            params,
            lo: f64::INFINITY,
            hi: f64::NEG_INFINITY,
            counts: vec![0; BINS],
            clipped: 0,
            not_finite: 0,
            power: 0.0,
            noise: 0.0,
            mapped: vec![],
        }
    }

    fn in_codes(&self) -> bool {
        self.params.scale.len() > 1
    }

    /// The place on the axis of an element of group `g`.
    fn place(&self, g: usize, x: f32) -> f64 {
        match self.in_codes() {
            true => f64::from(x) / f64::from(self.params.scale[g]) + f64::from(self.params.zero_point[g]),
            false => f64::from(x),
        }
    }

    /// The reals from the least to the greatest code of group `g`.
    fn covered(&self, g: usize) -> Range {
        let (least, greatest) = self.params.scheme.bounds();
        let (s, z) = (f64::from(self.params.scale[g]), f64::from(self.params.zero_point[g]));
        let real = |q: i32| ((f64::from(q) - z) * s).clamp(f32::MIN.into(), f32::MAX.into()) as f32;
        Range { lo: real(least), hi: real(greatest) }
    }

    /// The places of the least and of the greatest code.
    fn clip(&self) -> (f64, f64) {
        let (least, greatest) = self.params.scheme.bounds();
        match self.in_codes() {
            true => (least.into(), greatest.into()),
            false => (self.covered(0).lo.into(), self.covered(0).hi.into()),
        }
    }

    /// Places between neighbouring codes.
    fn step(&self) -> Option<f64> {
        let even = !self.params.scheme.format.is_float();
        even.then(|| if self.in_codes() { 1.0 } else { f64::from(self.params.scale[0]) })
    }

    /// First pass: widens the ranges.
    ///
    /// # Errors
    /// If the scales do not fit the shape.
    pub fn range(&mut self, x: &Tensor) -> Result<()> {
        let groups = self.params.scheme.granularity.groups(x.shape())?;
        if groups.count() != self.params.scale.len() {
            let (n, have) = (groups.count(), self.params.scale.len());
            return Err(invalid!("shape {:?} has {n} groups, its codes have {have} scales", x.shape()));
        }
        let values = elements(x)?;
        for (run, g) in groups.runs() {
            let range = values[run].iter().filter(|x| x.is_finite()).fold(self.groups[g], |range, &x| {
                let one = Range { lo: x, hi: x };
                Some(range.map_or(one, |r| r.union(one)))
            });
            self.groups[g] = range;
        }
        Ok(())
    }

    /// Between the passes: what the axis is, and which codes are compared.
    ///
    /// # Errors
    /// If the scheme has no parameters for the ranges seen.
    pub fn settle(&mut self) -> Result<()> {
        for (g, range) in self.groups.iter().enumerate() {
            let Some(range) = range else { continue };
            self.lo = self.lo.min(self.place(g, range.lo));
            self.hi = self.hi.max(self.place(g, range.hi));
        }
        if self.lo > self.hi {
            (self.lo, self.hi) = (0.0, 0.0);
        }
        // A range of one value has no width to divide.
        if self.lo == self.hi {
            let half = if self.lo == 0.0 { 1.0 } else { self.lo.abs() / 2.0 };
            (self.lo, self.hi) = (self.lo - half, self.hi + half);
        }
        if self.step().is_none() {
            return Ok(());
        }
        let cut = |(g, range): (usize, &Option<Range>)| {
            let (Range { lo, hi }, covered) = (range.unwrap_or(Range { lo: 0.0, hi: 0.0 }), self.covered(g));
            Range { lo: lo.clamp(covered.lo, covered.hi), hi: hi.clamp(covered.lo, covered.hi) }
        };
        let ranges: Vec<Range> = self.groups.iter().enumerate().map(cut).collect();
        let mapped = [Mapping::Affine, Mapping::Symmetric].map(|mapping| {
            let scheme = Scheme { mapping, ..self.params.scheme };
            Ok((QParams::from_ranges(scheme, &ranges)?, 0.0))
        });
        self.mapped = mapped.into_iter().collect::<Result<_>>()?;
        Ok(())
    }

    /// Second pass: counts the elements and sums their errors.
    ///
    /// # Errors
    /// If the scales do not fit the shape.
    pub fn count(&mut self, x: &Tensor) -> Result<()> {
        let values = elements(x)?;
        let (clip_lo, clip_hi) = self.clip();
        let half = self.step().unwrap_or(0.0) / 2.0;
        let bins = BINS as f64 / (self.hi - self.lo);
        for (run, g) in self.params.scheme.granularity.groups(x.shape())?.runs() {
            for &x in &values[run] {
                if !x.is_finite() {
                    self.not_finite += 1;
                    continue;
                }
                let place = self.place(g, x);
                // Saturating: rounding alone leaves the bins.
                let bin = ((place - self.lo) * bins) as usize;
                self.counts[bin.min(BINS - 1)] += 1;
                self.clipped += u64::from(place < clip_lo - half || place > clip_hi + half);
                self.power += f64::from(x).powi(2);
            }
        }
        self.noise += noise(&self.params, x, &values)?;
        for (params, sum) in &mut self.mapped {
            *sum += noise(params, x, &values)?;
        }
        Ok(())
    }

    /// The channels of the weight `w`, which lie along `axis`.
    ///
    /// # Errors
    /// If the weight has no such axis.
    pub fn channels(&self, w: &Tensor, axis: usize) -> Result<Vec<ChannelRange>> {
        let along = Granularity::Axis(axis).groups(w.shape())?;
        let groups = self.params.scheme.granularity.groups(w.shape())?;
        let covered: Vec<Range> = (0..groups.count()).map(|g| self.covered(g)).collect();
        let mut channels: Vec<Option<ChannelRange>> = vec![None; along.count()];
        for (i, &x) in elements(w)?.iter().enumerate().filter(|(_, x)| x.is_finite()) {
            let (element, codes) = (Range { lo: x, hi: x }, covered[groups.of(i)]);
            let channel = &mut channels[along.of(i)];
            *channel = Some(match *channel {
                None => ChannelRange { elements: element, codes },
                Some(c) => ChannelRange { elements: c.elements.union(element), codes: c.codes.union(codes) },
            });
        }
        Ok(channels.into_iter().flatten().collect())
    }

    /// What was found.
    pub fn distribution(self, name: String, place: Place) -> Distribution {
        let (clip_lo, clip_hi) = self.clip();
        let elements: u64 = self.counts.iter().sum();
        let mse = |noise: f64| noise / elements.max(1) as f64;
        let sqnr_db = |noise: f64| match noise {
            0.0 => f64::INFINITY,
            noise => 10.0 * (self.power / noise).log10(),
        };
        let mappings = self.mapped.iter().map(|(params, noise)| {
            let range = (!self.in_codes()).then(|| Tally::new(params.clone()).covered(0));
            Mapped { mapping: params.scheme.mapping, range, mse: mse(*noise), sqnr_db: sqnr_db(*noise) }
        });
        Distribution {
            name,
            place,
            scheme: self.params.scheme.to_string(),
            in_codes: self.in_codes(),
            lo: self.lo,
            hi: self.hi,
            clip_lo,
            clip_hi,
            step: self.step(),
            elements,
            clipped: self.clipped,
            not_finite: self.not_finite,
            mse: mse(self.noise),
            sqnr_db: sqnr_db(self.noise),
            mappings: mappings.collect(),
            channels: vec![],
            counts: self.counts,
        }
    }
}

/// `sum (x - y)^2` over the finite elements, with `y` what the codes of `x` stand for.
fn noise(params: &QParams, x: &Tensor, values: &[f32]) -> Result<f64> {
    let y = params.fake_quantize(x)?.into_vec::<f32>()?;
    let pairs = values.iter().zip(&y).filter(|(x, _)| x.is_finite());
    Ok(pairs.map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum())
}
