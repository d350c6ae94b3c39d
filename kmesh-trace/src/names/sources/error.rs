//! Why a source does not answer, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;

use rustls::CertificateError;

use crate::render::sanitize;

/// How the TLS library says that.
const NO_AUTHORITIES: &str = "No CA certificates were loaded from the system";

/// In words for a person: one line, harmless whatever others chose of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    problem: String,
    remedy: Option<String>,
}

impl Failure {
    /// This is wrong.
    pub fn new(problem: String) -> Self {
        let problem = sanitize::one_line(&problem).into_owned();
        Self { problem, remedy: None }
    }

    /// And this may help.
    pub fn remedy(mut self, remedy: &str) -> Self {
        self.remedy = Some(remedy.to_owned());
        self
    }

    /// More precisely.
    pub fn because(mut self, detail: &str) -> Self {
        self.problem = format!("{} ({})", self.problem, sanitize::one_line(detail));
        self
    }

    /// Of one of several places.
    pub fn at(mut self, place: &dyn fmt::Display) -> Self {
        self.problem = format!("{}: {}", sanitize::one_line(&place.to_string()), self.problem);
        self
    }

    /// With what may help, in one line.
    pub fn in_one_line(&self) -> String {
        match &self.remedy {
            Some(remedy) => format!("{}; try: {remedy}", self.problem),
            None => self.problem.clone(),
        }
    }

    /// In one line, without what may help.
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)?;
        self.remedy.iter().try_for_each(|remedy| write!(f, "\n  try: {remedy}"))
    }
}

/// What is behind an error of the client for kubelets and API servers.
pub fn of_client(error: &kube::Error) -> Failure {
    if let kube::Error::Api(status) = error {
        let message = if status.message.is_empty() {
            &status.reason
        } else {
            &status.message
        };
        return match status.code {
            401 => Failure::new("401: it does not accept who asks".to_owned())
                .remedy("a kubeconfig whose token or certificate has not expired"),
            // The client takes any object at all for a status.
            0 if message.is_empty() => Failure::new("what it sends makes no sense".to_owned()),
            code => Failure::new(format!("{code}: {}", one_line(message))),
        };
    }
    of(error)
}

/// Whether the certificate is good but for the name in it.
pub fn is_for_another_name(error: &kube::Error) -> bool {
    matches!(
        chain(error).find_map(invalid_certificate),
        Some(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })
    )
}

/// An error and what is behind it. Those of `io` may have others in them, which they do not count as their source.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match within {
            Some(within) => Some(within),
            None => error.source(),
        }
    })
}

/// What is behind any error of a connection.
pub fn of(error: &(dyn Error + 'static)) -> Failure {
    if let Some(certificate) = chain(error).find_map(invalid_certificate) {
        return match certificate {
            CertificateError::UnknownIssuer => {
                Failure::new("its certificate is not of an authority that is trusted here".to_owned())
                    .remedy("the cluster's own (--kubelet-ca, certificate-authority in a kubeconfig); or --kubelet-insecure for a kubelet's self-made one")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Failure::new("its certificate is for another name".to_owned())
                    .because(&certificate.to_string())
                    .remedy("the name that the certificate has; or --kubelet-insecure")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Failure::new("its certificate has expired".to_owned())
            }
            other => Failure::new(format!("its certificate is not valid: {other}")),
        };
    }
    let innermost = || chain(error).last().map(ToString::to_string).unwrap_or_default();
    if innermost().contains(NO_AUTHORITIES) {
        return Failure::new("this system has no certificates of authorities, to check its by".to_owned())
            .remedy("name them: --kubelet-ca, or certificate-authority in the kubeconfig");
    }
    let io = chain(error)
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .last();
    if let Some(io) = io.filter(|io| io.raw_os_error().is_some()) {
        return Failure::new(self::io(io));
    }
    Failure::new(one_line(&innermost()))
}

fn invalid_certificate<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CertificateError> {
    match error.downcast_ref()? {
        rustls::Error::InvalidCertificate(certificate) => Some(certificate),
        _ => None,
    }
}

/// Without the number that Rust adds.
pub fn io(error: &io::Error) -> String {
    one_line(error.to_string().split(" (os error").next().unwrap_or_default())
}

/// The first line of what somebody else says, made short and plain.
pub fn one_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    line.chars()
        .filter(|&char| !sanitize::is_harmful(char))
        .take(300)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn what_is_innermost_is_told() {
        let of_tls = |error| io::Error::new(io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(error));
        let cases = [
            (io::Error::from_raw_os_error(111), "Connection refused"),
            (io::Error::other("odd\u{7}\nmore"), "odd"),
            (of_tls(CertificateError::UnknownIssuer), "--kubelet-insecure"),
            (
                io::Error::other(of_tls(CertificateError::UnknownIssuer)),
                "--kubelet-insecure",
            ),
            (of_tls(CertificateError::NotValidForName), "another name"),
            (of_tls(CertificateError::Expired), "expired"),
            (of_tls(CertificateError::Revoked), "not valid"),
        ];
        for (inner, part) in cases {
            let shown = of(&Outer(inner)).to_string();
            assert!(
                shown.contains(part) && !shown.contains("os error") && !shown.contains("outer"),
                "{shown}"
            );
        }
    }
}
