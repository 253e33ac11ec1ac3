//! Where values are quantized.

use super::gptq::{InputMoments, Layer};
use super::grid::Grid;
use super::means::InputMeans;
use crate::codebook::Codebook;
use crate::error::{Result, invalid};
use crate::observer::{AnyObserver, ObserverConfig};
use crate::op::{Attribute, Op};
use crate::qconfig::{BiasCorrection, Rounding, Spec};
use crate::qparams::QParams;
use crate::scheme::{Format, Granularity, Scheme};
use crate::tensor::Tensor;

/// What a point's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// They change from run to run.
    Activation,
    /// They are constants of the model.
    Weight,
}

/// A quantization point: one scheme and one observer, for all the values that
/// share them.
#[derive(Clone, Debug)]
pub struct Point {
    /// The name of the first value that it quantizes.
    pub name: String,
    /// What the values are.
    pub role: Role,
    /// How they will be quantized.
    pub scheme: Scheme,
    /// What has been seen of them.
    pub observer: AnyObserver,
    /// For weights whose bias is to make up for their quantization: the mean
    /// inputs of the operator.
    pub means: Option<InputMeans>,
    /// For weights whose codes are chosen by the inputs of the operator: their
    /// second moments.
    pub moments: Option<InputMoments>,
    /// For weights whose codes have been chosen: the values that they stand for, in
    /// the steps that are `given`.
    pub chosen: Option<Tensor>,
    /// Whether the codes of a weight are to be learned ([`Rounding::Adaround`]).
    pub learns: bool,
    /// Whether channels of what is made with a weight are to get their means and deviations
    /// back ([`crate::passes::renormalize`]).
    pub renormalizes: bool,
    /// For weights: what gives them back, for each channel of what is made.
    pub regained: Option<Vec<Line>>,
    /// Scale and zero point in the place of those of the observer: training found
    /// them, or they were set.
    pub given: Option<QParams>,
    /// Whether training leaves those that are given as they are.
    pub held: bool,
    /// For weights: their values, and how scales are found.
    pub(super) source: Option<Source>,
    /// How many values of the graph are shown to it.
    pub(super) sites: usize,
}

/// What a channel is multiplied with, and what is added then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// The factor.
    pub ratio: f32,
    /// The summand.
    pub shift: f32,
}

/// A weight's values.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub values: Tensor,
    /// Whether scales are those of least squared error, not of the observer.
    pub search: bool,
    pub observer: ObserverConfig,
    /// What the error of each element counts where no inputs were seen, if that
    /// is known.
    pub importance: Option<Vec<f32>>,
}

impl Point {
    /// A point of values that change from run to run.
    ///
    /// # Errors
    /// If the spec is inconsistent.
    pub(crate) fn of_activation(name: &str, spec: &Spec) -> Result<Point> {
        let scheme = spec.scheme(None);
        Ok(Point {
            name: name.into(),
            role: Role::Activation,
            scheme,
            observer: AnyObserver::new(spec.observer, scheme)?,
            means: None,
            moments: None,
            chosen: None,
            learns: false,
            renormalizes: false,
            regained: None,
            given: None,
            held: false,
            source: None,
            sites: 0,
        })
    }

    /// The point of the weight `t` of `op`, whose channels lie along `axis`, observed.
    /// `gains` is what the operator's inputs were multiplied with before, if known.
    ///
    /// # Errors
    /// If the weight cannot be observed (NaN).
    pub(crate) fn of_weight(
        name: &str,
        t: &Tensor,
        spec: &Spec,
        axis: usize,
        op: &dyn Op,
        gains: impl FnOnce() -> Option<Vec<f32>>,
    ) -> Result<Point> {
        let scheme = spec.scheme(Some(axis));
        let few = spec.format.bits() < 8 || matches!(scheme.granularity, Granularity::Block { .. });
        let search = spec.observer == ObserverConfig::Mse && few;
        let config = if search { ObserverConfig::MinMax } else { spec.observer };
        let mut observer = AnyObserver::new(config, scheme).map_err(|e| e.at(name))?;
        observer.observe(t).map_err(|e| e.at(name))?;
        let channels = op.name().contains("Conv").then_some(1);
        let means = match spec.correct_bias {
            BiasCorrection::Off => None,
            BiasCorrection::Observed => Some(InputMeans::new(channels)),
            BiasCorrection::Analytic => Some(InputMeans::expected(channels)),
        };
        let layer = Layer::new(op, t.shape());
        let importance =
            layer.as_ref().filter(|_| search).and_then(|layer| gains().map(|g| layer.spread(&g)));
        let moments = match spec.rounding {
            Rounding::Nearest | Rounding::Adaround => None,
            Rounding::Gptq => layer.and_then(InputMoments::new),
        };
        let source = Some(Source { values: t.clone(), search, observer: config, importance });
        let (name, role) = (name.into(), Role::Weight);
        Ok(Point {
            name,
            role,
            scheme,
            observer,
            means,
            moments,
            chosen: None,
            learns: spec.rounding == Rounding::Adaround,
            renormalizes: spec.renormalize,
            regained: None,
            given: None,
            held: false,
            source,
            sites: 0,
        })
    }

    /// Whether both quantize alike, now and after more has been seen.
    pub(super) fn is_like(&self, other: &Point) -> bool {
        self.scheme == other.scheme
            && self.observer == other.observer
            && (&self.given, self.held) == (&other.given, other.held)
            && self.chosen == other.chosen
    }

    /// Takes over what `other`, a point of the same values, has seen of samples. None if
    /// it did not look at them in the same way.
    pub(super) fn adopt(&mut self, other: &Point) -> Option<()> {
        match self.role {
            Role::Activation => self.observer.adopt(&other.observer),
            Role::Weight => {
                if self.means.as_ref().is_some_and(|m| !m.is_expected()) {
                    self.means = Some(other.means.clone().filter(|m| !m.is_expected())?);
                }
                if self.moments.is_some() {
                    self.moments = Some(other.moments.clone()?);
                }
                Some(())
            }
        }
    }

    /// Takes a value into account.
    ///
    /// # Errors
    /// If it is NaN, or of a shape that does not fit those before.
    pub fn observe(&mut self, x: &Tensor) -> Result<()> {
        let observed = match self.role {
            Role::Activation => self.observer.observe(x),
            Role::Weight => {
                let means = self.means.as_mut().map(|means| means.observe(x));
                let moments = self.moments.as_mut().map(|moments| moments.observe(x));
                means.into_iter().chain(moments).collect()
            }
        };
        observed.map_err(|e| e.at(&self.name))
    }

    /// Scale and zero point for what has been seen.
    ///
    /// # Errors
    /// If nothing has been seen, or codes stand for the values of a codebook.
    pub fn params(&self) -> Result<QParams> {
        if let Some(params) = &self.given {
            return Ok(params.clone());
        }
        match &self.source {
            Some(source) if source.search => {
                QParams::least_squares(self.scheme, &source.values, self.importance(source).as_deref())
            }
            _ => self.observer.qparams(),
        }
    }

    /// Scale and zero point for `values` in the place of a weight's.
    ///
    /// # Errors
    /// If the point is not one of a weight, or codes stand for the values of a
    /// codebook.
    pub(crate) fn params_of(&self, values: &Tensor) -> Result<QParams> {
        let importance = self.source.as_ref().and_then(|source| source.importance.as_deref());
        Ok(self.found(values, importance)?.steps()?.clone())
    }

    /// The values that a weight's codes stand for.
    ///
    /// # Errors
    /// If the point is not one of a weight.
    pub fn grid(&self) -> Result<Grid> {
        let source = self.source.as_ref().ok_or_else(|| invalid!("is no weight"))?;
        match self.scheme.format {
            Format::Codebook { .. } => self.found(&source.values, self.importance(source).as_deref()),
            _ => Ok(Grid::Steps(self.params()?)),
        }
    }

    /// What the nearest codes are taken of in the place of `weight`, if that is
    /// something else: the values chosen, or those that the inputs choose.
    ///
    /// # Errors
    /// If inputs were seen that are not finite; the error names the point.
    pub(crate) fn rounded(&self, weight: &Tensor, grid: &Grid) -> Result<Option<Tensor>> {
        if self.chosen.is_some() {
            return Ok(self.chosen.clone());
        }
        let rounded = self.moments.as_ref().map(|moments| moments.rounded(weight, grid));
        rounded.transpose().map_err(|e| e.at(&self.name))
    }

    /// The values of a weight's codes, as conversion stores them.
    ///
    /// # Errors
    /// If the point is not one of a weight, or its codes cannot be chosen.
    pub(crate) fn stored(&self) -> Result<Tensor> {
        let (grid, source) = (self.grid()?, self.source.as_ref().ok_or_else(|| invalid!("is no weight"))?);
        let rounded = self.rounded(&source.values, &grid)?;
        grid.fake_quantize(rounded.as_ref().unwrap_or(&source.values))
    }

    /// The grid for `values` in the place of the weight's.
    fn found(&self, values: &Tensor, importance: Option<&[f32]>) -> Result<Grid> {
        let source = self.source.as_ref().ok_or_else(|| invalid!("is no weight"))?;
        let (scheme, search) = (self.scheme, source.search);
        if matches!(scheme.format, Format::Codebook { .. }) {
            return Ok(Grid::Lookup(Codebook::fit(scheme, values, importance, search)?));
        }
        if search {
            return Ok(Grid::Steps(QParams::least_squares(scheme, values, importance)?));
        }
        let mut observer = AnyObserver::new(source.observer, scheme)?;
        observer.observe(values)?;
        Ok(Grid::Steps(observer.qparams()?))
    }

    /// The squared error of a layer's outputs on the data seen, if its inputs
    /// are divided by `factors`, and its weight multiplied by them and given the
    /// nearest codes.
    ///
    /// # Errors
    /// If the point is not one of a weight.
    pub(crate) fn error_scaled_by(&self, factors: &[f32]) -> Result<f64> {
        let (Some(source), Some(moments)) = (&self.source, &self.moments) else {
            return Err(invalid!("is no weight whose inputs are observed"));
        };
        let (w, factors) = (source.values.to_f32()?, moments.spread(factors));
        let scaled: Vec<f32> = w.iter().zip(&factors).map(|(w, f)| w * f).collect();
        let scaled = Tensor::new(source.values.shape(), scaled)?;
        let importance = self.importance(source).map(|mut importance| {
            importance.iter_mut().zip(&factors).for_each(|(i, f)| *i /= f * f);
            importance
        });
        let quantized = self.found(&scaled, importance.as_deref())?.fake_quantize(&scaled)?.to_f32()?;
        let errors: Vec<f32> = w.iter().zip(&quantized).zip(&factors).map(|((w, q), f)| w - q / f).collect();
        Ok(moments.output_error(&errors))
    }

    fn importance(&self, source: &Source) -> Option<Vec<f32>> {
        let seen = self.moments.as_ref().and_then(InputMoments::importance);
        seen.or_else(|| source.importance.clone())
    }
}

/// An operator of prepared graphs that says what will become of a value and
/// changes nothing: its name, and its attributes.
macro_rules! unchanging {
    ($op_type:ident, $name:literal, |$op:ident| $attributes:expr) => {
        impl crate::op::Op for $op_type {
            fn name(&self) -> &'static str {
                $name
            }
            fn domain(&self) -> &'static str {
                "lowbit"
            }
            fn infer(&self, x: &[&crate::op::Fact]) -> crate::error::Result<Vec<crate::op::Fact>> {
                crate::op::arity(x, 1, 1)?;
                Ok(vec![x[0].clone()])
            }
            fn eval(&self, x: &[&crate::tensor::Tensor]) -> crate::error::Result<Vec<crate::tensor::Tensor>> {
                Ok(vec![x[0].clone()])
            }
            fn attributes(&self) -> crate::op::Attributes {
                let $op = self;
                $attributes
            }
            fn folds(&self) -> bool {
                false
            }
        }
    };
}
pub(super) use unchanging;

/// The operator that stands in a prepared graph where a value will be
/// quantized. It changes nothing.
#[derive(Clone, Debug)]
pub struct PointOp {
    /// Index into [`super::Prepared::points`].
    pub point: usize,
    /// Whether the values are those of another place of the point, moved (or
    /// a constant), so that they need not be watched.
    pub moved: bool,
}

unchanging!(PointOp, "Point", |op| vec![("point", Attribute::Int(op.point as i64))]);
