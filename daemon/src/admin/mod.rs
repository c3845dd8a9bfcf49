//! Metrics and health over HTTP, on the control thread: `/metrics`, `/livez`, `/readyz`, `/status`.
//!
//! As much HTTP as a scraper and a load balancer need: one request per connection, GET and HEAD.
//! Numbers come from the cores by letter, so a core that hangs shows as one that does not answer.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::letter::CoreReport;

pub mod metrics;

/// A request's head above this is refused.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// A peer has so long for its request, and so long to read the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the pages are made of.
pub trait Source {
    /// How the node is, asked now.
    fn survey(&self) -> impl Future<Output = Survey>;
}

/// How the node is.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Of the cores that answered in time.
    pub reports: Vec<CoreReport>,
    /// How many cores there are.
    pub cores: usize,
    /// Why no mail should be sent here, if so.
    pub unready: Option<String>,
    /// Name and value pairs, as `ringpost status` shows them.
    pub status: Vec<(String, String)>,
    /// Users in the list of accounts.
    pub users_count: usize,
}

struct Page {
    status: &'static str,
    kind: &'static str,
    body: String,
}

impl Page {
    fn text(status: &'static str, body: impl Into<String>) -> Self {
        Self {
            status,
            kind: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }
}

/// Serves one connection.
pub async fn serve<S>(mut stream: S, source: &impl Source)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Sockets here are tokio's own: a time-out may drop their futures.
    let served = tokio::time::timeout(PATIENCE, exchange(&mut stream, source)).await;
    if let Ok(Err(error)) = served {
        tracing::debug!(%error, "an admin connection");
    }
}

async fn exchange<S>(stream: &mut S, source: &impl Source) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX {
            return send(
                stream,
                Page::text("431 Request Header Fields Too Large", ""),
                true,
            )
            .await;
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line).into_owned();
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = target.split('?').next().unwrap_or("");
    let with_body = method != "HEAD";
    let page = match (method, path) {
        ("GET" | "HEAD", path) => page(path, source).await,
        _ => Page::text("405 Method Not Allowed", "GET or HEAD\n"),
    };
    send(stream, page, with_body).await
}

async fn page(path: &str, source: &impl Source) -> Page {
    match path {
        "/metrics" => match metrics::encode(source.survey().await) {
            Ok(body) => Page {
                status: "200 OK",
                kind: metrics::KIND,
                body,
            },
            Err(error) => Page::text("500 Internal Server Error", format!("{error}\n")),
        },
        "/livez" => {
            let survey = source.survey().await;
            if survey.reports.len() == survey.cores {
                Page::text("200 OK", "ok\n")
            } else {
                let silent = survey.cores - survey.reports.len();
                let body = format!("{silent} of {} cores do not answer\n", survey.cores);
                Page::text("503 Service Unavailable", body)
            }
        }
        "/readyz" => match source.survey().await.unready {
            None => Page::text("200 OK", "ok\n"),
            Some(reason) => Page::text("503 Service Unavailable", format!("{reason}\n")),
        },
        "/status" => {
            let pairs = source.survey().await.status.into_iter();
            let values = pairs.map(|(name, value)| (name, number_or_text(value)));
            let body = serde_json::Value::Object(values.collect());
            Page {
                status: "200 OK",
                kind: "application/json",
                body: format!("{body:#}\n"),
            }
        }
        "/" => Page::text("200 OK", "/metrics /livez /readyz /status\n"),
        _ => Page::text("404 Not Found", "/metrics /livez /readyz /status\n"),
    }
}

fn number_or_text(value: String) -> serde_json::Value {
    value
        .parse::<u64>()
        .map_or(serde_json::Value::String(value), serde_json::Value::from)
}

async fn send<S>(stream: &mut S, page: Page, with_body: bool) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Page { status, kind, body } = page;
    let length = body.len();
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    if with_body {
        answer.push_str(&body);
    }
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Survey);

    impl Source for Fixed {
        async fn survey(&self) -> Survey {
            self.0.clone()
        }
    }

    fn ask(request: &str, reports: usize, unready: Option<&str>) -> String {
        let survey = Survey {
            reports: vec![CoreReport::default(); reports],
            cores: 2,
            unready: unready.map(str::to_owned),
            status: vec![
                ("cores".to_owned(), "2".to_owned()),
                ("v".to_owned(), "x".to_owned()),
            ],
            users_count: 0,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let (mut client, server) = tokio::io::duplex(64 << 10);
            client.write_all(request.as_bytes()).await.expect("room");
            serve(server, &Fixed(survey)).await;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("text");
            answer
        })
    }

    #[test]
    fn pages_say_how_the_node_is() {
        let get = |path: &str, reports, unready| {
            ask(
                &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"),
                reports,
                unready,
            )
        };
        assert!(get("/livez", 2, None).starts_with("HTTP/1.1 200 OK\r\n"));
        let answer = get("/livez", 1, None);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(
            answer.ends_with("\r\n\r\n1 of 2 cores do not answer\n"),
            "{answer}"
        );
        assert!(get("/readyz", 2, None).starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(get("/readyz?x", 2, Some("draining")).ends_with("\r\n\r\ndraining\n"));
        assert!(get("/nothing", 2, None).starts_with("HTTP/1.1 404 "));
        let answer = get("/status", 2, None);
        assert!(
            answer.contains("\"cores\": 2") && answer.contains("\"v\": \"x\""),
            "{answer}"
        );
        let answer = get("/metrics", 2, None);
        assert!(answer.contains("ringpost_flushes_total"), "{answer}");
        assert!(answer.ends_with("# EOF\n"), "{answer}");
    }

    #[test]
    fn what_is_no_request_gets_a_clear_answer() {
        assert!(ask("PUT / HTTP/1.1\r\n\r\n", 2, None).starts_with("HTTP/1.1 405 "));
        assert!(ask("\r\n\r\n", 2, None).starts_with("HTTP/1.1 405 "));
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(9 << 10));
        assert!(ask(&long, 2, None).starts_with("HTTP/1.1 431 "));
        let head = ask("HEAD / HTTP/1.1\r\n\r\n", 2, None);
        assert!(
            head.starts_with("HTTP/1.1 200 OK") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
    }
}
