//! TLS: root certificates, the handshake, and error texts for people.

use std::{io, sync::Arc};

use chrono::DateTime;
use thiserror::Error;
use tokio::{net::TcpStream, sync::OnceCell, task::spawn_blocking};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, AlertDescription, CertificateError, ClientConfig, RootCertStore,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    },
};

use crate::uri::without_brackets;

/// The root certificates that are trusted.
#[derive(Debug, Clone)]
pub struct Roots(Arc<RootCertStore>);

/// Why a file cannot be used as root certificates.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RootsError {
    /// It contains no certificate.
    #[error("contains no PEM certificate")]
    None,
    /// A certificate in it is invalid.
    #[error("contains an invalid certificate")]
    Broken,
}

impl Roots {
    /// Reads one or more certificates in PEM. Ignores any other text.
    ///
    /// # Errors
    /// There is no certificate, or one of them is invalid.
    pub fn from_pem(pem: &[u8]) -> Result<Self, RootsError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|_| RootsError::Broken)?;
            roots.add(certificate).map_err(|_| RootsError::Broken)?;
        }
        if roots.is_empty() { Err(RootsError::None) } else { Ok(Self(Arc::new(roots))) }
    }

    /// Loads the system's root certificates. Blocks: it reads many files.
    fn system() -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        // System stores often contain a certificate that rustls does not accept.
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let why = found.errors.first().map_or(String::new(), |error| format!(": {error}"));
            return Err(io::Error::other(format!(
                "no system root certificates found (install ca-certificates, or use --ca-file){why}"
            )));
        }
        Ok(Self(Arc::new(roots)))
    }
}

/// TLS to one server. Clones share the configuration, which the first connection creates.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    /// In URI form: an IPv6 address is in brackets.
    host: String,
    /// The system's if `None`.
    roots: Option<Roots>,
    config: Arc<OnceCell<Arc<ClientConfig>>>,
}

impl Tls {
    pub(crate) fn new(host: &str) -> Self {
        Self { host: host.to_owned(), roots: None, config: Arc::default() }
    }

    /// Trusts these root certificates only.
    pub(crate) fn trust(&mut self, roots: Roots) {
        *self = Self { roots: Some(roots), ..Self::new(&self.host) };
    }

    pub(crate) async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = self.config.get_or_try_init(|| self.configure()).await?;
        let host = without_brackets(&self.host).to_owned();
        let name = ServerName::try_from(host).map_err(|_| io::Error::other("not a host's name"))?;
        let connecting = TlsConnector::from(Arc::clone(config)).connect(name, stream);
        connecting.await.map_err(|error| describe_failure(&error))
    }

    async fn configure(&self) -> io::Result<Arc<ClientConfig>> {
        let Roots(roots) = match &self.roots {
            Some(roots) => roots.clone(),
            None => spawn_blocking(Roots::system).await.map_err(io::Error::other)??,
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Explains to people why a handshake failed.
fn describe_failure(error: &io::Error) -> io::Error {
    let text = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(problem)) => describe_certificate_error(problem),
        Some(rustls::Error::InvalidMessage(_)) => {
            "it does not speak TLS; is it http:// and not https://?".to_owned()
        }
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            "it does not speak HTTP/1.1 over TLS".to_owned()
        }
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it closed the connection instead of speaking TLS; is it http:// and not https://?"
                .to_owned()
        }
        _ => format!("TLS handshake failed: {error}"),
    };
    io::Error::new(error.kind(), text)
}

fn describe_certificate_error(problem: &CertificateError) -> String {
    match problem {
        // A bad signature usually means another authority with the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is signed by an unknown authority; if you trust it, name the \
             authority's certificate with --ca-file"
                .to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            match &presented.iter().map(|name| bare_name(name)).collect::<Vec<_>>()[..] {
                [] => format!("its certificate names no host, so it is not valid for {expected}"),
                names => format!("its certificate is for {}, not for {expected}", names.join(", ")),
            }
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate has expired{}", format_time(*not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is not valid yet{}", format_time(*not_before))
        }
        // `openssl req -x509` creates such certificates by default.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "its certificate is an authority's (CA:TRUE); make the server's with openssl req -x509 \
             -addext basicConstraints=critical,CA:FALSE"
                .to_owned()
        }
        other => format!("its certificate is not valid: {other}"),
    }
}

/// The name in the debug form `DnsName("localhost")` or `IpAddress(127.0.0.1)`.
fn bare_name(name: &str) -> &str {
    let name = name.split_once('(').map_or(name, |(_, inside)| inside.trim_end_matches(')'));
    name.trim_matches('"')
}

fn format_time(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).ok();
    let time = seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    time.map_or(String::new(), |time| format!(": {}", time.format("%Y-%m-%d %H:%M UTC")))
}
