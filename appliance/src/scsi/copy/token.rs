//! ROD tokens of an HBA: what each stands for, and how long.
//!
//! A token is a point in time copy of the change vulnerable type: it stands for blocks as they were
//! when it was made, and is revoked by the first change of any of them, whoever makes it and
//! whatever by. No copy of the blocks is kept, so a token costs no space; and none is ever used for
//! others than those that the initiator meant. That holds for all that this appliance does; what
//! another program does to the disk beside it, it does not hear of.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::limits::MAX_TOKENS;
use super::list::IDENTIFICATION;
use super::problem::Problem;
use super::token_list::{CHANGE_VULNERABLE, TOKEN_LEN};
use crate::disk::Watch;
use crate::scsi::{LogicalUnit, capacity};

/// ROD type of the block device zero ROD token, which stands for zeros without end.
const ZERO: u32 = 0xffff_0001;
/// ROD TOKEN LENGTH of every token.
const LENGTH: u16 = 0x01f8;

/// Blocks of a unit at a point in time.
#[derive(Debug)]
pub struct Token {
    bytes: Box<[u8; TOKEN_LEN]>,
    /// Not kept open by this.
    unit: Weak<LogicalUnit>,
    watch: Watch,
    inactivity: Duration,
    used: Mutex<Instant>,
}

/// What a token in a parameter list is.
#[derive(Debug, Clone)]
pub enum Named {
    Zeros,
    Token(Arc<Token>),
}

/// The tokens that an HBA was given. No other HBA can use them: it may not see their units.
#[derive(Debug, Default)]
pub struct Tokens(Mutex<Vec<Arc<Token>>>);

impl Token {
    /// A token for these bytes of a unit, in their order, as (first byte, length).
    pub fn new(
        unit: &Arc<LogicalUnit>,
        ranges: Vec<(u64, u64)>,
        inactivity: Duration,
        now: Instant,
    ) -> Self {
        let len = ranges.iter().map(|(_, len)| len).sum();
        Self {
            bytes: bytes(unit, len),
            unit: Arc::downgrade(unit),
            watch: Watch::new(ranges),
            inactivity,
            used: Mutex::new(now),
        }
    }

    pub fn bytes(&self) -> &[u8; TOKEN_LEN] {
        &self.bytes
    }

    pub fn unit(&self) -> Option<Arc<LogicalUnit>> {
        self.unit.upgrade()
    }

    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Checks that what it stands for is as it was.
    ///
    /// # Errors
    /// [`Problem::TokenRevoked`].
    pub fn check(&self) -> Result<(), Problem> {
        if self.watch.is_changed() {
            return Err(Problem::TokenRevoked);
        }
        Ok(())
    }

    /// Its time begins anew.
    pub fn touch(&self, now: Instant) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn is_expired(&self, now: Instant) -> bool {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        now.saturating_duration_since(used) >= self.inactivity
    }

    /// Looks at every byte, so that the time it takes tells nothing about them.
    fn is(&self, bytes: &[u8; TOKEN_LEN]) -> bool {
        let pairs = self.bytes.iter().zip(bytes);
        pairs.fold(0, |other, (ours, theirs)| other | (ours ^ theirs)) == 0
    }
}

/// The token's own bytes: what the standard wants to be known, and 244 random bits.
fn bytes(unit: &LogicalUnit, len: u64) -> Box<[u8; TOKEN_LEN]> {
    let geometry = unit.disk().geometry();
    let (secret, more) = (Uuid::new_v4(), Uuid::new_v4());
    let mut bytes = [0; TOKEN_LEN];
    bytes[..4].copy_from_slice(&CHANGE_VULNERABLE.to_be_bytes());
    bytes[6..8].copy_from_slice(&LENGTH.to_be_bytes());
    // COPY MANAGER ROD TOKEN IDENTIFIER.
    bytes[8..16].copy_from_slice(&Uuid::new_v4().as_bytes()[..8]);
    // CREATOR LOGICAL UNIT DESCRIPTOR: binary; logical unit, NAA; 8 bytes.
    bytes[16] = IDENTIFICATION;
    bytes[20..24].copy_from_slice(&[0x01, 0x03, 0, 8]);
    bytes[24..32].copy_from_slice(&unit.naa().to_be_bytes());
    bytes[44..48].copy_from_slice(&geometry.block_size.to_be_bytes());
    // NUMBER OF BYTES REPRESENTED has 16 bytes.
    bytes[56..64].copy_from_slice(&len.to_be_bytes());
    // Device type specific data: as READ CAPACITY(16) tells it.
    let capacity = capacity::long(&geometry, &unit.disk().abilities(), unit.protection());
    for (byte, told) in bytes[96..104].iter_mut().zip(capacity.iter().skip(8)) {
        *byte = *told;
    }
    bytes[128..144].copy_from_slice(secret.as_bytes());
    bytes[144..160].copy_from_slice(more.as_bytes());
    Box::new(bytes)
}

impl Tokens {
    /// Checks that one more can be kept.
    ///
    /// # Errors
    /// [`Problem::NoRoomForToken`].
    pub fn check_room(&self, now: Instant) -> Result<(), Problem> {
        let mut tokens = self.lock();
        tokens.retain(|token| !token.is_expired(now) && token.unit.strong_count() > 0);
        if tokens.len() >= MAX_TOKENS {
            // Those that are of no use any more have only been kept to be told of.
            tokens.retain(|token| token.check().is_ok());
        }
        if tokens.len() >= MAX_TOKENS {
            return Err(Problem::NoRoomForToken);
        }
        Ok(())
    }

    /// Keeps one more.
    ///
    /// # Errors
    /// As for [`Self::check_room`].
    pub fn insert(&self, token: &Arc<Token>, now: Instant) -> Result<(), Problem> {
        self.check_room(now)?;
        self.lock().push(Arc::clone(token));
        Ok(())
    }

    /// The token with these bytes.
    ///
    /// # Errors
    /// [`Problem::TokenLength`], [`Problem::TokenType`], [`Problem::TokenUnknown`],
    /// [`Problem::TokenExpired`], [`Problem::TokenRevoked`].
    pub fn find(&self, bytes: &[u8; TOKEN_LEN], now: Instant) -> Result<Named, Problem> {
        let kind = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if bytes[6..8] != LENGTH.to_be_bytes() {
            return Err(Problem::TokenLength);
        }
        match kind {
            ZERO => return Ok(Named::Zeros),
            CHANGE_VULNERABLE => {}
            _ => return Err(Problem::TokenType),
        }
        let mut tokens = self.lock();
        let found = tokens.iter().position(|token| token.is(bytes));
        let index = found.ok_or(Problem::TokenUnknown)?;
        if tokens[index].is_expired(now) {
            tokens.remove(index);
            return Err(Problem::TokenExpired);
        }
        tokens[index].check()?;
        Ok(Named::Token(Arc::clone(&tokens[index])))
    }

    /// Keeps it no longer.
    pub fn remove(&self, token: &Arc<Token>) {
        self.lock().retain(|other| !Arc::ptr_eq(other, token));
    }

    /// Keeps none.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Token>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::testing::{Shape, unit};

    fn token(unit: &Arc<LogicalUnit>, now: Instant) -> Arc<Token> {
        let ranges = vec![(512, 1024), (8192, 512)];
        Arc::new(Token::new(unit, ranges, Duration::from_secs(60), now))
    }

    fn problem(result: Result<Named, Problem>) -> Option<Problem> {
        result.err()
    }

    #[test]
    fn a_token_says_what_the_standard_wants_and_is_unlike_every_other() {
        let (unit, now) = (Arc::new(unit(Shape::PLAIN)), Instant::now());
        let (one, other) = (token(&unit, now), token(&unit, now));
        let bytes = one.bytes();
        assert_eq!(bytes[..8], [0x00, 0x80, 0x00, 0x01, 0, 0, 0x01, 0xf8]);
        assert_eq!(bytes[16..24], [0xe4, 0, 0, 0, 0x01, 0x03, 0, 8]);
        assert_eq!(bytes[24..32], 0x3354_fd1f_f0c4_67cf_u64.to_be_bytes());
        assert_eq!(bytes[44..48], [0, 0, 2, 0]);
        assert_eq!(bytes[48..64], 1536_u128.to_be_bytes());
        assert_eq!(bytes[96..104], [0, 0, 2, 0, 0, 3, 0, 0]);
        assert_ne!(bytes[8..16], other.bytes()[8..16]);
        assert_ne!(bytes[128..144], other.bytes()[128..144]);
        assert_ne!(bytes[144..160], other.bytes()[144..160]);
    }

    #[test]
    fn a_token_that_is_not_used_expires() {
        let (unit, now) = (Arc::new(unit(Shape::PLAIN)), Instant::now());
        let (tokens, token) = (Tokens::default(), token(&unit, now));
        tokens.insert(&token, now).unwrap();
        let later = now + Duration::from_secs(59);
        assert!(tokens.find(token.bytes(), later).is_ok());
        token.touch(later);
        let much_later = later + Duration::from_secs(59);
        assert!(tokens.find(token.bytes(), much_later).is_ok());
        let too_late = later + Duration::from_secs(60);
        let found = problem(tokens.find(token.bytes(), too_late));
        assert_eq!(found, Some(Problem::TokenExpired));
        let found = problem(tokens.find(token.bytes(), too_late));
        assert_eq!(found, Some(Problem::TokenUnknown));
    }

    #[test]
    fn one_wrong_bit_is_another_token() {
        let (unit, now) = (Arc::new(unit(Shape::PLAIN)), Instant::now());
        let (tokens, token) = (Tokens::default(), token(&unit, now));
        tokens.insert(&token, now).unwrap();
        for byte in [8, 24, 56, 128, 159, 511] {
            let mut bytes = *token.bytes();
            bytes[byte] ^= 1;
            let found = problem(tokens.find(&bytes, now));
            assert_eq!(found, Some(Problem::TokenUnknown), "{byte}");
        }
        let with = |byte: usize, value| {
            let mut bytes = *token.bytes();
            bytes[byte] = value;
            problem(tokens.find(&bytes, now))
        };
        assert_eq!(with(7, 0xf9), Some(Problem::TokenLength));
        assert_eq!(with(3, 0x02), Some(Problem::TokenType));
    }

    #[test]
    fn there_are_never_more_tokens_than_the_limit() {
        let (unit, now) = (Arc::new(unit(Shape::PLAIN)), Instant::now());
        let tokens = Tokens::default();
        for _ in 0..128 {
            tokens.insert(&token(&unit, now), now).unwrap();
        }
        let full = Err(Problem::NoRoomForToken);
        assert_eq!(tokens.check_room(now), full);
        assert_eq!(tokens.insert(&token(&unit, now), now), full);
        assert_eq!(tokens.check_room(now + Duration::from_secs(60)), Ok(()));
    }

    #[test]
    fn tokens_of_a_unit_that_is_gone_are_gone() {
        let (unit, now) = (Arc::new(unit(Shape::PLAIN)), Instant::now());
        let (tokens, token) = (Tokens::default(), token(&unit, now));
        tokens.insert(&token, now).unwrap();
        drop(unit);
        assert!(token.unit().is_none());
        tokens.check_room(now).unwrap();
        let found = problem(tokens.find(token.bytes(), now));
        assert_eq!(found, Some(Problem::TokenUnknown));
    }
}
