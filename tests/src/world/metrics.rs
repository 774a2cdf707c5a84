//! The metrics of a World's appliance, as a monitoring system gets them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use appliance::config::Listen;
use appliance::control::Desk;
use appliance::metrics::Server;

/// How long a text is given again: what happened before a scrape is in it after this.
const FRESH: Duration = Duration::from_millis(250);
/// How long a response may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Metrics that are served.
pub struct Metrics {
    /// If they are served here.
    _server: Option<Server>,
    address: SocketAddr,
}

/// A response with metrics.
pub struct Scrape {
    /// Status line and header fields.
    pub head: String,
    /// The text.
    pub text: String,
}

impl Metrics {
    /// Those of the appliance that `desk` is about.
    ///
    /// # Panics
    /// If no port can be listened on.
    pub fn start(desk: Arc<Desk>) -> Self {
        let anywhere = Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let server = Server::start(&anywhere, desk).expect("a port");
        let Some(Listen::Tcp(address)) = server.listen() else {
            panic!("it listens at {:?}", server.listen());
        };
        Self {
            address: *address,
            _server: Some(server),
        }
    }

    /// Those that an appliance serves at `address`.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            _server: None,
            address,
        }
    }

    /// A connection that says nothing yet.
    ///
    /// # Panics
    /// If it is refused.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a listener");
        let patience = stream.set_read_timeout(Some(PATIENCE));
        patience.expect("a socket");
        stream
    }

    /// What GET of a path gets: the head and the body.
    ///
    /// # Panics
    /// If that is no whole response.
    pub fn get(&self, path: &str) -> Scrape {
        let mut stream = self.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: world\r\n\r\n").expect("a listener");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a response");
        let (head, text) = response.split_once("\r\n\r\n").expect("a head");
        Scrape {
            head: head.into(),
            text: text.into(),
        }
    }

    /// What is known now.
    ///
    /// # Panics
    /// If it is not to be had.
    pub fn scrape(&self) -> Scrape {
        thread::sleep(FRESH);
        let scrape = self.get("/metrics");
        assert!(
            scrape.head.starts_with("HTTP/1.1 200 OK\r\n"),
            "{}",
            scrape.head
        );
        scrape
    }
}

impl Scrape {
    /// The value of a series, as `name{label="value"}`.
    ///
    /// # Panics
    /// If there is no such series.
    pub fn value(&self, series: &str) -> f64 {
        let mut lines = self.text.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no {series} in {}", self.text));
        value.parse().expect("a number")
    }

    /// The names of all series.
    pub fn names(&self) -> std::collections::BTreeSet<&str> {
        let lines = self.text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect()
    }
}
