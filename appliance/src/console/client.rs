//! The client's end of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::control::protocol::{Failure, Hello, Reply, VERSION};

/// How long a reply may take: longer than any method does.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long it may take until somebody answers at all.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The appliance says why.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// Nobody listens.
    #[error(
        "nobody answers at {}: {error}; does the appliance run, with --control of that path?",
        path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The connection broke.
    #[error("the appliance is gone: {0}; connect again when it has been started")]
    Gone(io::Error),
    /// What came is no reply.
    #[error("what answers is no appliance, or one of another version: {0}")]
    Reply(serde_json::Error),
    /// It speaks another protocol.
    #[error(
        "the appliance speaks version {0} of the control protocol, and this program {VERSION}; use \
         the console of its version"
    )]
    Version(u32),
}

/// A connection.
pub(super) struct Client {
    path: PathBuf,
    reader: BufReader<UnixStream>,
    /// Number of the next request. A virtio port may still have replies to somebody before us.
    next: u64,
    hello: Hello,
}

impl Client {
    /// Connects to the appliance behind the socket at `path`.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn connect(path: &Path) -> Result<Self, CallError> {
        let stream = UnixStream::connect(path).map_err(|error| CallError::Connect {
            path: path.to_owned(),
            error,
        })?;
        let mut client = Self {
            path: path.to_owned(),
            reader: BufReader::new(stream),
            next: uuid::Uuid::new_v4().as_u64_pair().0 >> 16,
            hello: Hello {
                protocol: 0,
                version: String::new(),
                name: String::new(),
                methods: Vec::new(),
            },
        };
        client.wait_for(HELLO_PATIENCE).map_err(CallError::Gone)?;
        // Ends what somebody before us left unfinished on a virtio port.
        client
            .reader
            .get_mut()
            .write_all(b"\n")
            .map_err(CallError::Gone)?;
        let hello: Hello = client.call("hello", &Value::Null)?;
        if hello.protocol != VERSION {
            return Err(CallError::Version(hello.protocol));
        }
        client.hello = hello;
        client.wait_for(PATIENCE).map_err(CallError::Gone)?;
        Ok(client)
    }

    /// Connects again, to the same socket.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn reconnect(&mut self) -> Result<(), CallError> {
        *self = Self::connect(&self.path)?;
        Ok(())
    }

    /// Who answers.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    fn wait_for(&self, patience: Duration) -> io::Result<()> {
        self.reader.get_ref().set_read_timeout(Some(patience))
    }

    /// Calls a method.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call<T: DeserializeOwned>(
        &mut self,
        method: &str,
        params: &Value,
    ) -> Result<T, CallError> {
        let id = self.next;
        self.next += 1;
        let request = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let stream = self.reader.get_mut();
        writeln!(stream, "{request}").map_err(CallError::Gone)?;
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Ok(0) => return Err(CallError::Gone(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(CallError::Gone(error)),
            }
            let reply: Reply = match serde_json::from_str(&line) {
                Ok(reply) => reply,
                // The rest of a reply to somebody before us.
                Err(_) if self.hello.protocol == 0 => continue,
                Err(error) => return Err(CallError::Reply(error)),
            };
            if reply.id != json!(id) {
                continue;
            }
            if let Some(failure) = reply.error {
                return Err(failure.into());
            }
            let result = serde_json::from_value(reply.result.unwrap_or_default());
            return result.map_err(CallError::Reply);
        }
    }
}

impl CallError {
    /// Whether the connection is lost.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone(_))
    }
}
