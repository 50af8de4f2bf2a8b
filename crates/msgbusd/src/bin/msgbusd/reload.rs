//! SIGHUP: reloads the key file and the certificate files, and checks the file of `--config` for changes. It never ends
//! the server.

use std::{sync::Arc, thread};

use msgbusd::{Certificate, Server, auth::Keyring, config::ConfigFile};
use tokio::{signal::unix::Signal, sync::oneshot};
use tracing::{info, warn};

/// The files that SIGHUP reloads.
#[derive(Clone)]
pub(crate) struct Reload {
    file: Option<ConfigFile>,
    keyring: Option<Arc<Keyring>>,
    certificate: Option<Arc<Certificate>>,
}

impl Reload {
    pub(crate) fn of(server: &Server, file: Option<ConfigFile>) -> Self {
        let (keyring, certificate) = (server.keyring().cloned(), server.certificate().cloned());
        if let Some(keyring) = &keyring {
            info!("keys: {} from {}", keyring.count(), keyring.path().display());
        }
        Self { file, keyring, certificate }
    }

    /// Reloads the files at each of these signals. Signals that arrive during a reload count as one.
    pub(crate) fn at_each(self, mut hangups: Signal) {
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                // Not on a blocking thread of the runtime: the exit of the process would wait for it.
                let (reload, (done, is_done)) = (self.clone(), oneshot::channel());
                let thread = thread::Builder::new().name("reload".to_owned()).spawn(move || {
                    reload.read();
                    let _ = done.send(());
                });
                match thread {
                    // An error means a panic in the thread, which is logged.
                    Ok(_) => drop(is_done.await),
                    Err(error) => warn!("SIGHUP: cannot start a thread: {error}; nothing is read"),
                }
            }
        });
    }

    fn read(&self) {
        if let Some(keyring) = &self.keyring {
            match keyring.reload() {
                Ok(()) => {
                    info!("SIGHUP: keys: {} from {}", keyring.count(), keyring.path().display());
                }
                Err(error) => warn!("SIGHUP: {error}; the keys stay as they were"),
            }
        }
        if let Some(certificate) = &self.certificate {
            match certificate.reload() {
                Ok(()) => info!("SIGHUP: certificate: from {}", certificate.path().display()),
                Err(error) => warn!("SIGHUP: {error}; the certificate stays as it was"),
            }
        }
        match &self.file {
            Some(file) => check(file),
            None if self.keyring.is_none() && self.certificate.is_none() => {
                info!("SIGHUP: nothing to reload without --keys, --tls-cert or --config");
            }
            None => {}
        }
    }
}

/// Logs which settings in the file have changed: they need a restart.
fn check(file: &ConfigFile) {
    let path = file.path().display();
    match file.changes() {
        Ok(changed) if changed.is_empty() => info!("SIGHUP: {path}: no setting has changed"),
        Ok(changed) => {
            let changed = changed.join(", ");
            warn!("SIGHUP: {path}: changes of {changed} take effect at the next start");
        }
        Err(error) => warn!("SIGHUP: {error}; the settings stay, and the next start would fail"),
    }
}
