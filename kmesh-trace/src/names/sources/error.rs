//! Why a source does not answer, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;

use http::StatusCode;
use rustls::CertificateError;

use crate::output::sanitize;

/// The longest text of a server or program in a message, in characters.
const MAX_QUOTE: usize = 300;

/// A message for users. Its problem is one line without control characters, whatever others wrote into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceError {
    problem: String,
    remedy: Option<String>,
    status: Option<StatusCode>,
}

impl SourceError {
    pub fn new(problem: impl AsRef<str>) -> Self {
        Self {
            problem: sanitize::one_line(problem.as_ref()).into_owned(),
            remedy: None,
            status: None,
        }
    }

    /// Adds what the user can do, unless it is empty.
    pub fn remedy(mut self, remedy: &str) -> Self {
        self.remedy = Some(remedy.to_owned()).filter(|remedy| !remedy.is_empty());
        self
    }

    /// Adds the HTTP status.
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    /// Whether the server answered with this HTTP status.
    pub fn has_status(&self, status: StatusCode) -> bool {
        self.status == Some(status)
    }

    /// Adds a detail, in parentheses.
    pub fn because(mut self, detail: &str) -> Self {
        self.problem = format!("{} ({})", self.problem, sanitize::one_line(detail));
        self
    }

    /// Adds where the problem is, in front.
    pub fn at(mut self, location: &str) -> Self {
        self.problem = format!("{}: {}", sanitize::one_line(location), self.problem);
        self
    }

    /// Returns problem and remedy in one line.
    pub fn in_one_line(&self) -> String {
        match &self.remedy {
            Some(remedy) => format!("{}; try: {remedy}", self.problem),
            None => self.problem.clone(),
        }
    }

    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl Error for SourceError {}

impl From<io::Error> for SourceError {
    fn from(error: io::Error) -> Self {
        root_cause(&error)
    }
}

impl From<hyper::Error> for SourceError {
    fn from(error: hyper::Error) -> Self {
        root_cause(&error)
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)?;
        self.remedy.iter().try_for_each(|remedy| write!(f, "\n  try: {remedy}"))
    }
}

/// Returns a short name of an HTTP status: `401 Unauthorized`.
pub fn status_name(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// Iterates over an error and its causes. An I/O error does not count the error in it as its source.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match within {
            Some(within) => Some(within),
            None => error.source(),
        }
    })
}

/// Returns the innermost cause of an error of a connection.
pub fn root_cause(error: &(dyn Error + 'static)) -> SourceError {
    if let Some(known) = chain(error).find_map(|error| error.downcast_ref::<SourceError>()) {
        return known.clone();
    }
    if let Some(certificate) = chain(error).find_map(invalid_certificate) {
        return certificate_error(certificate);
    }
    let io = chain(error)
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .last();
    if let Some(io) = io.filter(|io| io.raw_os_error().is_some()) {
        return SourceError::new(self::io(io));
    }
    let innermost = chain(error).last().map(ToString::to_string).unwrap_or_default();
    SourceError::new(one_line(&innermost))
}

fn certificate_error(certificate: &CertificateError) -> SourceError {
    match certificate {
        CertificateError::UnknownIssuer => {
            SourceError::new("the server's certificate is signed by an unknown authority").remedy(
                "name the cluster's CA (--kubelet-ca, or certificate-authority in the kubeconfig), or use \
                 --kubelet-insecure for a kubelet's self-signed certificate",
            )
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            SourceError::new("the server's certificate is for another name")
                .because(&certificate.to_string())
                .remedy("use the name in the certificate, or --kubelet-insecure")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            SourceError::new("the server's certificate has expired")
        }
        other => SourceError::new(format!(
            "the server's certificate is not valid: {}",
            one_line(&other.to_string())
        )),
    }
}

fn invalid_certificate<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CertificateError> {
    match error.downcast_ref()? {
        rustls::Error::InvalidCertificate(certificate) => Some(certificate),
        _ => None,
    }
}

/// Returns an I/O error's text without the number that Rust adds.
pub fn io(error: &io::Error) -> String {
    one_line(error.to_string().split(" (os error").next().unwrap_or_default())
}

/// Returns the first line of a text from a server or program, short and without control characters.
pub fn one_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    line.chars()
        .filter(|&char| !sanitize::is_harmful(char))
        .take(MAX_QUOTE)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn innermost_error_is_reported() {
        let of_tls = |error| io::Error::new(io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(error));
        let cases = [
            (io::Error::from_raw_os_error(111), "Connection refused"),
            (io::Error::other("odd\u{7}\nmore"), "odd"),
            (of_tls(CertificateError::UnknownIssuer), "unknown authority"),
            (
                io::Error::other(of_tls(CertificateError::UnknownIssuer)),
                "unknown authority",
            ),
            (of_tls(CertificateError::NotValidForName), "another name"),
            (of_tls(CertificateError::Expired), "expired"),
            (of_tls(CertificateError::Revoked), "not valid"),
        ];
        for (inner, part) in cases {
            let shown = root_cause(&Outer(inner)).to_string();
            assert!(
                shown.contains(part) && !shown.contains("os error") && !shown.contains("outer"),
                "{shown}"
            );
        }
    }
}
