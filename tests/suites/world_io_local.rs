//! Reads, writes and everything around them, over a vhost-user socket.

#[path = "world_io.rs"]
mod world_io;
