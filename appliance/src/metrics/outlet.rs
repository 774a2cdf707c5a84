//! Where metrics are served, which may be another place with each configuration.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::place::BindError;
use super::server::{MetricsError, Server};
use crate::config::Listen;
use crate::control::Desk;

/// Serves the metrics of the appliance that `desk` is about at `given`; without it, wherever the
/// configuration in force says, now and whenever there is another.
///
/// # Errors
/// [`MetricsError`], if they cannot be served there now.
pub fn serve(desk: &Arc<Desk>, given: Option<Listen>) -> Result<Serving, MetricsError> {
    desk.book.serve_metrics(desk, given)?;
    Ok(Serving(Arc::clone(desk)))
}

/// Metrics that are served; dropping it ends that, and no configuration begins it anew.
#[derive(Debug)]
#[must_use = "metrics are served for as long as it is there"]
pub struct Serving(Arc<Desk>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.book.outlet().close();
    }
}

/// Where metrics come out, once somebody has them served.
#[derive(Debug, Default)]
pub(crate) struct Outlet(Mutex<Option<Open>>);

#[derive(Debug)]
struct Open {
    /// What they are about. It leads back to here, until this is closed.
    desk: Arc<Desk>,
    /// Whether they are served at a place that counts more than the configuration's.
    given: bool,
    /// What the configuration in force says.
    configured: Option<Listen>,
    server: Option<Server>,
}

/// What another configuration has ready for metrics.
#[derive(Debug)]
pub(crate) enum Next {
    /// Nothing: it says the same, or nobody has them served.
    Same,
    /// It says another place, which does not count.
    Overruled(Option<Listen>),
    /// They are served there already, if anywhere, beside where they were.
    Moved(Option<Listen>, Option<Server>),
}

impl Outlet {
    /// Serves from now on, at `given` or else where the configuration says.
    ///
    /// # Errors
    /// [`MetricsError`]; it stays closed then.
    pub fn open(
        &self,
        desk: &Arc<Desk>,
        given: Option<Listen>,
        configured: Option<Listen>,
    ) -> Result<(), MetricsError> {
        let at = given.as_ref().or(configured.as_ref());
        let server = at
            .map(|at| Server::start(at, Arc::clone(desk)))
            .transpose()?;
        if let Some(server) = &server {
            tracing::info!("metrics are served {}", Place(Some(server)));
        }
        *self.state() = Some(Open {
            desk: Arc::clone(desk),
            given: given.is_some(),
            configured,
            server,
        });
        Ok(())
    }

    /// Serves no more, whatever comes.
    fn close(&self) {
        let open = self.state().take();
        drop(open);
    }

    /// Serves where a configuration says that is to be put into force, and still where they were.
    ///
    /// # Errors
    /// [`MetricsError`]; nothing is different then.
    pub fn prepare(&self, configured: Option<&Listen>) -> Result<Next, MetricsError> {
        let state = self.state();
        let Some(open) = &*state else {
            return Ok(Next::Same);
        };
        if open.configured.as_ref() == configured {
            return Ok(Next::Same);
        }
        if open.given {
            return Ok(Next::Overruled(configured.cloned()));
        }
        let server = configured
            .map(|to| {
                let started = Server::start(to, Arc::clone(&open.desk));
                started.map_err(|error| match open.in_the_way(to) {
                    Some(own) if is_taken(&error) => own,
                    _ => error,
                })
            })
            .transpose()?;
        Ok(Next::Moved(configured.cloned(), server))
    }

    /// Serves there alone, as the configuration is in force; says where that is, if it says
    /// another place than the one before.
    pub fn commit(&self, next: Next) -> Option<String> {
        let mut state = self.state();
        // If it was closed meanwhile, what was begun ends here.
        let open = state.as_mut()?;
        let (configured, before) = match next {
            Next::Same => return None,
            Next::Overruled(configured) => (configured, None),
            Next::Moved(configured, server) => {
                (configured, std::mem::replace(&mut open.server, server))
            }
        };
        open.configured = configured;
        let mut place = Place(open.server.as_ref()).to_string();
        if open.given {
            place += " still, as --metrics says";
        }
        drop(state);
        // It may have to wait for its thread.
        drop(before);
        tracing::info!("metrics are served {place}");
        Some(place)
    }

    fn state(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// The error for a place that cannot be listened on as we listen at one of the same port
    /// ourselves; `None` if we do not.
    fn in_the_way(&self, to: &Listen) -> Option<MetricsError> {
        let from = self.server.as_ref().and_then(Server::listen);
        let (Some(Listen::Tcp(from)), Listen::Tcp(to)) = (from, to) else {
            return None;
        };
        meet(*from, *to).then_some(MetricsError::Own {
            from: *from,
            to: *to,
        })
    }
}

/// Whether one of two addresses has the other in it.
fn meet(one: SocketAddr, other: SocketAddr) -> bool {
    let is_all = |address: SocketAddr| address.ip().is_unspecified();
    one.port() == other.port() && (is_all(one) || is_all(other))
}

fn is_taken(error: &MetricsError) -> bool {
    matches!(error, MetricsError::Bind(BindError::Tcp { error, .. })
        if error.kind() == io::ErrorKind::AddrInUse)
}

/// Where a server is, in words.
struct Place<'a>(Option<&'a Server>);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.and_then(Server::listen) {
            Some(listen) => write!(f, "at {listen}"),
            None => f.write_str("nowhere"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_all_meets_each_of_its_port() {
        let meets = |one: &str, other: &str| meet(one.parse().unwrap(), other.parse().unwrap());
        assert!(meets("127.0.0.1:9177", "0.0.0.0:9177"));
        assert!(meets("[::]:9177", "127.0.0.1:9177"));
        assert!(!meets("127.0.0.1:9177", "0.0.0.0:9178"));
        assert!(!meets("127.0.0.1:9177", "127.0.0.2:9177"));
    }
}
