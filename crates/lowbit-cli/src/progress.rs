//! A progress bar on stderr, where that is a terminal.

use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use lowbit::recipe::Step;

use crate::interrupt;

/// The progress of one stage. It disappears when dropped.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar of `total` steps.
    pub fn new(stage: &'static str, total: usize) -> Progress {
        // A fixed template; the default style serves if it were malformed.
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = ProgressBar::new(total as u64).with_finish(ProgressFinish::AndClear).with_style(style);
        bar.set_message(stage);
        Progress { bar }
    }

    /// `done` steps are done; an error once Ctrl-C was pressed.
    pub fn at(&self, done: usize) -> lowbit::Result<()> {
        self.bar.set_position(done as u64);
        interrupt::check()
    }

    /// Prints a line above the bar.
    pub fn say(&self, line: &str) {
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// One more step is done; an error once Ctrl-C was pressed.
    pub fn step(&self) -> lowbit::Result<()> {
        self.bar.inc(1);
        interrupt::check()
    }
}

/// The progress of work of several stages, one bar after the other.
#[derive(Default)]
pub struct Stages {
    current: Mutex<Option<(&'static str, Progress)>>,
}

impl Stages {
    /// A step is done; an error once Ctrl-C was pressed.
    pub fn at(&self, Step { stage, done, of }: Step) -> lowbit::Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|(name, _)| *name != stage) {
            // The bar of the stage before disappears first.
            *current = None;
            *current = Some((stage, Progress::new(stage, of)));
        }
        current.as_ref().map_or(Ok(()), |(_, progress)| progress.at(done))
    }

    /// Prints a line above the bar.
    pub fn say(&self, line: &str) {
        match &*self.current.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((_, progress)) => progress.say(line),
            None => eprintln!("{line}"),
        }
    }
}
