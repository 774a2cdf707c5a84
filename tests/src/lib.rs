//! The test harness.

pub mod vm;
