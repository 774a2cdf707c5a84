//! The storage appliance.
