//! TLS: the certificate, which can be reloaded while the server runs, and the handshake.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use thiserror::Error;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, InconsistentKeys, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject as _},
        },
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
    server::TlsStream,
};

use crate::{net::timeout_stream::TimeoutStream, read_file::read_file};

/// The files of a certificate, in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The server's certificate, followed by its intermediate certificates.
    pub chain: PathBuf,
    /// The unencrypted private key of the certificate.
    pub key: PathBuf,
}

/// An error in the certificate files. The text is one line that names the file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {problem}", .file.display())]
pub struct CertificateError {
    file: PathBuf,
    problem: String,
}

impl CertificateError {
    /// Whether the error concerns this file.
    pub(crate) fn is_of(&self, file: &Path) -> bool {
        self.file == file
    }
}

impl CertificateFiles {
    /// Reads the files. Blocks for up to ten seconds for each.
    ///
    /// # Errors
    /// When a file cannot be read or has the wrong content, or the key is not that of the certificate.
    pub(crate) fn read(&self) -> Result<CertifiedKey, CertificateError> {
        let wrong = |file: &Path, problem: String| CertificateError { file: file.into(), problem };
        let pem = |file: &Path, what: &str, error: pem::Error| {
            let problem = match error {
                pem::Error::NoItemsFound => format!("contains no {what} in PEM"),
                error => format!("invalid PEM: {error}"),
            };
            wrong(file, problem)
        };
        let read = |file: &Path| {
            read_file(file).map_err(|error| wrong(file, format!("cannot read the file: {error}")))
        };
        let chain = CertificateDer::pem_slice_iter(&read(&self.chain)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| pem(&self.chain, "certificate", error))?;
        if chain.is_empty() {
            return Err(pem(&self.chain, "certificate", pem::Error::NoItemsFound));
        }
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|error| pem(&self.key, "private key that is not encrypted", error))?;
        CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                wrong(&self.key, format!("not the key of {}", self.chain.display()))
            }
            rustls::Error::InvalidCertificate(_) => {
                wrong(&self.chain, format!("cannot use the file: {error}"))
            }
            error => wrong(&self.key, format!("cannot use the file: {error}")),
        })
    }
}

fn provider() -> CryptoProvider {
    ring::default_provider()
}

/// The certificate in force. Open connections keep the one of their handshake.
#[derive(Debug)]
pub struct Certificate {
    files: CertificateFiles,
    in_force: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    pub(crate) fn new(files: CertificateFiles) -> Result<Self, CertificateError> {
        let in_force = RwLock::new(Arc::new(files.read()?));
        Ok(Self { files, in_force })
    }

    /// The path of the certificate file.
    pub fn path(&self) -> &Path {
        &self.files.chain
    }

    /// Reloads the files. Blocks for up to ten seconds for each, so do not call it on a serving thread.
    ///
    /// # Errors
    /// When a file cannot be used. The old certificate stays in force then.
    pub fn reload(&self) -> Result<(), CertificateError> {
        *self.in_force.write() = Arc::new(self.files.read()?);
        Ok(())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.in_force.read()))
    }
}

/// The TLS settings for connections that use this certificate and one of these application protocols (ALPN).
pub(crate) fn settings(certificate: &Arc<Certificate>, protocols: &[&[u8]]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .unwrap_or_else(|_| unreachable!("ring supports the default versions"))
        .with_no_client_auth()
        .with_cert_resolver(Arc::<Certificate>::clone(certificate));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Accepts a TLS handshake.
///
/// # Errors
/// When it fails or the connection breaks.
pub(crate) async fn accept(
    settings: Arc<ServerConfig>,
    stream: TimeoutStream,
) -> io::Result<TlsStream<TimeoutStream>> {
    TlsAcceptor::from(settings).accept(stream).await
}
