"""The problem types of the payments API."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from services.payments import accounts
from shared.web.problems.problem_types import ProblemType

if TYPE_CHECKING:
    from settle_outbox.errors import SettleError

ACCOUNT_EXISTS = ProblemType(
    "account-exists",
    HTTPStatus.CONFLICT,
    "The user already has an account",
    "A user has at most one account, and this user's account is open. Nothing was changed.",
    "Use the existing account. If you sent the request again because its answer was lost, the first"
    " request succeeded.",
)
UNKNOWN_ACCOUNT = ProblemType(
    "unknown-account",
    HTTPStatus.NOT_FOUND,
    "The user has no account",
    "No account was opened for this user. Nothing was changed.",
    "Check the user's id, or open the account with POST /accounts.",
)
BALANCE_OVERFLOW = ProblemType(
    "balance-overflow",
    HTTPStatus.CONFLICT,
    "The balance would be too large",
    "The deposit would raise the balance above 2^63-1 minor units, the maximum. Nothing was"
    " changed.",
    "Deposit less.",
)
USER_MISMATCH = ProblemType(
    "user-mismatch",
    HTTPStatus.CONFLICT,
    "The body and the address name different users",
    "The user_id in the body is not the one in the address. Nothing was changed.",
    "Remove user_id from the body, or send the same id as in the address.",
)

PROBLEMS: dict[type[SettleError], ProblemType] = {
    accounts.AccountExistsError: ACCOUNT_EXISTS,
    accounts.BalanceOverflowError: BALANCE_OVERFLOW,
    accounts.UnknownAccountError: UNKNOWN_ACCOUNT,
    accounts.UserMismatchError: USER_MISMATCH,
}
