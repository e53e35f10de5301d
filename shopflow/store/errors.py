"""Sorts pymongo's errors: the server is away (`Unavailable`), or a document can never be stored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import bson
from bson.errors import BSONError
from pymongo.errors import ConfigurationError, DocumentTooLarge, ExecutionTimeout, OperationFailure, PyMongoError

from shopflow.errors import Refusal, Slow, Unavailable

from .types import Document

#: MongoDB's limit for a document, minus the size of the update around it.
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024 - 16 * 1024

#: Less than any server's maxMessageSizeBytes (48,000,000), and the most statements of one message.
MAX_MESSAGE_BYTES = 32_000_000
_MOST_STATEMENTS = 10_000
#: What a statement may have around a document.
_STATEMENT_BYTES = 8 * 1024

#: The driver's errors for a document that it can't encode.
UNENCODABLE = (BSONError, OverflowError, UnicodeError)

_DUPLICATE_KEY = 11000
_AUTHENTICATION = {"AuthenticationFailed": 18, "AtlasError": 8000, "ReauthenticationRequired": 391}
OTHER_INDEX = {"IndexOptionsConflict": 85, "IndexKeySpecsConflict": 86}
#: Errors of single documents that are the server's fault: cause, MongoDB's name, code. All other errors of a document
#: are its own: a retry would fail again.
_SERVER_TROUBLE = {
    "no rights": {"Unauthorized": 13, "AuthenticationFailed": 18, "ReauthenticationRequired": 391},
    "no host": {"HostUnreachable": 6, "HostNotFound": 7, "NodeNotFound": 74, "ConnectionPoolExpired": 317},
    "network": {"NetworkTimeout": 89, "NetworkInterfaceExceededTimeLimit": 202, "SocketException": 9001},
    "time": {"MaxTimeMSExpired": 50, "ExceededTimeLimit": 262, "TransactionExceededLifetimeLimitSeconds": 290},
    "lock": {"LockTimeout": 24, "LockBusy": 46},
    "conflict": {"WriteConflict": 112, "SnapshotUnavailable": 246, "ReadConcernMajorityNotAvailableYet": 134},
    "transaction": {"TransactionTooOld": 225, "NoSuchTransaction": 251, "InternalTransactionNotSupported": 358},
    "cursor": {"CursorNotFound": 43, "CursorKilled": 237, "CappedPositionLost": 136, "RetryChangeStream": 234},
    "interrupted": {"QueryPlanKilled": 175, "Interrupted": 11601},
    "shutdown": {"ShutdownInProgress": 91, "InterruptedAtShutdown": 11600},
    "election": {"PrimarySteppedDown": 189, "InterruptedDueToReplStateChange": 11602, "StaleConfig": 13388},
    "no primary": {"LegacyNotPrimary": 10058, "NotWritablePrimary": 10107, "NotPrimaryNoSecondaryOk": 13435},
    "not ready": {"NotPrimaryOrSecondary": 13436, "FailedToSatisfyReadPreference": 133},
    "no majority": {"WriteConcernTimeout": 64, "UnknownReplWriteConcern": 79, "UnsatisfiableWriteConcern": 100},
    "full": {"ExceededMemoryLimit": 146, "ResourceExhausted": 402, "OutOfDiskSpace": 14031},
    "without a name in MongoDB's published lists": {"463": 463},
}
_TROUBLE_CODES = {code for named in _SERVER_TROUBLE.values() for code in named.values()}

#: The driver's words for bytes that no MongoDB sends: at that port is a web server, for example.
_NO_MONGODB = re.compile(r"Message length \(-?[0-9]+\) |Got opcode ")
_LOGIN = "correct them and restart the workers, or have an administrator of MongoDB set the password again"
_RIGHTS = (
    'an administrator of MongoDB grants it with db.grantRolesToUser("USER", [{role: "readWrite", db: "DATABASE"}]), '
    "with mongodb.database as DATABASE"
)
#: Errors that end only when somebody changes MongoDB's or shopflow's configuration: code -> who changes what.
_REFUSALS = {
    13: _RIGHTS,
    **dict.fromkeys(_AUTHENTICATION.values(), _LOGIN),
    121: "remove the collection's validator, or change it, with db.runCommand({collMod: NAME, validator: {}})",
}

#: The errors of pymongo's own lock.
_BROKEN_LOCK = {"Lock is not acquired", "cannot wait on un-acquired lock", "cannot notify on un-acquired lock"}


@contextmanager
def translated() -> Iterator[None]:
    """Raise pymongo's errors as `Unavailable`."""
    try:
        yield
    except ExecutionTimeout as error:
        raise Slow("MongoDB", "it did not finish a request in time, and ended it") from error
    except PyMongoError as error:
        code = error.code if isinstance(error, OperationFailure) else None
        raise failure(code, reason(error)) from error
    except RuntimeError as error:
        # pymongo 4's lock fails when requests that wait for a server are cancelled or run out of time.
        if str(error) not in _BROKEN_LOCK:
            raise
        raise Unavailable("MongoDB", "no server was found in time") from error


def failure(code: int | None, text: str, collection: str = "") -> Unavailable:
    """What an error of MongoDB demands: a `Refusal` if waiting does not end it.

    Arguments:
        collection: The collection of the request; empty: unknown.
    """
    if code not in _REFUSALS:
        return Unavailable("MongoDB", f"collection {collection}: {text}" if collection else text)
    subject = f"MongoDB {collection}".rstrip()
    what = f"writes to the collection {collection}" if collection else "requests"
    return Refusal("MongoDB", subject, f"MongoDB refuses {what}: {text}; {_REFUSALS[code]}")


def is_unable(error: BaseException | None) -> bool:
    """True if the server can't do what was asked, now or later; False if it may pass, or is about the user's rights."""
    if isinstance(error, ConfigurationError):
        return "wire version" in str(error)  # the driver's words for a server that is too old
    passing = _TROUBLE_CODES | set(_AUTHENTICATION.values())
    return isinstance(error, OperationFailure) and error.code not in passing


def reason(error: PyMongoError) -> str:
    """The error's reason in one line. The driver's messages never have the URI or the password."""
    code = error.code if isinstance(error, OperationFailure) else None
    if code in _AUTHENTICATION.values():
        return "authentication failed: check the user and the password in mongodb.uri"
    if _NO_MONGODB.search(str(error)):
        return "what answers does not speak MongoDB's protocol: is it the right address in mongodb.uri?"
    # The rest of the text is the topology, the timeouts, the reply and the command, which contains whole documents.
    text = re.split(r" \(configured timeouts|, Timeout: |, full error: | to execute command", str(error), maxsplit=1)[0]
    return one_line(text) or type(error).__name__


def one_line(text: str) -> str:
    """The text in one line of at most 300 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "..."


def in_messages(statements: Sequence[Document]) -> Iterator[tuple[int, Sequence[Document]]]:
    """The statements of a write in runs that fit into one message, each with the index of its first.

    Raises:
        DocumentTooLarge, or another of `UNENCODABLE`: One of them can't be sent.
    """
    start = size = 0
    for index, statement in enumerate(statements):
        encoded = len(bson.encode(statement))
        if encoded > MAX_DOCUMENT_BYTES + _STATEMENT_BYTES:
            raise DocumentTooLarge(f"{encoded} bytes")
        if size + encoded > MAX_MESSAGE_BYTES or index - start == _MOST_STATEMENTS:
            yield start, statements[start:index]
            start, size = index, 0
        size += encoded
    yield start, statements[start:]


def documents_errors(errors: list[Document], unconfirmed: Document | None) -> list[Document]:
    """Return the errors of single documents, if all are the documents' own fault.

    Raises:
        Unavailable: The write was not confirmed, or one of the errors is the server's fault.
    """
    if unconfirmed:
        raise Unavailable("MongoDB", f"could not confirm the write: {described(unconfirmed)}")
    if trouble := [one for one in errors if one.get("code") in _TROUBLE_CODES]:
        raise failure(trouble[0].get("code"), described(trouble[0]))
    return errors


def described(error: Document) -> str:
    """The server's message and the code, in one line."""
    return f"{one_line(str(error.get('errmsg', 'no reason given')))} (code {error.get('code')})"


def is_taken(error: Document) -> bool:
    """True if the `_id` is stored already. A unique index of another program gives the same code, and False here."""
    return error.get("code") == _DUPLICATE_KEY and list(error.get("keyPattern") or ["_id"]) == ["_id"]


def unencodable(documents: Sequence[Document], indexes: Iterable[int]) -> dict[int, str]:
    """The indexes of documents that can't be encoded or are too large, with the reasons."""
    return {index: fault for index in indexes if (fault := _fault(documents[index]))}


def _fault(document: Document) -> str | None:
    try:
        size = len(bson.encode(document))
    except UNENCODABLE as error:
        return one_line(str(error))
    return f"too large: {size} bytes, MongoDB takes {MAX_DOCUMENT_BYTES}" if size > MAX_DOCUMENT_BYTES else None
