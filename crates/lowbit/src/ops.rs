//! The operators, one family a file, and the table that reads ONNX nodes.
//!
//! A new operator is a struct in a family's file and a row of its `READERS`
//! (`MICROSOFT_READERS` and `LOWBIT_READERS` in the domains of those names).

pub mod binary;
pub mod broadcast;
pub mod cast;
pub mod clip;
pub mod compare;
pub mod control;
pub mod conv;
pub mod conv_transpose;
pub mod einsum;
pub mod float;
pub mod gather;
pub mod generate;
pub mod integer;
pub mod layout;
pub mod linear;
pub mod lookup;
pub mod nbits;
pub mod norm;
pub mod pad;
pub mod pool;
pub mod quantize;
pub mod recurrent;
pub mod reduce;
pub mod resize;
pub mod shape;
pub mod slice;
pub mod softmax;
pub mod topk;
pub mod unary;
pub mod window;

mod axis;
#[cfg(test)]
pub(crate) mod differences;
pub(crate) mod product;
pub(crate) mod strided;
mod symbolic;
pub(crate) mod vectorized;

use crate::op::ReadOp;

/// A family's table for one domain: operator types and how they are read.
type Readers = &'static [(&'static str, ReadOp)];

/// The families' tables for a domain: `READERS` for the standard one,
/// `MICROSOFT_READERS` and `LOWBIT_READERS` for the others.
fn families(domain: &str) -> &'static [Readers] {
    match domain {
        "" => &[
            binary::READERS,
            cast::READERS,
            clip::READERS,
            compare::READERS,
            conv::READERS,
            conv_transpose::READERS,
            einsum::READERS,
            gather::READERS,
            generate::READERS,
            integer::READERS,
            layout::READERS,
            linear::READERS,
            norm::READERS,
            pad::READERS,
            pool::READERS,
            quantize::READERS,
            recurrent::READERS,
            reduce::READERS,
            resize::READERS,
            shape::READERS,
            slice::READERS,
            softmax::READERS,
            topk::READERS,
            unary::READERS,
        ],
        "com.microsoft" => &[nbits::MICROSOFT_READERS, recurrent::MICROSOFT_READERS],
        "lowbit" => &[
            lookup::LOWBIT_READERS,
            quantize::LOWBIT_READERS,
            recurrent::LOWBIT_READERS,
            recurrent::QUANTIZED_READERS,
        ],
        _ => &[],
    }
}

/// How nodes of this domain and type are read.
pub fn reader(domain: &str, op_type: &str) -> Option<ReadOp> {
    families(domain).iter().copied().flatten().find(|(name, _)| *name == op_type).map(|(_, read)| *read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operator_is_listed_once() {
        for name in ["Relu", "Clip", "Add", "Where", "Cast", "Reshape", "Slice", "Pad", "Softmax", "TopK"] {
            assert!(reader("", name).is_some(), "{name}");
            assert!(reader("no.such.domain", name).is_none(), "{name}");
        }
        assert!(reader("", "NoSuchOperator").is_none());
        for domain in ["", "com.microsoft", "lowbit"] {
            let mut names: Vec<&str> =
                families(domain).iter().copied().flatten().map(|(name, _)| *name).collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all, "{domain}");
        }
    }
}
