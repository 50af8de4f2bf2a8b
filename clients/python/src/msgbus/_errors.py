"""The errors of this package."""

from __future__ import annotations

from typing import Optional


class MsgbusError(Exception):
    """An operation was refused, a subscription has ended, or there is no connection.

    ``code`` is a stable word: those of docs/protocol.md, section 8 and 16.3, the reasons of an ``end`` (``revoked``,
    ``lagged``, ``store_failed``), and of this client ``connection_lost``, ``disconnected``, ``client_closed``,
    ``wrong_ticket``, ``bad_protocol`` and ``too_many_waiting``. ``retry_after`` is in seconds, where trying again may
    help. ``missed`` is how many messages a subscription that has ``lagged`` has missed.
    """

    def __init__(self, code: str, text: str, retry_after: Optional[float] = None, missed: Optional[int] = None) -> None:
        super().__init__(text)
        self.code = code
        self.retry_after = retry_after
        self.missed = missed


class ConnectionLost(MsgbusError):
    """The connection broke before the answer: it is unknown whether the operation was carried out."""

    def __init__(self, op: str) -> None:
        super().__init__(
            "connection_lost",
            f"the connection broke before the answer: it is unknown whether {op} was carried out",
        )


def closed_error() -> MsgbusError:
    return MsgbusError("client_closed", "the client is closed")
