//! Rings that break the rules, over a vhost-user socket.

#[path = "world_hostile.rs"]
mod world_hostile;
