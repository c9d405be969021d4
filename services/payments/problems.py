"""The kinds of problems that the calls of payments have of their own."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from services.payments import accounts
from shared.web.problems.problem_types import Kind

if TYPE_CHECKING:
    from settle_outbox.errors import SettleError

ACCOUNT_EXISTS = Kind(
    "account-exists",
    HTTPStatus.CONFLICT,
    "The user has an account already",
    "A user has one account at most, and this one's is open. Nothing was changed.",
    "Use the account there is. After a request whose answer was lost, this says that it was done.",
)
UNKNOWN_ACCOUNT = Kind(
    "unknown-account",
    HTTPStatus.NOT_FOUND,
    "The user has no account",
    "No account was opened for this user. Nothing was changed.",
    "Compare the user's id, or open the account with POST /accounts.",
)
BALANCE_OVERFLOW = Kind(
    "balance-overflow",
    HTTPStatus.CONFLICT,
    "The balance would be too large",
    "The deposit would raise the balance above 2^63-1 minor units, the largest that can be stored."
    " Nothing was changed.",
    "Deposit less.",
)
USER_MISMATCH = Kind(
    "user-mismatch",
    HTTPStatus.CONFLICT,
    "The body names another user than the address",
    "The user_id of the body is not the one of the address. Nothing was changed.",
    "Leave user_id out of the body, or send the address's.",
)

PROBLEMS: dict[type[SettleError], Kind] = {
    accounts.AccountExistsError: ACCOUNT_EXISTS,
    accounts.BalanceOverflowError: BALANCE_OVERFLOW,
    accounts.UnknownAccountError: UNKNOWN_ACCOUNT,
    accounts.UserMismatchError: USER_MISMATCH,
}
