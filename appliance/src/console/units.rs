//! Sizes and times as people write and read them.

/// Units of sizes, each 1024 of the one before.
const SIZES: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// Bytes with a unit, in three or four digits.
pub(super) fn bytes(bytes: u64) -> String {
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_240 && unit + 1 < SIZES.len() {
        tenths /= 1024;
        unit += 1;
    }
    let name = SIZES[unit];
    match (unit, tenths) {
        (0, _) => format!("{bytes} {name}"),
        (_, 1000..) => format!("{} {name}", tenths / 10),
        (_, tenths) if tenths % 10 == 0 => format!("{} {name}", tenths / 10),
        (_, tenths) => format!("{}.{} {name}", tenths / 10, tenths % 10),
    }
}

/// The same in five letters: 1.3M.
pub(super) fn short_bytes(size: u64) -> String {
    let text = bytes(size);
    let (number, unit) = text.split_once(' ').unwrap_or((&text, ""));
    let unit = unit.trim_end_matches("iB").trim_end_matches('B');
    format!("{number}{unit}")
}

/// A count in four digits at most, with k, M, G or T for thousands.
pub(super) fn count(count: u64) -> String {
    let (mut value, mut unit) = (count, 0);
    while value >= 10_000 && unit < 4 {
        value /= 1000;
        unit += 1;
    }
    format!("{value}{}", ["", "k", "M", "G", "T"][unit])
}

/// Microseconds as a time.
pub(super) fn micros(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} µs"),
        1000..10_000 => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
        10_000..1_000_000 => format!("{} ms", micros / 1000),
        _ => format!("{}.{} s", micros / 1_000_000, micros % 1_000_000 / 100_000),
    }
}

/// Seconds as a time.
pub(super) fn seconds(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// The bytes in a text such as 10G, 512MiB or 4096: units are of 1024.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let end = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().ok()?;
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(&unit);
    let power = match unit {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    number.checked_mul(1024_u64.pow(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, expected) in [
            ("4096", 4096),
            ("10G", 10 << 30),
            ("512MiB", 512 << 20),
            ("2 tb", 2 << 40),
            ("0", 0),
        ] {
            assert_eq!(parse_bytes(text), Some(expected), "{text}");
        }
        for bad in ["", "G", "1.5G", "-1", "10X", "99999999999P"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_counts_and_times_are_short() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(10 << 30), "10 GiB");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16383 PiB");
        assert_eq!(short_bytes(512), "512");
        assert_eq!(short_bytes(1536), "1.5K");
        assert_eq!(short_bytes(1023 << 20), "1023M");
        assert_eq!(count(9999), "9999");
        assert_eq!(count(12_345_678), "12M");
        assert_eq!(micros(85), "85 µs");
        assert_eq!(micros(2450), "2.4 ms");
        assert_eq!(micros(25_300_000), "25.3 s");
        assert_eq!(seconds(7384), "2 h 3 min");
    }
}
