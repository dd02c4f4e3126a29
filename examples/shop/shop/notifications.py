"""Messages to customers about their orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shop.models import Customer
from shop.orders import Order, OrderStatus

SUBJECTS = {
    OrderStatus.PAID: "Thank you for your order {order_id}",
    OrderStatus.SHIPPED: "Your order {order_id} is on its way",
    OrderStatus.DELIVERED: "Your order {order_id} has arrived",
    OrderStatus.CANCELLED: "Your order {order_id} was cancelled",
    OrderStatus.REFUNDED: "Your refund for order {order_id}",
}


@dataclass(frozen=True)
class Message:
    """An e-mail that is ready to be sent."""

    recipient: str
    subject: str
    body: str


class Mailer(Protocol):
    def send(self, message: Message) -> None: ...


class Outbox:
    """A mailer that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def send(self, message: Message) -> None:
        self.messages.append(message)


class Notifier:
    """Tells customers when their order changes its state."""

    def __init__(self, mailer: Mailer) -> None:
        self._mailer = mailer

    def status_changed(self, order: Order, customer: Customer) -> None:
        subject = SUBJECTS.get(order.status)
        if subject is None:
            return
        message = Message(
            recipient=customer.email,
            subject=subject.format(order_id=order.order_id),
            body=self._body(order, customer),
        )
        self._mailer.send(message)

    def _body(self, order: Order, customer: Customer) -> str:
        lines = [f"Dear {customer.name},", ""]
        lines += [f"  {line.quantity} x {line.name}: {line.subtotal}" for line in order.lines]
        for label, amount in order.quote.discounts:
            lines.append(f"  {label}: {-amount}")
        lines.append(f"  shipping: {order.quote.shipping}")
        lines.append(f"  tax: {order.quote.tax}")
        lines.append(f"  total: {order.total}")
        lines += ["", f"Shipped to: {order.address.one_line()}"]
        return "\n".join(lines)
