//! How clients are called in lists of leases and subscriptions.

use std::{cell::RefCell, sync::Arc};

use super::Call;
use crate::{auth::Principal, net::peer::Peer};

thread_local! {
    /// The client of this thread whose label was needed last. The same one often needs it again.
    static LATEST: RefCell<Option<Labelled>> = const { RefCell::new(None) };
}

struct Labelled {
    peer: Peer,
    principal: Option<Arc<Principal>>,
    label: Arc<str>,
}

impl Call<'_> {
    /// The label of the leases and subscriptions of the client: the name of its key, if it has one, and its address.
    pub(super) fn label(&self) -> Arc<str> {
        LATEST.with_borrow_mut(|latest| {
            if let Some(latest) = latest
                && latest.peer == self.peer
                && latest.principal.as_ref().map(Arc::as_ptr)
                    == self.principal.as_ref().map(Arc::as_ptr)
            {
                return Arc::clone(&latest.label);
            }
            let (peer, principal) = (self.peer, self.principal.clone());
            let label: Arc<str> = match principal.as_ref().and_then(|key| key.key_name()) {
                Some(key) => format!("{key}@{peer}").into(),
                None => peer.to_string().into(),
            };
            *latest = Some(Labelled { peer, principal, label: Arc::clone(&label) });
            label
        })
    }
}
