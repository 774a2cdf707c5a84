//! The CRC of Ethernet (IEEE 802.3, CRC-32), which notices every burst of up to 32 bits.

/// The polynomial, its lowest power in the highest bit.
const POLYNOMIAL: u32 = 0xedb8_8320;

/// The CRC of `bytes`. It is made bit by bit: what is summed is short and seldom.
pub fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let feedback = if crc & 1 == 0 { 0 } else { POLYNOMIAL };
            crc = crc >> 1 ^ feedback;
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_one_that_catalogues_of_crcs_list() {
        // The check value of CRC-32.
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
        assert_eq!(checksum(b""), 0);
    }
}
