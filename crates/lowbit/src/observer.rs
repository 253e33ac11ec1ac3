//! Observers: they watch values and return ranges, never scales.
//!
//! An observer's state does not grow with the number of batches, is
//! serializable, and merges with the state of another that watched other
//! batches. A new kind is one file here and one variant of [`ObserverConfig`]
//! and [`Kind`].

mod batch;
mod config;
mod counting;
mod entropy;
mod fixed;
mod histogram;
mod lattice;
mod measured;
mod min_max;
mod moving_average;
mod mse;
mod percentile;

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

pub use batch::Batch;
pub use config::ObserverConfig;
pub use entropy::Entropy;
pub use fixed::{Fixed, Nothing};
pub use histogram::Histogram;
pub use measured::Measured;
pub use min_max::MinMax;
pub use moving_average::MovingAverage;
pub use mse::Mse;
pub use percentile::Percentile;

use self::lattice::Lattices;
use crate::error::{Result, invalid};
use crate::qparams::{QParams, Range};
use crate::scheme::Scheme;
use crate::tensor::{DType, Tensor};

/// One way to find a range. [`AnyObserver`] checks what it gives to these
/// functions: batches are finite and not empty, their groups do not change,
/// ranges are asked of an observer that saw data, and merged states have the
/// same groups.
pub trait Observer: Debug + Send + Sync {
    /// Whether it looks at values at all.
    fn looks(&self) -> bool {
        true
    }

    /// Whether infinities are left out. Otherwise they are an error.
    fn skips_infinities(&self) -> bool {
        false
    }

    /// Takes a batch into account.
    ///
    /// # Errors
    /// If it cannot.
    fn observe(&mut self, batch: &Batch<'_>) -> Result<()>;

    /// The range of each group for `scheme`, not necessarily holding 0.
    ///
    /// # Errors
    /// If there is none.
    fn ranges(&self, scheme: &Scheme) -> Result<Vec<Range>>;

    /// Takes into account what `other` saw, as if its batches came after.
    ///
    /// # Errors
    /// If the settings differ.
    fn merge(&mut self, other: &Self) -> Result<()>
    where
        Self: Sized;
}

/// The state of an observer of any kind.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    MinMax(MinMax),
    MovingAverage(MovingAverage),
    Histogram(Histogram),
    Percentile(Percentile),
    Entropy(Entropy),
    Mse(Mse),
    Measured(Measured),
    Fixed(Fixed),
    None(Nothing),
}

macro_rules! each_kind {
    ($call:ident) => {
        $call!(MinMax MovingAverage Histogram Percentile Entropy Mse Measured Fixed None)
    };
}

impl Kind {
    fn new(config: ObserverConfig) -> Kind {
        match config {
            ObserverConfig::MinMax => Kind::MinMax(MinMax::default()),
            ObserverConfig::MovingAverage { constant } => Kind::MovingAverage(MovingAverage::new(constant)),
            ObserverConfig::Histogram { bins } => Kind::Histogram(Histogram::new(bins)),
            ObserverConfig::Percentile { percentile } => Kind::Percentile(Percentile::new(percentile)),
            ObserverConfig::Entropy => Kind::Entropy(Entropy::default()),
            ObserverConfig::Mse => Kind::Mse(Mse::default()),
            ObserverConfig::Measured => Kind::Measured(Measured::default()),
            ObserverConfig::Fixed { lo, hi } => Kind::Fixed(Fixed::new(Range { lo, hi })),
            ObserverConfig::None => Kind::None(Nothing::default()),
        }
    }

    fn get(&self) -> &dyn Observer {
        macro_rules! get {
            ($($kind:ident)*) => { match self { $(Kind::$kind(o) => o),* } };
        }
        each_kind!(get)
    }

    fn get_mut(&mut self) -> &mut dyn Observer {
        macro_rules! get {
            ($($kind:ident)*) => { match self { $(Kind::$kind(o) => o),* } };
        }
        each_kind!(get)
    }

    /// The counts of values, of kinds that keep them.
    fn counts(&self) -> Option<&Lattices> {
        match self {
            Kind::Percentile(o) => Some(&o.lattices),
            Kind::Entropy(o) => Some(&o.lattices),
            Kind::Mse(o) | Kind::Measured(Measured(o)) => Some(&o.lattices),
            _ => None,
        }
    }

    fn counts_mut(&mut self) -> Option<&mut Lattices> {
        match self {
            Kind::Percentile(o) => Some(&mut o.lattices),
            Kind::Entropy(o) => Some(&mut o.lattices),
            Kind::Mse(o) | Kind::Measured(Measured(o)) => Some(&mut o.lattices),
            _ => None,
        }
    }
}

/// An observer of any kind at one place of a model, for one scheme.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnyObserver {
    scheme: Scheme,
    /// The shape of the scales, once values were seen.
    groups: Option<Vec<usize>>,
    kind: Kind,
}

impl AnyObserver {
    /// An observer that saw nothing.
    ///
    /// # Errors
    /// Those of [`ObserverConfig::check`].
    pub fn new(config: ObserverConfig, scheme: Scheme) -> Result<AnyObserver> {
        config.check(&scheme)?;
        Ok(AnyObserver { scheme, groups: None, kind: Kind::new(config) })
    }

    /// The scheme whose parameters it finds.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// Its state.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Whether it looks at values and saw none yet.
    pub fn is_empty(&self) -> bool {
        self.groups.is_none() && self.kind.get().looks()
    }

    /// Takes a batch into account. Empty batches are skipped.
    ///
    /// # Errors
    /// If `x` is not floating point, holds NaN or (for all kinds but the
    /// histogram, which leaves them out) infinities, or falls into other groups
    /// than the batches before.
    pub fn observe(&mut self, x: &Tensor) -> Result<()> {
        match x.dtype() {
            DType::F32 => self.observe_slice(x.slice()?, x.shape()),
            dtype if dtype.is_float() => self.observe_slice(&x.to_f32()?, x.shape()),
            dtype => Err(invalid!("expected floating-point values to observe, found {dtype}")),
        }
    }

    /// [`AnyObserver::observe`] of a tensor of `shape` over `x`.
    ///
    /// # Errors
    /// Those of [`AnyObserver::observe`], and if `x` does not fit the shape.
    pub fn observe_slice(&mut self, x: &[f32], shape: &[usize]) -> Result<()> {
        if crate::tensor::element_count(shape)? != x.len() {
            return Err(invalid!("shape {shape:?} does not hold {} elements", x.len()));
        }
        let observer = self.kind.get_mut();
        if !observer.looks() {
            return Ok(());
        }
        let Some(batch) = Batch::new(x, shape, self.scheme.granularity, observer.skips_infinities())? else {
            return Ok(());
        };
        if let Some(groups) = &self.groups
            && groups != batch.scale_shape()
        {
            let (now, scheme) = (batch.scale_shape(), self.scheme);
            return Err(invalid!("{scheme}: a batch has scales {now:?}, those before had {groups:?}"));
        }
        observer.observe(&batch)?;
        self.groups = Some(batch.scale_shape().to_vec());
        Ok(())
    }

    /// The range of each group, not necessarily holding 0.
    ///
    /// # Errors
    /// If the observer saw no data, or finds no ranges (kind `none`).
    pub fn ranges(&self) -> Result<Vec<Range>> {
        if self.is_empty() {
            return Err(invalid!("the observer saw no data; run at least one batch through the model"));
        }
        self.kind.get().ranges(&self.scheme)
    }

    /// The parameters that cover the ranges.
    ///
    /// # Errors
    /// Those of [`AnyObserver::ranges`] and [`QParams::from_ranges`].
    pub fn qparams(&self) -> Result<QParams> {
        QParams::from_ranges(self.scheme, &self.ranges()?)
    }

    /// An observer of another kind that saw the same. Percentile, entropy, mse and measured
    /// count values alike, so that each can take the place of another.
    ///
    /// # Errors
    /// Those of [`ObserverConfig::check`], and if one of the two keeps other things.
    pub fn as_kind(&self, config: ObserverConfig) -> Result<AnyObserver> {
        let counts = self.kind.counts();
        let counts = counts.ok_or_else(|| invalid!("the observer keeps no counts of the values it saw"))?;
        let mut other = AnyObserver::new(config, self.scheme)?;
        let theirs = other.kind.counts_mut();
        theirs.ok_or_else(|| invalid!("{config} is not found from counts of values"))?.clone_from(counts);
        other.groups.clone_from(&self.groups);
        Ok(other)
    }

    /// Takes over what `other` saw: a merge, or, having seen nothing itself, the counts of one
    /// of another kind that keeps them too. None if neither is possible.
    pub(crate) fn adopt(&mut self, other: &AnyObserver) -> Option<()> {
        if self.is_empty()
            && self.scheme == other.scheme
            && let (Some(ours), Some(theirs)) = (self.kind.counts_mut(), other.kind.counts())
        {
            ours.clone_from(theirs);
            self.groups.clone_from(&other.groups);
            return Some(());
        }
        self.merge(other).ok()
    }

    /// Takes into account what `other` saw, as if its batches came after.
    ///
    /// # Errors
    /// If kind, settings, scheme or groups differ.
    pub fn merge(&mut self, other: &AnyObserver) -> Result<()> {
        if self.scheme != other.scheme {
            return Err(invalid!("observers for {} and {} cannot be merged", self.scheme, other.scheme));
        }
        match (&self.groups, &other.groups) {
            (Some(a), Some(b)) if a != b => {
                return Err(invalid!("observers with scales {a:?} and {b:?} cannot be merged"));
            }
            (None, Some(b)) => self.groups = Some(b.clone()),
            _ => {}
        }
        macro_rules! merge {
            ($($kind:ident)*) => {
                match (&mut self.kind, &other.kind) {
                    $((Kind::$kind(a), Kind::$kind(b)) => a.merge(b),)*
                    _ => Err(invalid!("observers of different kinds cannot be merged")),
                }
            };
        }
        each_kind!(merge)
    }
}

#[cfg(test)]
mod tests;
