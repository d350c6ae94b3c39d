//! The inside of a capture's block: header, frame and checksums are right, as its documentation says.
#![no_main]

/// Behind the checksum of the header.
const HEADER: &[u8] = br#"{"node":"n","kernel":"k","version":"0","began_ns":0,"part":0,"closes_before":0}"#;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let mut file = b"\x89KMT\r\n\x1a\n".to_vec();
    let mut rest = 1_u16.to_le_bytes().to_vec();
    rest.extend((HEADER.len() as u16).to_le_bytes());
    let mut sum = crc32fast::Hasher::new();
    sum.update(&file);
    sum.update(&rest);
    sum.update(HEADER);
    let seed = sum.finalize();
    file.extend(rest);
    file.extend(seed.to_le_bytes());
    file.extend(HEADER);

    let checksum = |bytes: &[u8]| {
        let mut sum = crc32fast::Hasher::new_with_initial(seed);
        sum.update(bytes);
        sum.finalize()
    };
    let length = (body.len() as u32).to_le_bytes();
    let mut frame = b"\xf5KMB".to_vec();
    frame.extend(0_u32.to_le_bytes());
    frame.extend(length);
    frame.extend(length);
    frame.extend(checksum(body).to_le_bytes());
    frame.extend(checksum(&frame).to_le_bytes());
    file.extend(frame);
    file.extend(body);
    kmesh_trace_fuzz::read(&file);
});
