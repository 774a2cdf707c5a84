//! Base64, as the agent in the guest speaks it.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// `bytes` in base64, with padding and without line breaks.
pub fn encode(bytes: &[u8]) -> String {
    let sextet = |word: u32, at: u32| char::from(ALPHABET[(word >> (18 - 6 * at) & 63) as usize]);
    let group = |chunk: &[u8]| {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        [
            sextet(word, 0),
            sextet(word, 1),
            if chunk.len() > 1 {
                sextet(word, 2)
            } else {
                '='
            },
            if chunk.len() > 2 {
                sextet(word, 3)
            } else {
                '='
            },
        ]
    };
    bytes.chunks(3).flat_map(group).collect()
}

/// The bytes that `text` stands for, unless it is not whole base64.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for chunk in digits.as_bytes().chunks(4) {
        let mut word = 0;
        for at in 0..4 {
            let digit = chunk.get(at).copied().unwrap_or(b'A');
            let value = ALPHABET.iter().position(|&letter| letter == digit)?;
            word = word << 6 | u32::try_from(value).ok()?;
        }
        bytes.extend_from_slice(&word.to_be_bytes()[1..chunk.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_rfc_4648() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ];
        for (plain, encoded) in pairs {
            assert_eq!(encode(plain.as_bytes()), encoded);
            assert_eq!(decode(encoded).as_deref(), Some(plain.as_bytes()));
        }
    }

    #[test]
    fn cut_text_is_refused() {
        assert_eq!(decode("Zg="), None);
        assert_eq!(decode("Zm9"), None);
        assert_eq!(decode("Z*=="), None);
    }
}
