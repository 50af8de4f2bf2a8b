//! What a server listens on.

use std::sync::Arc;

use tokio_rustls::rustls::ServerConfig;

use super::StartError;
use crate::{
    config::{Config, DoorBind, Protocol},
    door::{Door, Doors, http::serve},
    net::{
        listener::{Bind, Listener},
        tls::{self, Certificate},
    },
};

/// A listener and the TLS settings of its connections.
#[derive(Debug)]
pub(super) struct BoundListener {
    pub(super) listener: Listener,
    /// `None` for connections without TLS.
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// `None` for HTTP.
    pub(super) door: Option<(Protocol, Door)>,
}

impl BoundListener {
    /// Whether a client that is refused understands a response of HTTP.
    pub(super) fn speaks_http(&self) -> bool {
        self.door.as_ref().is_none_or(|(protocol, _)| protocol.begins_with_http())
    }
}

/// What a server listens on.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) listeners: Vec<BoundListener>,
    pub(super) endpoints: Vec<Bind>,
    pub(super) doors: Vec<DoorBind>,
    pub(super) certificate: Option<Arc<Certificate>>,
}

impl Sockets {
    pub(super) fn bind(config: &Config) -> Result<Self, StartError> {
        let certificate =
            config.certificate.clone().map(Certificate::new).transpose()?.map(Arc::new);
        let tls = |protocols: &[&[u8]]| {
            certificate.as_ref().map(|certificate| tls::settings(certificate, protocols))
        };
        let (mut listeners, mut endpoints, mut doors) = (Vec::new(), Vec::new(), Vec::new());
        let of_http = tls(&serve::PROTOCOLS);
        for bind in &config.bind {
            let (listener, endpoint) = listen(bind, "--bind")?;
            listeners.push(BoundListener {
                listener,
                tls: encrypts(bind, of_http.as_ref()),
                door: None,
            });
            endpoints.push(endpoint);
        }
        let (state, of_doors) = (Doors::new(config), tls(&[]));
        for DoorBind { protocol, bind } in &config.doors {
            let (listener, endpoint) = listen(bind, protocol.flag())?;
            let door = Some((*protocol, state.of(*protocol)));
            listeners.push(BoundListener {
                listener,
                tls: encrypts(bind, of_doors.as_ref()),
                door,
            });
            doors.push(DoorBind { protocol: *protocol, bind: endpoint });
        }
        Ok(Self { listeners, endpoints, doors, certificate })
    }
}

fn listen(bind: &Bind, flag: &'static str) -> Result<(Listener, Bind), StartError> {
    let failed = |error| StartError::Listen { endpoint: bind.clone(), flag, error };
    let listener = Listener::new(bind).map_err(failed)?;
    let endpoint = listener.local_endpoint().map_err(failed)?;
    Ok((listener, endpoint))
}

/// A unix socket does not leave the machine, so it needs no encryption.
fn encrypts(bind: &Bind, tls: Option<&Arc<ServerConfig>>) -> Option<Arc<ServerConfig>> {
    tls.filter(|_| matches!(bind, Bind::Tcp(_))).cloned()
}
