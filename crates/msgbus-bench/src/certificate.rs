//! A self-signed certificate for test servers on this machine.

use std::{fs, io, path::Path, sync::Arc};

use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, pem::PemObject as _},
    },
};

/// The files, relative to the server's working directory, and the flags that name them.
pub(crate) const CHAIN: &str = "cert.pem";
const KEY: &str = "key.pem";
pub(crate) const FLAGS: &[&str] = &["--tls-cert", CHAIN, "--tls-key", KEY];

/// A self-signed certificate for 127.0.0.1.
pub(crate) struct Certificate {
    chain: String,
    key: String,
}

impl Certificate {
    pub(crate) fn make() -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        Ok(Self { chain: made.cert.pem(), key: made.signing_key.serialize_pem() })
    }

    /// Writes the files that the flags name.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        fs::write(folder.join(CHAIN), &self.chain)?;
        fs::write(folder.join(KEY), &self.key)
    }

    /// A TLS connector that trusts the certificate, with HTTP/1.1 as the protocol.
    pub(crate) fn connector(&self) -> anyhow::Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.chain.as_bytes())?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config).into())
    }
}
