//! The definition, for every CPU.

use super::Kernels;
use crate::block::Multiply;
use crate::loops;
use crate::pack::{KR, NR, last_group};
use crate::product;
use crate::rows::Rows;
use crate::tile::{Epilogue, Panel, Tiles};

pub(super) const KERNELS: Kernels = Kernels {
    name: "scalar",
    detected: || true,
    tile_rows: 1,
    multiply: Multiply::Tiles(tile),
    product: product::PORTABLE,
    loops: loops::SCALAR,
};

fn tile(rows: &Rows<'_>, tiles: Tiles, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>) {
    for i in tiles.firsts() {
        let mut acc = [0i32; NR];
        for tap in 0..rows.taps() {
            let (groups, tail) = rows.get::<1>(i, tap)[0].as_chunks::<KR>();
            for (a, b) in groups.iter().chain([&last_group(tail)]).zip(panel.groups(tap)) {
                for (acc, b) in acc.iter_mut().zip(&b.0).take(panel.width()) {
                    let dot: i32 = a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                    *acc = acc.wrapping_add(dot);
                }
            }
        }
        epilogue.store(&[acc], i, 0);
    }
}
