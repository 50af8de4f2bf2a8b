//! Relays in front of a server that speak TLS or listen on a unix socket, and a certificate authority.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixListener},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};

/// A certificate authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::named("authority")
    }

    pub(crate) fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), issuer.as_ref().pem()).unwrap();
        Self { issuer, folder }
    }

    /// The file for `--ca-file`.
    pub(crate) fn file(&self) -> String {
        self.folder.path().join("ca.pem").to_str().unwrap().to_owned()
    }

    /// A relay with a certificate for this machine.
    pub(crate) async fn relay(&self, to: SocketAddr) -> TlsRelay {
        self.relay_with(&["localhost", "127.0.0.1"], to, |_| {}).await
    }

    /// A relay with a certificate for these names, after `set` has changed its parameters.
    pub(crate) async fn relay_with(
        &self,
        names: &[&str],
        to: SocketAddr,
        set: impl FnOnce(&mut CertificateParams),
    ) -> TlsRelay {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        set(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        TlsRelay::start(&certificate, &key, to).await
    }
}

/// Terminates TLS in front of a server without TLS.
pub(crate) struct TlsRelay {
    pub(crate) port: u16,
}

impl TlsRelay {
    /// A relay with a self-signed certificate, and the certificate in PEM.
    pub(crate) async fn self_signed(to: SocketAddr) -> (Self, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (Self::start(&certificate, &key, to).await, certificate.pem())
    }

    async fn start(certificate: &Certificate, key: &KeyPair, to: SocketAddr) -> Self {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(near) = acceptor.accept(near).await else { return };
                    // The server speaks HTTP/1.1 only.
                    if near.get_ref().1.alpn_protocol() == Some(b"http/1.1") {
                        pass_on(near, to).await;
                    }
                });
            }
        });
        Self { port }
    }

    pub(crate) fn uri(&self) -> String {
        format!("https://localhost:{}", self.port)
    }
}

/// Forwards connections from a unix socket.
pub(crate) struct UnixRelay {
    folder: TempDir,
}

impl UnixRelay {
    pub(crate) fn start(to: SocketAddr) -> Self {
        let relay = Self { folder: tempfile::tempdir().unwrap() };
        let listener = UnixListener::bind(relay.path()).unwrap();
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                tokio::spawn(pass_on(near, to));
            }
        });
        relay
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn uri(&self) -> String {
        format!("unix:{}", self.path().display())
    }
}

async fn pass_on(mut near: impl AsyncRead + AsyncWrite + Unpin, to: SocketAddr) {
    let Ok(mut far) = TcpStream::connect(to).await else { return };
    let _ = copy_bidirectional(&mut near, &mut far).await;
}
