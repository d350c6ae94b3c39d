//! TLS towards kubelets and API servers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::error::{self, SourceError};

/// Certificates or a key in PEM form.
#[derive(Clone)]
pub enum Pem {
    /// A file, which is read at each connection: it may be renewed.
    File(PathBuf),
    /// The text itself, and what it is called in messages.
    Data(Vec<u8>, String),
}

impl Pem {
    fn read(&self) -> Result<(Vec<u8>, String), SourceError> {
        match self {
            Self::File(path) => Ok((read_file(path)?, path.display().to_string())),
            Self::Data(data, name) => Ok((data.clone(), name.clone())),
        }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, SourceError> {
        let (text, name) = self.read()?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text).filter_map(Result::ok).collect();
        match certificates.is_empty() {
            true => Err(SourceError::new(format!("{name} has no certificate in PEM form"))),
            false => Ok(certificates),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, SourceError> {
        let (text, name) = self.read()?;
        // The parser's error could quote the key.
        PrivateKeyDer::from_pem_slice(&text)
            .map_err(|_| SourceError::new(format!("{name} has no private key in PEM form")))
    }
}

/// Reads a file that a flag or a kubeconfig names.
pub fn read_file(path: &Path) -> Result<Vec<u8>, SourceError> {
    fs::read(path).map_err(|error| SourceError::new(format!("cannot read {}: {}", path.display(), error::io(&error))))
}

#[derive(Clone)]
pub struct Identity {
    pub certificate: Pem,
    pub key: Pem,
}

#[derive(Clone, Default)]
pub struct TlsSettings {
    /// The CA certificates; `None`: those of the system.
    pub ca: Option<Pem>,
    pub identity: Option<Identity>,
    /// Whether any certificate is accepted.
    pub insecure: bool,
    /// The names that the server's certificate may have. The first one is sent to the server.
    pub names: Vec<String>,
}

impl TlsSettings {
    /// Reads the files, and returns the configuration of a connection. `identity` replaces the client certificate.
    pub fn client_config(&self, identity: Option<&Identity>) -> Result<ClientConfig, SourceError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = self.verifier(&provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error::root_cause(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        match identity.or(self.identity.as_ref()) {
            None => Ok(builder.with_no_client_auth()),
            Some(identity) => {
                let (certificates, key) = (identity.certificate.certificates()?, identity.key.key()?);
                let mismatch =
                    |_| SourceError::new("the client certificate and its private key do not belong together");
                builder.with_client_auth_cert(certificates, key).map_err(mismatch)
            }
        }
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Verifier, SourceError> {
        let mut verifier = Verifier {
            roots: None,
            trusted: Vec::new(),
            names: self.server_names()?,
            provider: Arc::clone(provider),
        };
        if self.insecure {
            return Ok(verifier);
        }
        verifier.trusted = match &self.ca {
            Some(ca) => ca.certificates()?,
            None => system_certificates()?,
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(verifier.trusted.iter().cloned());
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
        let unusable = |_| SourceError::new("no CA certificate can be used to verify the server's certificate");
        verifier.roots = Some(built.map_err(unusable)?);
        if self.ca.is_none() {
            // Only a certificate that a flag or a kubeconfig names is trusted by itself.
            verifier.trusted.clear();
        }
        Ok(verifier)
    }

    /// Returns the names that the server's certificate may have.
    pub fn server_names(&self) -> Result<Vec<ServerName<'static>>, SourceError> {
        let name = |name: &String| {
            let bare = name.trim_start_matches('[').trim_end_matches(']').to_owned();
            ServerName::try_from(bare).map_err(|_| SourceError::new(format!("{name} is not a host name or an address")))
        };
        self.names.iter().map(name).collect()
    }
}

fn system_certificates() -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let found = rustls_native_certs::load_native_certs().certs;
    if !found.is_empty() {
        return Ok(found);
    }
    let problem = "no CA certificates found on this system, so the server's certificate cannot be verified";
    Err(SourceError::new(problem).remedy("name them: --kubelet-ca, or certificate-authority in the kubeconfig"))
}

/// Verifies a server's certificate as kubectl does.
#[derive(Debug)]
struct Verifier {
    /// `None`: every certificate is accepted.
    roots: Option<Arc<WebPkiServerVerifier>>,
    /// Certificates that are trusted by themselves, without regard to their issuer.
    trusted: Vec<CertificateDer<'static>>,
    names: Vec<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Returns whether the certificate only lacks an issuer, or is a CA's own, and is one of the trusted
    /// certificates. The verifier checks the dates first.
    fn is_trusted_itself(&self, certificate: &CertificateDer<'_>, error: &Error) -> bool {
        let lacks_issuer = match error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
            Error::InvalidCertificate(CertificateError::Other(other)) => {
                other.to_string().contains("CaUsedAsEndEntity")
            }
            _ => false,
        };
        lacks_issuer && self.trusted.iter().any(|trusted| trusted == certificate)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        let mut first_error = None;
        for name in std::iter::once(server_name).chain(self.names.iter().skip(1)) {
            let verified = roots.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
            let verified = match verified {
                Err(error) if self.is_trusted_itself(end_entity, &error) => {
                    let parsed = ParsedCertificate::try_from(end_entity)?;
                    rustls::client::verify_server_name(&parsed, name).map(|()| ServerCertVerified::assertion())
                }
                verified => verified,
            };
            match verified {
                Ok(verified) => return Ok(verified),
                Err(error) => _ = first_error.get_or_insert(error),
            }
        }
        Err(first_error.unwrap_or(Error::InvalidCertificate(CertificateError::NotValidForName)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
