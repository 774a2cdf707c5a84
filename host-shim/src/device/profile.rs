//! What one vhost-pci function is started with.

use spec::device::{DEFAULT_VECTORS, MAX_RINGS, MAX_VECTORS};
use spec::version::{self, Version};
use spec::virtio_scsi::FIRST_REQUEST_QUEUE;
use uuid::Uuid;

/// Request queues of a function unless told otherwise.
const DEFAULT_REQUEST_QUEUES: u16 = 8;

/// What one vhost-pci function is started with.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Name of the HBA, for people.
    pub name: String,
    /// UUID of the HBA: the I_T nexus.
    pub hba: Uuid,
    /// UUID of the tenant, if it is known.
    pub tenant: Option<Uuid>,
    /// Vrings that the tenant may use, control and event queue included: 3 to
    /// [`MAX_RINGS`].
    pub rings: u16,
    /// MSI vectors to offer: a power of two, at most [`MAX_VECTORS`].
    pub vectors: usize,
    /// Version that the function says it is.
    pub version: Version,
}

impl Profile {
    /// A function with eight request queues and the default number of vectors, of the version
    /// that the `spec` crate describes.
    pub fn new(name: impl Into<String>, hba: Uuid) -> Self {
        Self {
            name: name.into(),
            hba,
            tenant: None,
            rings: FIRST_REQUEST_QUEUE + DEFAULT_REQUEST_QUEUES,
            vectors: DEFAULT_VECTORS,
            version: version::CURRENT,
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`ProfileError`] naming the first one that is out of range.
    pub fn check(&self) -> Result<(), ProfileError> {
        if self.rings <= FIRST_REQUEST_QUEUE || usize::from(self.rings) > MAX_RINGS {
            return Err(ProfileError::Rings(self.rings));
        }
        if !self.vectors.is_power_of_two() || self.vectors > MAX_VECTORS {
            return Err(ProfileError::Vectors(self.vectors));
        }
        Ok(())
    }
}

/// A [`Profile`] that no function can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Too few or too many vrings.
    #[error(
        "{0} vrings cannot be offered; give 1 to 126 request queues (control and event come on top)"
    )]
    Rings(u16),
    /// A number of vectors that MSI cannot express.
    #[error("{0} MSI vectors cannot be offered; give 1, 2, 4, 8, 16 or 32")]
    Vectors(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_is_valid() {
        assert_eq!(Profile::new("hba0", Uuid::nil()).check(), Ok(()));
    }

    #[test]
    fn numbers_that_pci_or_virtio_cannot_express_are_refused() {
        let base = Profile::new("hba0", Uuid::nil());
        let rings = |rings| {
            Profile {
                rings,
                ..base.clone()
            }
            .check()
        };
        let vectors = |vectors| {
            Profile {
                vectors,
                ..base.clone()
            }
            .check()
        };
        assert_eq!(rings(2), Err(ProfileError::Rings(2)));
        assert_eq!(rings(129), Err(ProfileError::Rings(129)));
        assert_eq!(rings(128), Ok(()));
        assert_eq!(vectors(0), Err(ProfileError::Vectors(0)));
        assert_eq!(vectors(12), Err(ProfileError::Vectors(12)));
        assert_eq!(vectors(64), Err(ProfileError::Vectors(64)));
        assert_eq!(vectors(1), Ok(()));
    }
}
