//! The appliance of a World under an operator's control.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use appliance::Appliance;
use appliance::control::{Book, Desk, Logs, Server};
use appliance::metrics::{self, Serving};
use serde_json::{Value, json};
use uuid::Uuid;

use super::metrics::Metrics;

/// How long a reply may take: longer than any method does.
const PATIENCE: Duration = Duration::from_secs(90);

/// A control socket.
pub struct Control {
    _server: Server,
    _serving: Serving,
    desk: Arc<Desk>,
    path: PathBuf,
}

impl Control {
    /// That of an appliance whose configuration is `text`, from `file`. Metrics are served where
    /// that says, too.
    ///
    /// # Panics
    /// If it cannot be listened on, or metrics cannot be served there.
    pub fn start(appliance: Arc<Appliance>, text: String, file: Option<&Path>) -> Self {
        let book = Book::new(appliance, text, file.map(Path::to_owned));
        let desk = Arc::new(Desk::new(Arc::new(book), Logs::default()));
        let path = std::env::temp_dir().join(format!("control-{}", Uuid::new_v4()));
        let server = Server::start(&path, Arc::clone(&desk)).expect("a control socket");
        Self {
            _server: server,
            _serving: metrics::serve(&desk, None).expect("a place for metrics"),
            desk,
            path,
        }
    }

    /// The metrics of the appliance, at a port of their own.
    ///
    /// # Panics
    /// If there is none.
    pub fn metrics(&self) -> Metrics {
        Metrics::start(Arc::clone(&self.desk))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Somebody who controls the appliance.
    ///
    /// # Panics
    /// If nobody answers.
    pub fn operator(&self) -> Operator {
        let stream = UnixStream::connect(&self.path).expect("the control socket");
        let patience = stream.set_read_timeout(Some(PATIENCE));
        patience.expect("a socket");
        Operator(BufReader::new(stream))
    }
}

/// A client of a control socket.
pub struct Operator(BufReader<UnixStream>);

impl Operator {
    /// Calls a method.
    ///
    /// # Errors
    /// The message of the failure.
    ///
    /// # Panics
    /// If no reply comes.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value, String> {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        writeln!(self.0.get_mut(), "{request}").expect("the appliance listens");
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a reply");
        let reply: Value = serde_json::from_str(&line).expect("a reply is JSON");
        match reply.get("error") {
            Some(error) => Err(error["message"].as_str().unwrap_or_default().to_owned()),
            None => Ok(reply["result"].clone()),
        }
    }
}
