"""Orders: what was bought at which price, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from shop.cart import Cart
from shop.errors import InvalidTransitionError
from shop.models import Address, Customer
from shop.money import Money
from shop.pricing import Quote


class OrderStatus(Enum):
    """The states of an order."""

    PENDING = "pending"
    PAID = "paid"
    SHIPPED = "shipped"
    DELIVERED = "delivered"
    CANCELLED = "cancelled"
    REFUNDED = "refunded"


TRANSITIONS: dict[OrderStatus, frozenset[OrderStatus]] = {
    OrderStatus.PENDING: frozenset({OrderStatus.PAID, OrderStatus.CANCELLED}),
    OrderStatus.PAID: frozenset({OrderStatus.SHIPPED, OrderStatus.REFUNDED}),
    OrderStatus.SHIPPED: frozenset({OrderStatus.DELIVERED, OrderStatus.REFUNDED}),
    OrderStatus.DELIVERED: frozenset({OrderStatus.REFUNDED}),
    OrderStatus.CANCELLED: frozenset(),
    OrderStatus.REFUNDED: frozenset(),
}


@dataclass(frozen=True)
class OrderLine:
    """A line as it was when the order was placed; later price changes do not matter."""

    sku: str
    name: str
    unit_price: Money
    quantity: int

    @property
    def subtotal(self) -> Money:
        return self.unit_price * self.quantity


@dataclass(frozen=True)
class StatusChange:
    """When an order entered a state, and why."""

    status: OrderStatus
    at: datetime
    note: str = ""


@dataclass
class Order:
    """A placed order with its history."""

    order_id: str
    customer_id: str
    lines: tuple[OrderLine, ...]
    quote: Quote
    address: Address
    history: list[StatusChange] = field(default_factory=list)
    charge_id: str | None = None

    @classmethod
    def from_cart(cls, order_id: str, cart: Cart, customer: Customer, quote: Quote, now: datetime) -> Order:
        lines = tuple(
            OrderLine(line.product.sku, line.product.name, line.product.price, line.quantity) for line in cart
        )
        order = cls(order_id, customer.customer_id, lines, quote, customer.address)
        order.history.append(StatusChange(OrderStatus.PENDING, now))
        return order

    @property
    def status(self) -> OrderStatus:
        return self.history[-1].status

    @property
    def placed_at(self) -> datetime:
        return self.history[0].at

    @property
    def total(self) -> Money:
        return self.quote.total

    @property
    def quantities(self) -> dict[str, int]:
        return {line.sku: line.quantity for line in self.lines}

    def can_become(self, status: OrderStatus) -> bool:
        return status in TRANSITIONS[self.status]

    def transition(self, status: OrderStatus, now: datetime, note: str = "") -> None:
        """Enter a new state, where the current one allows it."""
        if not self.can_become(status):
            raise InvalidTransitionError(self.order_id, self.status.value, status.value)
        self.history.append(StatusChange(status, now, note))

    def mark_paid(self, charge_id: str, now: datetime) -> None:
        self.transition(OrderStatus.PAID, now, f"charge {charge_id}")
        self.charge_id = charge_id

    def is_open(self) -> bool:
        return bool(TRANSITIONS[self.status])
