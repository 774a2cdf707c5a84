//! One feature each with real VMs. They are one program so that two of them run side by side: most
//! of them leave a processor idle for much of their time.

mod cluster;
mod control;
mod copy;
mod limits;
mod local;
mod protection;
mod snapshot;
