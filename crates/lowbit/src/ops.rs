//! The operators, one family a file, and the table that reads ONNX nodes.
//!
//! A new operator is a struct in a family's file and a row of its `READERS`.

pub mod binary;
pub mod broadcast;
pub mod cast;
pub mod clip;
pub mod compare;
pub mod conv;
pub mod conv_transpose;
pub mod einsum;
pub mod float;
pub mod gather;
pub mod generate;
pub mod integer;
pub mod layout;
pub mod linear;
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
pub(crate) mod product;
pub(crate) mod strided;
mod symbolic;
pub(crate) mod vectorized;

use crate::op::ReadOp;

/// The families' tables.
fn families() -> impl IntoIterator<Item = &'static [(&'static str, ReadOp)]> {
    [
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
    ]
}

/// How nodes of this type in the standard domain are read.
pub fn reader(op_type: &str) -> Option<ReadOp> {
    families().into_iter().flatten().find(|(name, _)| *name == op_type).map(|(_, read)| *read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operator_is_listed_once() {
        for name in ["Relu", "Clip", "Add", "Where", "Cast", "Reshape", "Slice", "Pad", "Softmax", "TopK"] {
            assert!(reader(name).is_some(), "{name}");
        }
        assert!(reader("NoSuchOperator").is_none());
        let mut names: Vec<&str> = families().into_iter().flatten().map(|(name, _)| *name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
