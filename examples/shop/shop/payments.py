"""Payments: an interface to gateways, one for tests, and one that retries."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import Callable, Protocol

from shop.errors import NotFoundError, PaymentDeclinedError, ShopError
from shop.money import Money


class ChargeStatus(Enum):
    CAPTURED = "captured"
    PARTIALLY_REFUNDED = "partially_refunded"
    REFUNDED = "refunded"


@dataclass
class Charge:
    """Money that was taken."""

    charge_id: str
    amount: Money
    refunded: Money

    @property
    def refundable(self) -> Money:
        return self.amount - self.refunded

    @property
    def status(self) -> ChargeStatus:
        if self.refunded == self.amount:
            return ChargeStatus.REFUNDED
        if self.refunded.is_positive():
            return ChargeStatus.PARTIALLY_REFUNDED
        return ChargeStatus.CAPTURED


class GatewayTimeoutError(ShopError):
    """The gateway did not answer; whether money moved is not known."""

    code = "gateway_timeout"
    status = 504


class PaymentGateway(Protocol):
    """Takes money and gives it back. Calls with the same idempotency key happen once."""

    def charge(self, amount: Money, token: str, idempotency_key: str) -> Charge: ...

    def refund(self, charge_id: str, amount: Money) -> Charge: ...


class FakeGateway:
    """Keeps charges in memory. The token ``"declined"`` is refused."""

    def __init__(self) -> None:
        self.charges: dict[str, Charge] = {}
        self._by_key: dict[str, str] = {}

    def charge(self, amount: Money, token: str, idempotency_key: str) -> Charge:
        known = self._by_key.get(idempotency_key)
        if known is not None:
            return self.charges[known]
        if token == "declined":
            raise PaymentDeclinedError("card refused")
        charge = Charge(f"ch_{uuid.uuid4().hex[:12]}", amount, Money.zero(amount.currency))
        self.charges[charge.charge_id] = charge
        self._by_key[idempotency_key] = charge.charge_id
        return charge

    def refund(self, charge_id: str, amount: Money) -> Charge:
        charge = self.charges.get(charge_id)
        if charge is None:
            raise NotFoundError("charge", charge_id)
        if amount > charge.refundable:
            raise PaymentDeclinedError(f"only {charge.refundable} can be refunded")
        charge.refunded = charge.refunded + amount
        return charge


class RetryingGateway:
    """Asks another gateway again when it times out, with growing pauses."""

    def __init__(
        self,
        inner: PaymentGateway,
        attempts: int = 3,
        pause_seconds: float = 0.2,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._inner = inner
        self._attempts = attempts
        self._pause_seconds = pause_seconds
        self._sleep = sleep

    def charge(self, amount: Money, token: str, idempotency_key: str) -> Charge:
        return self._retry(lambda: self._inner.charge(amount, token, idempotency_key))

    def refund(self, charge_id: str, amount: Money) -> Charge:
        return self._inner.refund(charge_id, amount)

    def _retry(self, call: Callable[[], Charge]) -> Charge:
        for attempt in range(self._attempts):
            try:
                return call()
            except GatewayTimeoutError:
                if attempt == self._attempts - 1:
                    raise
                self._sleep(self._pause_seconds * 2**attempt)
        raise AssertionError("unreachable")
