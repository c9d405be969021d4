"""Check that every balance is the sum of its transfers, and that all accounts sum to zero.

One database has all of it, so that database computes the sums, in one snapshot. It does so as
``numeric``, because the sums of the system's accounts may exceed a bigint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from settle.audit.report import Violation

if TYPE_CHECKING:
    from settle.audit.databases import Snapshot
    from settle.audit.report import Check

MONEY = "balances equal their transfers, all accounts sum to zero"

_SUMS = """
WITH moved AS (
    SELECT account_id, sum(amount) AS amount FROM (
        SELECT to_account_id AS account_id, amount::numeric FROM transfers
        UNION ALL SELECT from_account_id, -amount::numeric FROM transfers
    ) AS each GROUP BY account_id
)
"""

_WRONG_BALANCES = f"""
{_SUMS}
SELECT coalesce(a.user_id::text, a.name, 'account ' || m.account_id), a.balance, m.amount
FROM accounts a FULL JOIN moved m ON m.account_id = a.id
WHERE a.id IS NULL OR a.balance < 0 OR (a.user_id IS NOT NULL
    AND a.balance IS DISTINCT FROM coalesce(m.amount, 0))
"""  # noqa: S608 - constants, as below

_TOTAL = f"""
{_SUMS}
SELECT coalesce(sum(a.balance), 0) + coalesce(sum(m.amount) FILTER (WHERE a.user_id IS NULL), 0)
FROM accounts a LEFT JOIN moved m ON m.account_id = a.id
"""  # noqa: S608

_MISDIRECTED = """
SELECT t.id, t.kind, coalesce(f.name, f.user_id::text), coalesce(o.name, o.user_id::text)
FROM transfers t
LEFT JOIN accounts f ON f.id = t.from_account_id LEFT JOIN accounts o ON o.id = t.to_account_id
WHERE NOT CASE t.kind
    WHEN 'deposit' THEN f.name IS NOT DISTINCT FROM 'world' AND o.user_id IS NOT NULL
    ELSE f.user_id IS NOT NULL AND o.name IS NOT DISTINCT FROM 'sales' END
"""


def check_money(database: Snapshot, check: Check) -> None:
    """Add a violation to the check for each wrong balance, wrong total and misdirected transfer."""
    check.seen = database.count("accounts", "transfers")
    for rows in database.stream(_WRONG_BALANCES):
        for account, balance, amount in rows:
            detail = f"The balance is {balance}, the transfers sum to {amount or 0}"
            check.add(Violation("wrong balance", account, detail))
    ((total,),) = database.rows(_TOTAL)
    if total:
        check.add(Violation("not zero", "all accounts", f"Their sum is {total}"))
    for rows in database.stream(_MISDIRECTED):
        for transfer, kind, giver, taker in rows:
            detail = f"A {kind} from {giver} to {taker}"
            check.add(Violation("misdirected transfer", f"transfer {transfer}", detail))
