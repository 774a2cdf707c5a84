//! Messages of the vfio-user protocol, version 0.0: bytes to values and back.

/// Bytes of the header that every message begins with.
pub(super) const HEADER_LEN: usize = 16;
/// Most bytes of a region that one message may carry; QEMU reads all of configuration space
/// (4096 bytes) at once.
pub(super) const MAX_DATA: usize = 16 * 1024;
/// Bytes of a REGION_READ or REGION_WRITE before its data.
pub(super) const REGION_ACCESS_LEN: usize = 16;
/// Longest payload that is looked at; a longer one is skipped.
pub(super) const MAX_PAYLOAD: usize = REGION_ACCESS_LEN + MAX_DATA;
/// Most descriptors that one message may carry; as QEMU's own limit.
pub(super) const MAX_FDS: usize = 16;

/// Commands, by their number.
pub(super) mod command {
    pub(crate) const VERSION: u16 = 1;
    pub(crate) const DMA_MAP: u16 = 2;
    pub(crate) const DMA_UNMAP: u16 = 3;
    pub(crate) const DEVICE_GET_INFO: u16 = 4;
    pub(crate) const DEVICE_GET_REGION_INFO: u16 = 5;
    pub(crate) const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub(crate) const DEVICE_SET_IRQS: u16 = 8;
    pub(crate) const REGION_READ: u16 = 9;
    pub(crate) const REGION_WRITE: u16 = 10;
    pub(crate) const DEVICE_RESET: u16 = 13;
}

/// Bits of the flags word in the header.
mod flags {
    pub(super) const TYPE: u32 = 0xf;
    pub(super) const COMMAND: u32 = 0;
    pub(super) const REPLY: u32 = 1;
    pub(super) const NO_REPLY: u32 = 1 << 4;
    pub(super) const ERROR: u32 = 1 << 5;
}

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Chosen by the sender of a command; its reply repeats it.
    pub(super) id: u16,
    /// One of [`command`]; unchecked.
    pub(super) command: u16,
    /// Length of the message in bytes, header included; unchecked.
    pub(super) size: u32,
    flags: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let [a, b, c, d, s0, s1, s2, s3, f0, f1, f2, f3, ..] = *bytes;
        Self {
            id: u16::from_le_bytes([a, b]),
            command: u16::from_le_bytes([c, d]),
            size: u32::from_le_bytes([s0, s1, s2, s3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
        }
    }

    pub(super) fn is_command(self) -> bool {
        self.flags & flags::TYPE == flags::COMMAND
    }

    pub(super) fn wants_reply(self) -> bool {
        self.is_command() && self.flags & flags::NO_REPLY == 0
    }

    /// The reply to this command: header and payload.
    pub(super) fn reply(self, payload: &[u8]) -> Vec<u8> {
        self.reply_with(flags::REPLY, 0, payload)
    }

    /// The reply that says that this command failed, with a Linux errno value.
    pub(super) fn error_reply(self, errno: u32) -> Vec<u8> {
        self.reply_with(flags::REPLY | flags::ERROR, errno, &[])
    }

    fn reply_with(self, flags: u32, errno: u32, payload: &[u8]) -> Vec<u8> {
        let size = HEADER_LEN + payload.len();
        let mut bytes = Vec::with_capacity(size);
        bytes.extend(self.id.to_le_bytes());
        bytes.extend(self.command.to_le_bytes());
        bytes.extend(u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(errno.to_le_bytes());
        bytes.extend(payload);
        bytes
    }
}

/// The first `N` words of a payload; `None` if it is shorter.
pub(super) fn words<const N: usize>(payload: &[u8]) -> Option<[u32; N]> {
    let (chunks, _) = payload.as_chunks::<4>();
    let mut words = [0; N];
    for (word, chunk) in words.iter_mut().zip(chunks.get(..N)?) {
        *word = u32::from_le_bytes(*chunk);
    }
    Some(words)
}

/// Words as they stand in a payload.
pub(super) fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Two consecutive words as the 64-bit value they are.
pub(super) fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// A 64-bit value as two consecutive words.
pub(super) fn split(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMAND: [u8; 16] = [7, 1, 9, 0, 32, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn a_header_is_id_command_size_flags_error() {
        let header = Header::parse(&COMMAND);
        assert_eq!((header.id, header.command, header.size), (0x0107, 9, 32));
        assert!(header.is_command());
        assert!(!header.wants_reply());
    }

    #[test]
    fn a_reply_repeats_id_and_command() {
        let header = Header::parse(&COMMAND);
        assert_eq!(
            header.reply(&[5]),
            [7, 1, 9, 0, 17, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5]
        );
        assert_eq!(
            header.error_reply(22),
            [7, 1, 9, 0, 16, 0, 0, 0, 0x21, 0, 0, 0, 22, 0, 0, 0]
        );
    }

    #[test]
    fn words_are_little_endian_and_all_there_or_none() {
        assert_eq!(words(&[1, 0, 0, 0, 0, 2, 0, 0, 9]), Some([1, 0x200]));
        assert_eq!(words::<2>(&[0; 7]), None);
        assert_eq!(bytes(&[0x200]), [0, 2, 0, 0]);
        assert_eq!(split(0x1_0000_0002), [2, 1]);
        assert_eq!(join(2, 1), 0x1_0000_0002);
    }
}
