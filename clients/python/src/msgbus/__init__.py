"""A client of msgbusd for asyncio.

One websocket, which speaks ``msgbus.v1`` (docs/protocol.md, section 16), publishes, follows topics and patterns, pulls,
works on queues, and asks and serves services. It reconnects by itself, and every subscription resumes at its own position.
"""

from ._client import Client, Published, Unsettled
from ._errors import ConnectionLost, MsgbusError
from ._message import Delivery, Message
from ._service import Reply, Request, Responder
from ._subscription import Subscription

__all__ = [
    "Client", "ConnectionLost", "Delivery", "Message", "MsgbusError", "Published", "Reply", "Request", "Responder",
    "Subscription", "Unsettled",
]  # fmt: skip
