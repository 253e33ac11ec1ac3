//! Axes: counted from the end where negative.

use crate::error::{Result, invalid};

/// `axis` as an index into `rank` dimensions.
///
/// # Errors
/// If it is not in `-rank..rank`.
pub(super) fn one(axis: i64, rank: usize) -> Result<usize> {
    let from_start = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    from_start
        .and_then(|a| usize::try_from(a).ok())
        .filter(|&a| a < rank)
        .ok_or_else(|| invalid!("axis {axis} is out of range for {rank} dimensions"))
}

/// Which of `rank` dimensions `axes` names.
///
/// # Errors
/// If one is out of range or is named twice.
pub(super) fn mask(axes: &[i64], rank: usize) -> Result<Vec<bool>> {
    let mut mask = vec![false; rank];
    for &a in axes {
        if std::mem::replace(&mut mask[one(a, rank)?], true) {
            return Err(invalid!("axes {axes:?} name a dimension twice"));
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_count_from_both_ends() {
        let cases = [(0, 3, Some(0)), (-1, 3, Some(2)), (-3, 3, Some(0)), (3, 3, None), (-4, 3, None)];
        for (axis, rank, expected) in cases {
            assert_eq!(one(axis, rank).ok(), expected, "{axis} of {rank}");
        }
        assert!(one(i64::MIN, 3).is_err() && one(i64::MAX, 3).is_err() && one(0, 0).is_err());
        assert_eq!(mask(&[-1, 0], 3).unwrap(), [true, false, true]);
        assert!(mask(&[1, -2], 3).is_err());
    }
}
