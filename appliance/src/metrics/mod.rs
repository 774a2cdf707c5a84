//! What monitoring systems are told, in the OpenMetrics text format over HTTP.
//!
//! [`Server`] takes clients and reads their requests (`request`), where the configuration says
//! (`outlet`); a `page` has what they get, and what the method `metrics` of the control protocol
//! gives to those whom no network reaches.
//! To fill it, workers are asked through their inboxes as the control protocol asks them
//! (`scrape`), at most a few times a second however many clients there are; `families` gives the
//! figures their names, and `format` writes them. Nothing here is on the way of a tenant's command.
//!
//! `appliance/docs/metrics.md` has every name, and what each alarm means.

mod families;
mod format;
mod outlet;
mod page;
mod place;
mod request;
mod scrape;
mod server;

pub(crate) use self::outlet::Outlet;
pub use self::outlet::{Serving, serve};
pub(crate) use self::page::Page;
pub use self::place::BindError;
pub use self::server::{MetricsError, Server};
