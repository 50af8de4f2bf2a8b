//! What SIGHUP does: reads the files of keys and of the certificate again.

use std::{io, sync::Arc};

use msgbusd::{Certificate, Server, keys::Keyring};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

pub(crate) fn on_hangup(server: &Server) -> io::Result<()> {
    let (keyring, certificate) = (server.keyring().cloned(), server.certificate().cloned());
    if let Some(keyring) = &keyring {
        info!("keys: {} from {}", keyring.count(), keyring.path().display());
    }
    if keyring.is_some() || certificate.is_some() {
        tokio::spawn(reload(keyring, certificate, signal(SignalKind::hangup())?));
    }
    Ok(())
}

/// Reads the keys and the certificate again at each signal.
async fn reload(
    keyring: Option<Arc<Keyring>>,
    certificate: Option<Arc<Certificate>>,
    mut hangups: Signal,
) {
    while hangups.recv().await.is_some() {
        if let Some(keyring) = &keyring {
            match keyring.reload() {
                Ok(()) => {
                    info!("SIGHUP: keys: {} from {}", keyring.count(), keyring.path().display());
                }
                Err(error) => warn!("SIGHUP: {error}; the keys stay as they were"),
            }
        }
        if let Some(certificate) = &certificate {
            match certificate.reload() {
                Ok(()) => info!("SIGHUP: certificate: from {}", certificate.path().display()),
                Err(error) => warn!("SIGHUP: {error}; the certificate stays as it was"),
            }
        }
    }
}
