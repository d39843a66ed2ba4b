//! SHA-256 in hexadecimal: the identity of files, settings and artefacts.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::files::FileError;

const READ_BYTES: usize = 1 << 20;

/// SHA-256 of a file's bytes, 64 hexadecimal digits.
///
/// # Errors
/// The file cannot be read.
pub fn hash_file(path: &Path) -> Result<String, FileError> {
    let mut file = File::open(path).map_err(FileError::io("read", path))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = file
            .read(&mut buffer)
            .map_err(FileError::io("read", path))?;
        if read == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buffer[..read]);
    }
}

/// SHA-256 of bytes, 64 hexadecimal digits.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a value's canonical JSON: no spaces, keys sorted at every level.
///
/// # Panics
/// The value has no JSON (a map whose keys are no strings): a programmer's error.
pub fn hash_json<T: Serialize>(value: &T) -> String {
    let tree = serde_json::to_value(value);
    assert!(
        tree.is_ok(),
        "a hashed value must have a JSON form: {:?}",
        tree.err()
    );
    let mut text = String::new();
    canonical(&tree.unwrap_or_default(), &mut text);
    hash_bytes(text.as_bytes())
}

/// Sorting here, and not by trust in `serde_json::Map`, whose order is a feature that any crate of
/// the build may change.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            out.push('{');
            for (i, (key, entry)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                canonical(entry, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        leaf => out.push_str(&leaf.to_string()),
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| {
            [
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]
        })
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // printf abc | sha256sum
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn agrees_with_sha256sum() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("f"), "abc")?;
        assert_eq!(hash_bytes(b"abc"), ABC);
        assert_eq!(hash_file(&dir.path().join("f"))?, ABC);
        Ok(())
    }

    #[test]
    fn json_is_hashed_in_its_canonical_form() {
        let value = serde_json::json!({"b": [1, {"y": null, "x": "q\""}], "a": 0.5});
        let text = r#"{"a":0.5,"b":[1,{"x":"q\"","y":null}]}"#;
        assert_eq!(hash_json(&value), hash_bytes(text.as_bytes()));
    }
}
