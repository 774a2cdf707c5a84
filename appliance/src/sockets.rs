//! From vhost-user sockets to HBAs that are served for as long as the program runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::appliance::Appliance;
use crate::attachment::{AttachError, Ended};
use crate::vhost_user::{Options, Served, Socket};

/// Time between two looks at what is served.
const SCAN_PERIOD: Duration = Duration::from_millis(200);
/// Time between two attempts to serve an HBA.
const RETRY: Duration = Duration::from_secs(1);

/// The sockets of one appliance, each with its HBA.
pub struct Sockets<'a> {
    appliance: &'a Appliance,
    options: Options,
    places: Vec<Place>,
}

/// A socket and what is served there.
struct Place {
    socket: Arc<Socket>,
    hba: String,
    served: Option<Served>,
    /// When to try again.
    retry: Instant,
    /// The last problem, so that a repeated one is not reported again.
    problem: Option<String>,
}

impl<'a> Sockets<'a> {
    /// No sockets yet, for HBAs of `appliance`.
    pub fn new(appliance: &'a Appliance, options: Options) -> Self {
        Self {
            appliance,
            options,
            places: Vec::new(),
        }
    }

    /// Serves the HBA named `hba` at `socket`.
    ///
    /// # Errors
    /// [`AttachError`]; it is not tried again then.
    pub fn add(&mut self, socket: Socket, hba: &str) -> Result<(), AttachError> {
        let socket = Arc::new(socket);
        let served = self.appliance.serve(hba, &socket, self.options)?;
        tracing::info!(hba, socket = %socket.path().display(), "waiting for a frontend");
        self.places.push(Place {
            socket,
            hba: hba.to_owned(),
            served: Some(served),
            retry: Instant::now(),
            problem: None,
        });
        Ok(())
    }

    /// Serves until `stop` is set; an HBA that ended is served again as soon as that is possible.
    pub fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            for place in &mut self.places {
                place.look(self.appliance, self.options);
            }
            std::thread::sleep(SCAN_PERIOD);
        }
    }
}

impl Place {
    fn look(&mut self, appliance: &Appliance, options: Options) {
        let hba = &*self.hba;
        if self.served.as_ref().is_some_and(|served| !served.is_over()) {
            return;
        }
        let now = Instant::now();
        if let Some(served) = self.served.take() {
            match served.detach() {
                Ok(Ended::Removed) => {
                    tracing::info!(hba, "let go: the HBA is no longer in the configuration");
                }
                Ok(Ended::Released | Ended::Stopped) => tracing::info!(hba, "let go"),
                Err(error) => {
                    tracing::error!(hba, "detached: {error}");
                    self.retry = now + RETRY;
                }
            }
        }
        if now < self.retry {
            return;
        }
        match appliance.serve(hba, &self.socket, options) {
            Ok(served) => {
                tracing::info!(hba, "served again");
                self.served = Some(served);
                self.problem = None;
            }
            Err(error) => {
                let text = error.to_string();
                if self.problem.as_ref() != Some(&text) {
                    tracing::error!(hba, "not served: {text}");
                    self.problem = Some(text);
                }
                self.retry = now + RETRY;
            }
        }
    }
}
