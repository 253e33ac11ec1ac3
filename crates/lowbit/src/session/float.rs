//! f32 operators on channels-last (NHWC) images, with constant weights packed at
//! compile time.

pub mod conv;
mod product;
