//! Some rows of the left matrix by all columns of a product, and how a table computes them.

use std::ops::Range;

use crate::pack::{NR, Weights};
use crate::rows::Rows;
use crate::tile::{Epilogue, Panel, Tile, Tiles};

/// How a table computes a [`Block`]. The CPU must have the table's instruction set.
#[derive(Clone, Copy)]
pub(crate) enum Multiply {
    /// Tile by tile ([`Block::by_tiles`]), of at most `tile_rows` rows.
    Tiles(Tile),
    /// At once.
    Block(unsafe fn(block: &Block<'_>, epilogue: &mut Epilogue<'_>)),
}

impl Multiply {
    /// Bytes of the left matrix, the output and what is added to it, that are kept in
    /// the L2 cache while the panels of weights pass by: about, less than twice as many.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Multiply::Tiles(_) => 192 << 10,
            // What multiplies faster asks for weights more often.
            Multiply::Block(_) => 512 << 10,
        }
    }

    /// Computes `block`, which ends as `epilogue` says.
    ///
    /// # Safety
    ///
    /// The CPU has the table's instruction set.
    pub(crate) unsafe fn block(self, block: &Block<'_>, tile_rows: usize, epilogue: &mut Epilogue<'_>) {
        // SAFETY: by the contract.
        unsafe {
            match self {
                Multiply::Tiles(tile) => block.by_tiles(tile, tile_rows, epilogue),
                Multiply::Block(multiply) => multiply(block, epilogue),
            }
        }
    }
}

/// Some rows of the left matrix by the columns of some panels of weights.
pub(crate) struct Block<'a> {
    pub(crate) left: &'a Rows<'a>,
    /// Rows of `left`.
    pub(crate) rows: Range<usize>,
    pub(crate) weights: &'a Weights<'a>,
    pub(crate) panels: Range<usize>,
}

impl<'a> Block<'a> {
    /// Computes the panels one after the other, each by tiles of at most `most` rows.
    ///
    /// # Safety
    ///
    /// The CPU has the instruction set of `tile`.
    pub(crate) unsafe fn by_tiles(&self, tile: Tile, most: usize, epilogue: &mut Epilogue<'_>) {
        let tiles = Tiles::of(self.rows.clone(), most);
        for index in self.panels.clone() {
            let panel = self.enter(index, epilogue);
            for tiles in tiles.clone() {
                // SAFETY: by the contract.
                unsafe { tile(self.left, tiles, &panel, epilogue) };
            }
        }
    }

    /// Panel `index`, which the epilogue is told of.
    pub(crate) fn enter(&self, index: usize, epilogue: &mut Epilogue<'_>) -> Panel<'a> {
        let panel = Panel::new(self.weights, index);
        epilogue.enter((index - self.panels.start) * NR, panel.width());
        panel
    }
}
