//! The limits of LUNs, HBAs and groups, as they are put into force.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::{Hba, Luns, Service, View};
use crate::config::{Config, Limit};
use crate::inbox::Limited;
use crate::limit::Meter;

/// The limits that several HBAs may share.
#[derive(Debug, Default)]
pub(crate) struct SharedLimits {
    /// By the names of LUNs.
    luns: HashMap<String, Limit>,
    /// By the names of groups.
    groups: HashMap<String, Limit>,
}

impl SharedLimits {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        let luns = config.luns.iter();
        let groups = config.groups.iter();
        Self {
            luns: luns.map(|lun| (lun.name.clone(), lun.limit)).collect(),
            groups: groups
                .map(|group| (group.name.clone(), group.limit))
                .collect(),
        }
    }
}

impl Service {
    /// Puts limits into force; whoever waits for one hears of it. Returns what was there and has
    /// another now, each with its kind.
    pub(super) fn set_limits(&mut self, limits: &SharedLimits, luns: &Luns) -> Vec<String> {
        let now = Instant::now();
        let mut changed = Vec::new();
        for (name, unit) in luns {
            let limit = limits.luns.get(name).copied().unwrap_or_default();
            if unit.meter().set(limit, now) && self.luns.contains_key(name) {
                changed.push(format!("LUN {name}"));
            }
        }
        let mut before = std::mem::take(&mut self.groups);
        for (name, limit) in &limits.groups {
            let known = before.remove(name);
            let is_new = known.is_none();
            let meter = known.unwrap_or_default();
            if meter.set(*limit, now) || is_new {
                changed.push(format!("group {name}"));
            }
            self.groups.insert(name.clone(), meter);
        }
        changed.extend(before.into_keys().map(|name| format!("group {name}")));
        changed
    }
}

impl Hba {
    /// What limits it.
    pub(super) fn limited(&self, groups: &HashMap<String, Arc<Meter>>) -> Limited {
        let group = self.view.group.as_ref();
        Limited {
            own: Arc::clone(&self.meter),
            group: group.and_then(|name| groups.get(name)).cloned(),
            weight: self.view.weight,
        }
    }

    /// Whether a view has other limits, or another weight.
    pub(super) fn is_limited_otherwise(&self, view: &View) -> bool {
        let of = |view: &View| (view.limit, view.group.clone(), view.weight);
        of(&self.view) != of(view)
    }
}
