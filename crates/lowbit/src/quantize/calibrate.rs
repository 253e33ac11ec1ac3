//! Calibration over many batches, on all cores, with the same result as on one.

use super::batches::{InTurn, Progress, run_all, threads};
use super::point::Role;
use super::prepare::Prepared;
use crate::error::{Result, invalid};
use crate::tensor::Tensor;

impl Prepared {
    /// Streams batches through the graph, several at a time, and shows their
    /// values to the points in the order of the batches: the result does not
    /// depend on the number of threads, nor the memory on the number of batches.
    ///
    /// # Errors
    /// If there is no batch, one cannot be read or does not fit the model, a
    /// value is NaN (the error names it), or `progress` stops it.
    pub fn calibrate(
        &mut self,
        batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
        progress: &Progress,
    ) -> Result<()> {
        let (graph, points, watches) = self.parts();
        let in_turn: Vec<_> = std::mem::take(points).into_iter().map(|p| (p.sites, InTurn::new(p))).collect();
        let ran = run_all(
            threads(),
            graph,
            batches,
            progress,
            |v| watches.contains_key(&v),
            |batch, v, value| {
                watches.get(&v).into_iter().flatten().try_for_each(|w| {
                    let (sites, point) = &in_turn[w.point];
                    point.change(batch * sites + w.site, |p| p.observe(value))
                })
            },
            || in_turn.iter().for_each(|(_, p)| p.abandon()),
        );
        *points = in_turn.into_iter().map(|(_, p)| p.into_inner()).collect();
        ran?;
        if self.saw_nothing() {
            return Err(invalid!("the calibration data is empty: give at least one sample"));
        }
        Ok(())
    }

    fn saw_nothing(&self) -> bool {
        let mut watched = self.points.iter().filter(|p| p.role == Role::Activation && p.sites > 0).peekable();
        watched.peek().is_some() && watched.all(|p| p.observer.is_empty())
    }
}
