use flate2::Compression;
use flate2::write::DeflateEncoder;
use proptest::prelude::*;

use super::super::npy::tests::any_tensor;
use super::*;
use crate::tensor::DType;

/// An archive with these members, deflated or stored.
fn archive(members: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(vec![]));
    for (name, bytes) in members {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn stored_and_deflated_members_are_read() {
    let (a, b) = (Tensor::vector(vec![1.0f32, 2.0]), Tensor::full(&[100, 10], 7i64).unwrap());
    let (a_bytes, b_bytes) = (npy::encode(&a).unwrap(), npy::encode(&b).unwrap());
    let members: [(&str, &[u8]); 3] = [("b.npy", &b_bytes), ("dir/a.npy", &a_bytes), ("note.txt", b"hello")];
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let arrays = decode(&archive(&members, method)).unwrap();
        assert_eq!(arrays, [("b".to_owned(), b.clone()), ("dir/a".to_owned(), a.clone())], "{method}");
    }
}

#[test]
fn files_are_written_read_and_named_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let (x, y) = (Tensor::vector(vec![1u8, 2]), Tensor::scalar(3i32));
    write(&path, [("x", &x), ("y", &y)]).unwrap();
    assert_eq!(read(&path).unwrap(), [("x".to_owned(), x.clone()), ("y".to_owned(), y.clone())]);
    let before = std::fs::read(&path).unwrap();
    write(&path, [("x", &x), ("y", &y)]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), before, "the same arrays give the same bytes");

    let narrow = Tensor::coded(DType::U4, &[1], vec![1u8]).unwrap();
    let twice = write(&path, [("x", &x), ("x", &y)]).unwrap_err().to_string();
    let unsupported = write(&path, [("x", &x), ("w", &narrow)]).unwrap_err().to_string();
    assert!(twice.contains("a.npz"), "{twice}");
    assert!(["a.npz", "\"w\"", "uint4"].iter().all(|s| unsupported.contains(s)), "{unsupported}");
    assert_eq!(std::fs::read(&path).unwrap(), before, "a failed write changes nothing");

    let mut npz = Npz::open(&path).unwrap();
    let message = npz.read("z").unwrap_err().to_string();
    assert!(message.contains("no array \"z\"; it has x, y"), "{message}");
    std::fs::write(&path, b"no archive").unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("a.npz: is not an npz archive"));
}

#[test]
fn damaged_archives_are_refused() {
    let array = npy::encode(&Tensor::full(&[50], 9u8).unwrap()).unwrap();
    let stored = archive(&[("x.npy", &array)], CompressionMethod::Stored);
    let mut checksum = stored.clone();
    let nine = checksum.iter().rposition(|&b| b == 9).unwrap();
    checksum[nine] = 8;
    let cases = [
        ("cut", stored[..stored.len() - 30].to_vec(), "not an npz archive"),
        ("checksum", checksum, "\"x\": cannot be read"),
        (
            "empty member",
            archive(&[("x.npy", b"")], CompressionMethod::Stored),
            "\"x\": the npy header is cut",
        ),
        (
            "not npy",
            archive(&[("x.npy", b"hello, hello")], CompressionMethod::Deflated),
            "\"x\": is not an npy",
        ),
        (
            "member cut",
            archive(&[("x.npy", &array[..150])], CompressionMethod::Deflated),
            "\"x\": uint8[50] takes 50 bytes, 22 follow",
        ),
        (
            "member too long",
            archive(&[("x.npy", &[&array[..], &[0; 100_000]].concat())], CompressionMethod::Deflated),
            "takes 50 bytes, 100050 follow",
        ),
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
fn a_member_that_inflates_beyond_its_size_is_refused() {
    // The directory says 128 + 50 bytes; the deflated stream holds a megabyte more.
    let array = npy::encode(&Tensor::full(&[50], 9u8).unwrap()).unwrap();
    let bomb = [&array[..], &[0; 1 << 20]].concat();
    let mut bytes = archive(&[("x.npy", &bomb)], CompressionMethod::Deflated);
    let (old, new) = (u32::try_from(bomb.len()).unwrap().to_le_bytes(), u32::try_from(array.len()).unwrap());
    let places: Vec<usize> = (0..bytes.len() - 4).filter(|&i| bytes[i..i + 4] == old).collect();
    assert_eq!(places.len(), 2, "the size stands in the local header and in the directory");
    for at in places {
        bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
    }
    let message = decode(&bytes).unwrap_err().to_string();
    assert!(message.contains("larger than its declared"), "{message}");
}

#[test]
fn an_archive_that_claims_more_than_deflate_can_hold_is_refused() {
    let mut deflated = DeflateEncoder::new(vec![], Compression::best());
    deflated.write_all(&[0; 1 << 20]).unwrap();
    let ratio = (1u64 << 20) / deflated.finish().unwrap().len() as u64;
    assert!(ratio <= MAX_DEFLATE_RATIO, "{ratio}");

    let array = npy::encode(&Tensor::full(&[50], 9u8).unwrap()).unwrap();
    let mut bytes = archive(&[("x.npy", &array)], CompressionMethod::Stored);
    let size = u32::try_from(array.len()).unwrap().to_le_bytes();
    // Directory: compressed size, then size; the second copy of the pair.
    let last = (0..bytes.len() - 4).rfind(|&i| bytes[i..i + 4] == size).unwrap();
    bytes[last..last + 4].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    let message = decode(&bytes).unwrap_err().to_string();
    assert!(message.contains("cannot hold"), "{message}");
}

proptest! {
    #[test]
    fn what_is_written_is_read(tensors in prop::collection::vec(any_tensor(), 0..4)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        let names: Vec<String> = (0..tensors.len()).map(|i| format!("array {i}")).collect();
        write(&path, names.iter().map(String::as_str).zip(&tensors)).unwrap();
        let back = read(&path).unwrap();
        prop_assert_eq!(back.len(), tensors.len());
        for ((name, b), (n, t)) in back.iter().zip(names.iter().zip(&tensors)) {
            prop_assert_eq!((name, b.dtype(), b.shape()), (n, t.dtype(), t.shape()));
            prop_assert_eq!(b.to_bytes(), t.to_bytes());
        }
    }

    #[test]
    fn damaged_archives_do_not_panic(
        t in any_tensor(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        deflated: bool,
    ) {
        let method = if deflated { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        let mut bytes = archive(&[("x.npy", &npy::encode(&t).unwrap())], method);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = decode(&bytes);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }
}
