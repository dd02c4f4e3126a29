"""Stock: how many units there are, and which of them are promised to somebody."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta

from shop.cart import Cart
from shop.errors import NotFoundError, OutOfStockError

RESERVATION_LIFETIME = timedelta(minutes=15)


@dataclass(frozen=True)
class Reservation:
    """Units that are held for a checkout."""

    reservation_id: str
    quantities: dict[str, int]
    expires_at: datetime

    def is_expired(self, now: datetime) -> bool:
        return now >= self.expires_at


class Inventory:
    """Stock levels by SKU. All methods are safe to call from several threads."""

    def __init__(self, low_stock_threshold: int = 5) -> None:
        self._on_hand: Counter[str] = Counter()
        self._reservations: dict[str, Reservation] = {}
        self._low_stock_threshold = low_stock_threshold
        self._lock = threading.RLock()

    def receive(self, sku: str, quantity: int) -> None:
        """Take delivery of units."""
        if quantity < 1:
            raise ValueError("the quantity must be at least 1")
        with self._lock:
            self._on_hand[sku] += quantity

    def on_hand(self, sku: str) -> int:
        with self._lock:
            return self._on_hand[sku]

    def reserved(self, sku: str) -> int:
        with self._lock:
            return sum(held.quantities.get(sku, 0) for held in self._reservations.values())

    def available(self, sku: str) -> int:
        """Units that are neither sold nor promised."""
        with self._lock:
            return self.on_hand(sku) - self.reserved(sku)

    def reserve(self, cart: Cart, now: datetime) -> Reservation:
        """Hold all units of a cart, or none of them."""
        with self._lock:
            self.release_expired(now)
            for line in cart:
                available = self.available(line.product.sku)
                if line.quantity > available:
                    raise OutOfStockError(line.product.sku, line.quantity, available)
            reservation = Reservation(
                reservation_id=uuid.uuid4().hex,
                quantities={line.product.sku: line.quantity for line in cart},
                expires_at=now + RESERVATION_LIFETIME,
            )
            self._reservations[reservation.reservation_id] = reservation
            return reservation

    def commit(self, reservation_id: str) -> None:
        """The reserved units leave the warehouse."""
        with self._lock:
            reservation = self._take(reservation_id)
            self._on_hand.subtract(reservation.quantities)

    def release(self, reservation_id: str) -> None:
        """The reserved units can be bought by others again."""
        with self._lock:
            self._take(reservation_id)

    def restock(self, quantities: dict[str, int]) -> None:
        """Put returned units back."""
        with self._lock:
            self._on_hand.update(quantities)

    def release_expired(self, now: datetime) -> int:
        with self._lock:
            expired = [key for key, held in self._reservations.items() if held.is_expired(now)]
            for key in expired:
                del self._reservations[key]
            return len(expired)

    def low_stock(self) -> list[str]:
        """SKUs that should be ordered again, the scarcest first."""
        with self._lock:
            scarce = [sku for sku in self._on_hand if self.available(sku) <= self._low_stock_threshold]
            return sorted(scarce, key=self.available)

    def _take(self, reservation_id: str) -> Reservation:
        try:
            return self._reservations.pop(reservation_id)
        except KeyError:
            raise NotFoundError("reservation", reservation_id) from None
