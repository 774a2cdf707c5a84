//! What a logical unit is known by, wherever it is shown.

/// A LUN name that cannot be an identity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("LUN name {0:?} must be 1 to 64 printable ASCII characters without spaces")]
pub struct BadName(pub String);

/// Most characters of a name.
const MAX_NAME: usize = 64;

/// The name of a logical unit, from which its serial number and identifiers come.
#[derive(Debug)]
pub struct Identity {
    name: String,
}

impl Identity {
    /// The identity of the unit called `name`.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn new(name: &str) -> Result<Self, BadName> {
        let good = name.bytes().all(|byte| byte.is_ascii_graphic());
        if name.is_empty() || name.len() > MAX_NAME || !good {
            return Err(BadName(name.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
        })
    }

    /// The name, which is also the serial number.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// NAA identifier, locally assigned (SPC-4 §7.8.6.6.4): 60 bits of FNV-1a over the name.
    pub fn naa(&self) -> u64 {
        let hash = self
            .name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        0x3 << 60 | (hash ^ hash >> 60) & (u64::MAX >> 4)
    }
}
