//! One HTTP/1.1 request and its response.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::control::Desk;

/// How long a client may take to ask.
const ASK_PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to read the response.
const READ_PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 8 << 10;
/// Most header fields of it.
const MAX_FIELDS: usize = 64;

/// What a metrics page is (OpenMetrics 1.0, protocol negotiation).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Metrics,
    Health,
    /// Something that there is not.
    Nothing,
    /// By another method than GET.
    Otherwise,
    /// What is no request, or too long.
    Nonsense,
}

/// Answers one request of a client, which is a socket. There is no second one: the connection ends.
///
/// # Errors
/// What reading or writing reports, or that the client took too long.
pub(super) fn serve(mut client: File, desk: &Desk) -> io::Result<()> {
    let Some(asked) = read(&mut client)? else {
        return Ok(());
    };
    match asked {
        Asked::Metrics => match desk.page.text(desk) {
            Ok(text) => respond(&mut client, "200 OK", OPENMETRICS, &text),
            Err(error) => {
                let text = format!("the metrics cannot be written: {error}\n");
                respond(&mut client, "500 Internal Server Error", PLAIN, &text)
            }
        },
        Asked::Health => respond(&mut client, "200 OK", PLAIN, "ok\n"),
        Asked::Nothing => {
            let text = "there are /metrics and /healthz\n";
            respond(&mut client, "404 Not Found", PLAIN, text)
        }
        Asked::Otherwise => {
            let status = "405 Method Not Allowed\r\nAllow: GET";
            respond(&mut client, status, PLAIN, "there is only GET\n")
        }
        Asked::Nonsense => respond(&mut client, "400 Bad Request", PLAIN, "no HTTP request\n"),
    }
}

/// What the client asks for; `None` if it went away.
fn read(client: &mut File) -> io::Result<Option<Asked>> {
    let deadline = Instant::now() + ASK_PATIENCE;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        set_socket_timeout(&*client, Timeout::Recv, Some(left(deadline)?))?;
        let len = match client.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        head.extend_from_slice(&buffer[..len]);
        if let Some(asked) = parse(&head) {
            return Ok(Some(asked));
        }
        if head.len() > MAX_HEAD {
            return Ok(Some(Asked::Nonsense));
        }
    }
}

/// What a request asks for; `None` if its head has not come whole.
fn parse(head: &[u8]) -> Option<Asked> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(_) => return Some(Asked::Nonsense),
    }
    if request.method != Some("GET") {
        return Some(Asked::Otherwise);
    }
    let target = request.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    Some(match path {
        "/metrics" => Asked::Metrics,
        "/healthz" => Asked::Health,
        _ => Asked::Nothing,
    })
}

fn respond(client: &mut File, status: &str, kind: &str, body: &str) -> io::Result<()> {
    let deadline = Instant::now() + READ_PATIENCE;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    for mut part in [head.as_bytes(), body.as_bytes()] {
        while !part.is_empty() {
            set_socket_timeout(&*client, Timeout::Send, Some(left(deadline)?))?;
            match client.write(part) {
                Ok(len) => part = &part[len..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// The time until then, more than none.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    // A timeout of less than a microsecond would be none.
    Ok(left.max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Option<Asked> {
        parse(text.as_bytes())
    }

    #[test]
    fn a_request_asks_for_a_page_by_get() {
        let get = |target| asked(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(get("/metrics"), Some(Asked::Metrics));
        assert_eq!(get("/metrics?name[]=a"), Some(Asked::Metrics));
        assert_eq!(get("/healthz"), Some(Asked::Health));
        assert_eq!(get("/"), Some(Asked::Nothing));
        assert_eq!(get("/metrics/../healthz"), Some(Asked::Nothing));
        assert_eq!(
            asked("POST /metrics HTTP/1.1\r\n\r\n"),
            Some(Asked::Otherwise)
        );
    }

    #[test]
    fn what_has_not_come_whole_is_waited_for() {
        for text in ["", "GET", "GET /metrics HTTP/1.1\r\nHost: a\r\n"] {
            assert_eq!(asked(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_request_is_nonsense() {
        for text in [
            "\0\0",
            "GET /metrics\r\n\r\n",
            "GET  /metrics HTTP/9\r\n\r\n",
        ] {
            assert_eq!(asked(text), Some(Asked::Nonsense), "{text:?}");
        }
        let many = "A: b\r\n".repeat(MAX_FIELDS + 1);
        let text = format!("GET /metrics HTTP/1.1\r\n{many}\r\n");
        assert_eq!(asked(&text), Some(Asked::Nonsense));
    }
}
