//! The third-party copy commands as their CDBs say them.

/// A third-party copy command. Lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// EXTENDED COPY.
    Extended {
        format: Format,
        /// PARAMETER LIST LENGTH, here and below.
        len: usize,
    },
    /// POPULATE TOKEN.
    Populate { list: u32, len: usize },
    /// WRITE USING TOKEN.
    Write { list: u32, len: usize },
    /// COPY OPERATION ABORT.
    Abort { list: u32 },
    /// THIRD-PARTY COPY IN: what became of a copy, or what copies there can be.
    Receive {
        what: What,
        list: u32,
        allocation: usize,
    },
}

/// How long a list identifier is: that of the older commands has one byte, the others have four.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Lid1,
    Lid4,
}

/// What a THIRD-PARTY COPY IN command asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    StatusLid1,
    DataLid1,
    OperatingParameters,
    FailureDetails,
    StatusLid4,
    DataLid4,
    Token,
}

impl Request {
    /// Whether it may be carried out a second time before its first answer. A copy may not: its
    /// source may be what it has written itself, or have changed since; and nobody who was told of
    /// a token would know of a second one.
    pub const fn may_be_repeated(self) -> bool {
        matches!(self, Self::Abort { .. } | Self::Receive { .. })
    }
}
