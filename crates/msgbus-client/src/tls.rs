//! TLS: whom a server has to convince of its name, and what is said when it does not.

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

use crate::uri::bare;

/// Certificates of those whose word about the name of a server is taken.
#[derive(Debug, Clone)]
pub struct Roots(Arc<RootCertStore>);

/// Why a file has no certificates to trust.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RootsError {
    /// It is something else, or empty.
    #[error("there is no certificate in it; it should be PEM")]
    None,
    /// There is a certificate that cannot be read.
    #[error("there is a certificate in it that cannot be read")]
    Broken,
}

impl Roots {
    /// Reads certificates, one or more, in PEM. Anything else between them is passed over.
    ///
    /// # Errors
    /// When there is none, or one of them cannot be read.
    pub fn from_pem(pem: &[u8]) -> Result<Self, RootsError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|_| RootsError::Broken)?;
            roots.add(certificate).map_err(|_| RootsError::Broken)?;
        }
        if roots.is_empty() { Err(RootsError::None) } else { Ok(Self(Arc::new(roots))) }
    }

    /// Those of the system. They are many, and files.
    fn of_the_system() -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        // Among a hundred there is always an odd one.
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

/// TLS to one server. Clones share what it needs, which is made with the first connection.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    /// As in a URI.
    host: String,
    /// The system's if `None`.
    roots: Option<Roots>,
    config: Arc<OnceCell<Arc<ClientConfig>>>,
}

impl Tls {
    pub(crate) fn new(host: &str) -> Self {
        Self { host: host.to_owned(), roots: None, config: Arc::default() }
    }

    /// Trusts these, and nobody else.
    pub(crate) fn trust(&mut self, roots: Roots) {
        *self = Self { roots: Some(roots), ..Self::new(&self.host) };
    }

    pub(crate) async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = self.config.get_or_try_init(|| self.configure()).await?;
        let host = bare(&self.host).to_owned();
        let name = ServerName::try_from(host).map_err(|_| io::Error::other("not a host's name"))?;
        let connecting = TlsConnector::from(Arc::clone(config)).connect(name, stream);
        connecting.await.map_err(|error| in_words(&error))
    }

    async fn configure(&self) -> io::Result<Arc<ClientConfig>> {
        let Roots(roots) = match &self.roots {
            Some(roots) => roots.clone(),
            None => spawn_blocking(Roots::of_the_system).await.map_err(io::Error::other)??,
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

/// What a handshake failed of, for people.
fn in_words(error: &io::Error) -> io::Error {
    let text = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(problem)) => certificate(problem),
        Some(rustls::Error::InvalidMessage(_)) => {
            "it does not speak TLS; is it http:// and not https://?".to_owned()
        }
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            "it does not speak HTTP/1.1 over TLS".to_owned()
        }
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it has closed instead of speaking TLS; is it http:// and not https://?".to_owned()
        }
        _ => format!("no TLS: {error}"),
    };
    io::Error::new(error.kind(), text)
}

fn certificate(problem: &CertificateError) -> String {
    match problem {
        // A bad signature is most often that of another authority of the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is signed by an unknown authority; if you trust it, name the \
             authority's certificate with --ca-file"
                .to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            match &presented.iter().map(|name| plain(name)).collect::<Vec<_>>()[..] {
                [] => format!("its certificate is for no name at all, not for {expected}"),
                names => format!("its certificate is for {}, not for {expected}", names.join(", ")),
            }
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate has expired{}", moment(*not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is not valid yet{}", moment(*not_before))
        }
        // What `openssl req -x509` makes when it is told no more.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "its certificate is an authority's (CA:TRUE); make the server's with openssl req -x509 \
             -addext basicConstraints=critical,CA:FALSE"
                .to_owned()
        }
        other => format!("its certificate is not good: {other}"),
    }
}

/// A name as it is written, of `DnsName("localhost")` or `IpAddress(127.0.0.1)`.
fn plain(name: &str) -> &str {
    let name = name.split_once('(').map_or(name, |(_, inside)| inside.trim_end_matches(')'));
    name.trim_matches('"')
}

fn moment(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).ok();
    let time = seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    time.map_or(String::new(), |time| format!(": {}", time.format("%Y-%m-%d %H:%M UTC")))
}
