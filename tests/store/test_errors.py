"""MongoDB's errors: what only a change of its configuration ends is a refusal, with the setting or the command."""

from __future__ import annotations

import pytest
from pymongo.errors import OperationFailure, ServerSelectionTimeoutError

from shopflow.errors import Refusal, Unavailable
from shopflow.store.errors import failure, translated


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (13, 'db.grantRolesToUser("USER", [{role: "readWrite", db: "DATABASE"}])'),
        (18, "check the user and the password in mongodb.uri; correct them"),
        (391, "check the user and the password in mongodb.uri; correct them"),
        (8000, "check the user and the password in mongodb.uri; correct them"),
        (121, "db.runCommand({collMod: NAME, validator: {}})"),
    ],
)
def test_a_refusal_names_the_setting_or_the_command(code: int, advice: str) -> None:
    """Both for an error of a whole request and for one of a document."""
    with pytest.raises(Refusal) as refused, translated():
        raise OperationFailure("no", code)
    assert (refused.value.service, refused.value.subject) == ("MongoDB", "MongoDB")
    assert refused.value.text.startswith("MongoDB refuses requests: ")
    assert advice in refused.value.text
    assert str(failure(code, "no", "sales")).startswith("MongoDB refuses writes to the collection sales: no; ")


@pytest.mark.parametrize("code", [None, 91, 10107, 14031, 50])
def test_what_ends_by_itself_is_no_refusal(code: int | None) -> None:
    """A full disk, too: it is told as an outage, which ends when there is space."""
    assert type(failure(code, "no", "sales")) is Unavailable


def test_a_server_of_another_kind_is_called_so() -> None:
    """A web server, here: its `HTTP` is read as a length."""
    text = "Message length (1347703880) is larger than server max message size (48000000) (configured timeouts: 1)"
    with pytest.raises(Unavailable, match="does not speak MongoDB's protocol"), translated():
        raise ServerSelectionTimeoutError(text)
