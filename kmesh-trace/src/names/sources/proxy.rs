//! Connections through a proxy, as the environment or a kubeconfig asks for it.

use std::env;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::uri::Authority;
use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;
use tower_service::Service;

use super::error::{self, SourceError};

#[derive(Clone)]
pub struct Proxy {
    /// The address, without user and password.
    uri: Uri,
    user: Option<(String, String)>,
    protocol: Protocol,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocol {
    Http,
    /// SOCKS5; with `true` this machine resolves the server's name.
    Socks(bool),
}

impl Proxy {
    /// Parses the URL of a proxy. Errors do not quote the URL: it may have a password.
    pub fn parse(url: &str) -> Result<Self, SourceError> {
        let invalid = || SourceError::new("the URL of the proxy is not valid");
        let (scheme, rest) = url.trim().split_once("://").unwrap_or(("http", url.trim()));
        let (protocol, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Protocol::Http, 80),
            "socks5" => (Protocol::Socks(true), 1080),
            "socks5h" => (Protocol::Socks(false), 1080),
            _ => {
                let problem = "the proxy has a scheme that is not supported: only http, socks5 and socks5h are";
                return Err(SourceError::new(problem));
            }
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, host) = authority
            .rsplit_once('@')
            .map_or((None, authority), |(user, host)| (Some(user), host));
        let uri: Uri = format!("http://{host}").parse().map_err(|_| invalid())?;
        let authority = uri.authority().filter(|authority| has_valid_port(authority));
        let host = authority
            .map(Authority::host)
            .filter(|host| !host.is_empty())
            .ok_or_else(invalid)?;
        let port = uri.port_u16().unwrap_or(default_port);
        let user = user.map(|user| user.split_once(':').unwrap_or((user, "")));
        Ok(Self {
            uri: format!("http://{host}:{port}/").parse().map_err(|_| invalid())?,
            user: user.map(|(name, password)| (percent_decoded(name), percent_decoded(password))),
            protocol,
        })
    }

    /// Returns the proxy that the environment names for this server, by the rules of Go's `ProxyFromEnvironment`.
    pub fn from_environment(server: &Uri) -> Result<Option<Self>, SourceError> {
        let variable = |name: &str| {
            let value = |name: String| env::var(name).ok().filter(|value| !value.is_empty());
            value(name.to_owned()).or_else(|| value(name.to_ascii_lowercase()))
        };
        let is_https = server.scheme_str() == Some("https");
        let name = if is_https { "HTTPS_PROXY" } else { "HTTP_PROXY" };
        match variable(name) {
            Some(url) if !is_excluded(server, &variable("NO_PROXY").unwrap_or_default()) => {
                let proxy = Self::parse(&url).map_err(|error| error.at(&format!("${name}")))?;
                Ok(Some(proxy))
            }
            _ => Ok(None),
        }
    }

    pub async fn connect(&self, server: &Uri, connector: HttpConnector) -> Result<TokioIo<TcpStream>, SourceError> {
        let failed = |error: &(dyn std::error::Error + 'static)| error::root_cause(error).at("the proxy");
        match self.protocol {
            Protocol::Http => {
                let mut tunnel = Tunnel::new(self.uri.clone(), connector);
                if let Some((user, password)) = &self.user {
                    tunnel = tunnel.with_auth(basic_auth(user, password)?);
                }
                tunnel.call(server.clone()).await.map_err(|error| failed(&error))
            }
            Protocol::Socks(local_dns) => {
                let mut socks = SocksV5::new(self.uri.clone(), connector).local_dns(local_dns);
                if let Some((user, password)) = &self.user {
                    socks = socks.with_auth(user.clone(), password.clone());
                }
                socks.call(server.clone()).await.map_err(|error| failed(&error))
            }
        }
    }
}

/// Returns the value of an `Authorization` header with user and password.
pub fn basic_auth(user: &str, password: &str) -> Result<HeaderValue, SourceError> {
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
        .map_err(|_| SourceError::new("user and password cannot be sent"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn percent_decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Returns whether the server is reached without a proxy.
fn is_excluded(server: &Uri, no_proxy: &str) -> bool {
    let host = server.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let ip = host.parse::<IpAddr>().ok();
    if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    let default_port = if server.scheme_str() == Some("https") { 443 } else { 80 };
    let port = server.port_u16().unwrap_or(default_port);
    no_proxy.split(',').map(str::trim).any(|entry| {
        let entry = entry.to_ascii_lowercase();
        if let (Ok(network), Some(ip)) = (entry.parse::<IpNet>(), ip) {
            return network.contains(&ip);
        }
        let (name, is_port) = match entry.rsplit_once(':') {
            Some((name, digits)) if !name.contains(':') => (name, digits.parse() == Ok(port)),
            _ => (entry.as_str(), true),
        };
        let name = name.strip_prefix("*.").unwrap_or(name);
        let domain = name.trim_start_matches('.');
        let is_below = host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        let matches = match ip {
            Some(ip) => name.parse() == Ok(ip),
            None => !domain.is_empty() && (is_below || (host == domain && !name.starts_with('.'))),
        };
        name == "*" || (matches && is_port)
    })
}

/// Returns whether nothing but a port follows the host. The library takes a port that is no number for none, and the
/// default port for it.
pub fn has_valid_port(authority: &Authority) -> bool {
    authority.port_u16().is_some() || authority.as_str().ends_with(authority.host())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_is_compared_with_the_server() {
        let cases = [
            ("https://10.1.2.3:6443", "10.1.2.3", true),
            ("https://10.1.2.3:6443", "10.0.0.0/8", true),
            ("https://10.1.2.3:6443", "192.0.2.0/24,10.1.2.3:443", false),
            ("https://10.1.2.3:6443", "10.1.2.3:6443", true),
            ("https://api.example", "example", true),
            ("https://api.example", ".example", true),
            ("https://example", ".example", false),
            ("https://api.example", "pi.example", false),
            ("https://api.example", "*", true),
            ("https://api.example", "", false),
            ("https://[fd00::1]:6443", "fd00::/8", true),
            // Go never asks a proxy for this machine.
            ("https://127.0.0.1:6443", "", true),
            ("http://localhost", "", true),
        ];
        for (server, no_proxy, expected) in cases {
            let found = is_excluded(&server.parse().unwrap(), no_proxy);
            assert_eq!(found, expected, "{server} {no_proxy}");
        }
    }

    #[test]
    fn proxy_urls_are_parsed_and_never_quoted() {
        let proxy = |url| Proxy::parse(url).map(|proxy| (proxy.uri.to_string(), proxy.user, proxy.protocol));
        let user = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        for (url, address, user, protocol) in [
            (
                "http://me:s3%40cret@proxy:3128/",
                "http://proxy:3128/",
                user("me", "s3@cret"),
                Protocol::Http,
            ),
            ("proxy.example", "http://proxy.example:80/", None, Protocol::Http),
            (
                "socks5://10.0.0.1",
                "http://10.0.0.1:1080/",
                None,
                Protocol::Socks(true),
            ),
        ] {
            assert_eq!(proxy(url).unwrap(), (address.to_owned(), user, protocol));
        }
        for url in [
            "ftp://me:s3cret@proxy",
            "http://me:s3cret@ proxy",
            "http://me:s3cret@",
            "http://proxy:s3cret",
            "http://proxy:99999",
            "",
        ] {
            let error = proxy(url).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
