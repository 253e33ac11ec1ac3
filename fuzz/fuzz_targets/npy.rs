//! Arbitrary bytes read as `.npy` and as `.npz`: no panic, no allocation beyond
//! what the bytes can hold; what is read as `.npy` survives being written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowbit::data::{npy, npz};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(t) = npy::decode(bytes) {
        let again = npy::decode(&npy::encode(&t).unwrap()).unwrap();
        assert_eq!((again.dtype(), again.shape(), again.to_bytes()), (t.dtype(), t.shape(), t.to_bytes()));
    }
    let _ = npz::decode(bytes);
});
