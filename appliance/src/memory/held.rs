//! A mapping that one thread keeps in place for its rings and buffers.

use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use super::Mapping;

/// A hold on a mapping. Clones are counted without atomic operations, since each request makes
/// and drops several; so a hold and all its clones stay on one thread.
#[derive(Debug, Clone)]
pub struct Held(Rc<Hold>);

#[derive(Debug)]
struct Hold {
    mapping: Arc<Mapping>,
}

impl Held {
    /// A hold on `mapping`, with a count of its own.
    pub fn new(mapping: Arc<Mapping>) -> Self {
        Self(Rc::new(Hold { mapping }))
    }
}

impl Deref for Held {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        &self.0.mapping
    }
}
