use half::f16;
use proptest::prelude::*;

use super::*;

/// A version 1 file with this header text and data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn header(descr: &str, fortran: &str, shape: &str) -> String {
    format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
}

#[test]
fn what_numpy_writes_is_read() {
    let t = |shape: &[usize], x: Vec<i16>| Tensor::new(shape, x).unwrap();
    let cases = [
        (
            "f4",
            header("<f4", "False", "(2,)"),
            1.5f32.to_le_bytes().repeat(2),
            Tensor::vector(vec![1.5f32; 2]),
        ),
        (">f4", header(">f4", "False", "(1,)"), 1.5f32.to_be_bytes().to_vec(), Tensor::vector(vec![1.5f32])),
        ("f8", header("<f8", "False", "()"), (-0.5f64).to_le_bytes().to_vec(), Tensor::scalar(-0.5f64)),
        (">f2", header(">f2", "False", "()"), vec![0x3c, 0], Tensor::scalar(f16::ONE)),
        ("i1", header("|i1", "False", "(2,)"), vec![255, 1], Tensor::vector(vec![-1i8, 1])),
        ("u1", header("|u1", "False", "(1,)"), vec![255], Tensor::vector(vec![255u8])),
        ("<u1", header("<u1", "False", "(1,)"), vec![255], Tensor::vector(vec![255u8])),
        (">u2", header(">u2", "False", "()"), vec![1, 2], Tensor::scalar(0x0102u16)),
        (">i4", header(">i4", "False", "()"), vec![255, 255, 255, 254], Tensor::scalar(-2i32)),
        ("<u4", header("<u4", "False", "()"), vec![1, 0, 0, 128], Tensor::scalar(0x8000_0001u32)),
        (">i8", header(">i8", "False", "()"), (-3i64).to_be_bytes().to_vec(), Tensor::scalar(-3i64)),
        ("<u8", header("<u8", "False", "()"), u64::MAX.to_le_bytes().to_vec(), Tensor::scalar(u64::MAX)),
        ("b1", header("|b1", "False", "(2,)"), vec![0, 1], Tensor::vector(vec![false, true])),
        (
            "column-major",
            header("<i2", "True", "(2, 3)"),
            [0i16, 3, 1, 4, 2, 5].iter().flat_map(|x| x.to_le_bytes()).collect(),
            t(&[2, 3], vec![0, 1, 2, 3, 4, 5]),
        ),
        (
            "big-endian, column-major",
            header(">i2", "True", "(2, 2)"),
            vec![0, 1, 0, 3, 0, 2, 0, 4],
            t(&[2, 2], vec![1, 2, 3, 4]),
        ),
        ("empty", header("<i2", "True", "(3, 0)"), vec![], t(&[3, 0], vec![])),
        (
            "Python 2, double quotes, keys in another order, no padding",
            "{\"shape\":(2L,),\"descr\":\"<i2\",\"fortran_order\":False}".to_owned(),
            vec![1, 0, 2, 0],
            t(&[2], vec![1, 2]),
        ),
    ];
    let mut failures = vec![];
    for (name, header, data, expected) in &cases {
        match decode(&file(header, data)) {
            Ok(t) if t == *expected => {}
            other => failures.push(format!("{name}: {other:?}")),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn later_header_versions_are_read() {
    let header = header("<i2", "False", "(1,)");
    for version in [2, 3] {
        let mut bytes = [b"\x93NUMPY".as_slice(), &[version, 0]].concat();
        bytes.extend(u32::try_from(header.len()).unwrap().to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend([7, 0]);
        assert_eq!(decode(&bytes).unwrap(), Tensor::vector(vec![7i16]), "version {version}");
    }
}

#[test]
fn wrong_files_are_refused() {
    let ok = header("<i2", "False", "(2,)");
    let with = |version: [u8; 2], length: &[u8]| [b"\x93NUMPY".as_slice(), &version, length].concat();
    let cases = [
        ("nothing", vec![], "cut short"),
        ("not npy", b"PK\x03\x04....".to_vec(), "does not begin with"),
        ("version", with([9, 0], &[0; 8]), "version 9.0"),
        ("header length", with([2, 0], &u32::MAX.to_le_bytes()), "at most 65536"),
        ("header cut", with([1, 0], &[200, 0, b'{']), "1 of 200 bytes"),
        ("not text", file("", b"")[..8].iter().chain(&[1, 0, 255]).copied().collect(), "not text"),
        ("data cut", file(&ok, &[1, 0, 2]), "takes 4 bytes, 3 follow"),
        ("data left", file(&ok, &[1, 0, 2, 0, 9]), "takes 4 bytes, 5 follow"),
        ("too large", file(&header("<i2", "False", "(8000000000,)"), &[0; 4]), "16000000000 bytes, 4 follow"),
        ("overflow", file(&header("<i2", "False", "(4294967296, 4294967296)"), &[]), "too many elements"),
        ("size", file(&header("<i2", "False", "(99999999999999999999,)"), &[]), "a size"),
        ("negative", file(&header("<i2", "False", "(-1,)"), &[]), "a size"),
        ("rank", file(&header("<i2", "False", &format!("({})", "1,".repeat(65))), &[]), "64 dimensions"),
        ("no tuple", file(&header("<i2", "False", "2"), &[]), "'('"),
        ("order", file(&header("<i2", "0", "(2,)"), &[]), "True or False"),
        ("complex", file(&header("<c8", "False", "(2,)"), &[]), "element type \"<c8\" is not supported"),
        ("object", file(&header("|O", "False", "(2,)"), &[]), "element type \"|O\""),
        ("no order", file(&header("|f4", "False", "(2,)"), &[]), "element type \"|f4\""),
        ("multibyte", file(&header("é", "False", "(2,)"), &[]), "element type"),
        ("empty type", file(&header("", "False", "(2,)"), &[]), "element type \"\""),
        ("structured", file("{'descr': [('a', '<f4')], }", &[]), "structured"),
        ("missing key", file("{'descr': '<f4', 'shape': (1,)}", &[]), "lacks one of"),
        ("unknown key", file("{'order': 'C'}", &[]), "unknown key \"order\""),
        ("open string", file("{'descr", &[]), "a quoted string"),
        ("rest", file("{} x", &[]), "the end of the header"),
    ];
    let mut failures = vec![];
    for (name, bytes, expected) in &cases {
        match decode(bytes) {
            Err(e) if e.to_string().contains(expected) => {}
            other => failures.push(format!("{name}: {other:?}, expected {expected:?}")),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn files_are_named_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npy");
    assert!(read(&path).unwrap_err().to_string().contains("a.npy"));
    std::fs::write(&path, b"\x93NUMPX\x01\x00").unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("a.npy"));
    let narrow = Tensor::coded(DType::I4, &[1], vec![1i8]).unwrap();
    let message = write(&path, &narrow).unwrap_err().to_string();
    assert!(message.contains("a.npy") && message.contains("int4"), "{message}");
    write(&path, &Tensor::vector(vec![1i8])).unwrap();
    assert_eq!(read(&path).unwrap(), Tensor::vector(vec![1i8]));
}

#[test]
fn a_rank_that_numpy_lacks_is_refused() {
    assert!(encode(&Tensor::full(&[1; 65], 0u8).unwrap()).is_err());
    let deep = Tensor::full(&[1; 64], 0u8).unwrap();
    assert_eq!(decode(&encode(&deep).unwrap()).unwrap(), deep);
}

#[test]
fn the_header_is_numpys_own() {
    let bytes = encode(&Tensor::full(&[2, 3], 0f32).unwrap()).unwrap();
    let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
    assert_eq!(bytes[..10], *b"\x93NUMPY\x01\x00v\x00");
    assert_eq!(str::from_utf8(&bytes[10..128]).unwrap(), format!("{text:117}\n"));
    assert_eq!(bytes.len(), 128 + 24);
}

/// A tensor of any type that NumPy has, from bytes.
pub(in crate::data) fn any_tensor() -> impl Strategy<Value = Tensor> {
    let shape = prop::collection::vec(0usize..4, 0..4);
    (0..CODES.len(), shape, prop::collection::vec(any::<u8>(), 27 * 8)).prop_map(|(code, shape, bytes)| {
        let dtype = CODES[code].1;
        let n = dtype.bytes_of(shape.iter().product());
        Tensor::from_bytes(dtype, &shape, &bytes[..n]).unwrap()
    })
}

proptest! {
    // Compared as bytes: NaN differs from itself.
    #[test]
    fn what_is_written_is_read(t in any_tensor()) {
        let back = decode(&encode(&t).unwrap()).unwrap();
        prop_assert_eq!((back.dtype(), back.shape()), (t.dtype(), t.shape()));
        prop_assert_eq!(back.to_bytes(), t.to_bytes());
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let _ = decode(&[b"\x93NUMPY\x01\x00".as_slice(), &bytes].concat());
    }

    #[test]
    fn no_header_panics(text in "[{}'\":,() a-zA-Z0-9<>|L]{0,80}", descr in "[<>|][a-z][0-9]") {
        let _ = decode(&file(&text, &[]));
        let _ = decode(&file(&header(&descr, "True", &text), &[0; 16]));
        let _ = decode(&file(&format!("{{'descr': '{descr}', {text}"), &[0; 16]));
    }

    #[test]
    fn damaged_files_do_not_panic(t in any_tensor(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = encode(&t).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode(&bytes);
        prop_assert!(decode(&encode(&t).unwrap()[..at]).is_err());
    }
}

#[test]
fn rows_are_read_from_the_file_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    let whole = Tensor::new(&[5, 2], (0..10i16).collect::<Vec<_>>()).unwrap();
    write(&path, &whole).unwrap();
    let rows = Rows::open(&path).unwrap().unwrap();
    assert_eq!((rows.dtype(), rows.shape()), (DType::I16, [5, 2].as_slice()));
    for wanted in [&[][..], &[0], &[4], &[1, 2, 3], &[3, 4, 0, 0, 2, 1]] {
        let values: Vec<i16> = wanted.iter().flat_map(|&r| [2 * r as i16, 2 * r as i16 + 1]).collect();
        assert_eq!(
            rows.read(wanted).unwrap(),
            Tensor::new(&[wanted.len(), 2], values).unwrap(),
            "{wanted:?}"
        );
    }
    std::fs::write(&path, &encode(&whole).unwrap()[..128 + 7]).unwrap();
    assert_eq!(rows.read(&[0]).unwrap().to_bytes(), [0, 0, 1, 0]);
    let message = rows.read(&[0, 1]).unwrap_err().to_string();
    assert!(message.contains("x.npy") && message.contains("ends before row 1"), "{message}");
    let message = rows.read(&[5]).unwrap_err().to_string();
    assert!(message.contains("5 rows, and no row 5"), "{message}");
}

#[test]
fn rows_that_do_not_lie_together_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    let two = [0i16, 2, 1, 3].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    for (fortran, shape, data, lie_together) in [
        ("True", "(2, 2)", &two[..], false),
        ("False", "(2, 2)", &two[..], true),
        ("False", "()", &two[..2], false),
    ] {
        std::fs::write(&path, file(&header("<i2", fortran, shape), data)).unwrap();
        assert_eq!(Rows::open(&path).unwrap().is_some(), lie_together, "{fortran} {shape}");
    }
    std::fs::write(&path, file(&header(">i2", "False", "(2, 2)"), &[0, 1, 0, 2, 1, 0, 2, 0])).unwrap();
    let rows = Rows::open(&path).unwrap().unwrap();
    assert_eq!(rows.read(&[1]).unwrap(), Tensor::new(&[1, 2], vec![256i16, 512]).unwrap());
    std::fs::write(&path, file(&header("<i2", "False", "(2, 2)"), &two[..7])).unwrap();
    let message = Rows::open(&path).unwrap_err().to_string();
    assert!(message.contains("x.npy") && message.contains("7 follow"), "{message}");
}
