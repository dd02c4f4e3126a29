"""Checkout: a cart becomes a paid order, or nothing changes."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Callable

from shop.cart import Cart
from shop.errors import ShopError
from shop.inventory import Inventory
from shop.notifications import Notifier
from shop.orders import Order, OrderStatus
from shop.payments import PaymentGateway
from shop.pricing import PriceCalculator, Quote
from shop.repository import Repository


class CheckoutService:
    """Ties prices, stock, payment and storage together."""

    def __init__(
        self,
        repository: Repository,
        inventory: Inventory,
        prices: PriceCalculator,
        gateway: PaymentGateway,
        notifier: Notifier,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._repository = repository
        self._inventory = inventory
        self._prices = prices
        self._gateway = gateway
        self._notifier = notifier
        self._clock = clock

    def quote(self, cart: Cart) -> Quote:
        customer = self._repository.customer(cart.customer_id)
        return self._prices.quote(cart, customer, self._clock().date())

    def place_order(self, cart: Cart, payment_token: str) -> Order:
        """Reserve stock, take the money, and keep the order. Releases the stock where the payment fails."""
        if cart.is_empty():
            raise ShopError("the cart is empty")
        now = self._clock()
        customer = self._repository.customer(cart.customer_id)
        quote = self._prices.quote(cart, customer, now.date())
        reservation = self._inventory.reserve(cart, now)
        order = Order.from_cart(uuid.uuid4().hex[:10], cart, customer, quote, now)
        try:
            charge = self._gateway.charge(quote.total, payment_token, order.order_id)
        except ShopError:
            self._inventory.release(reservation.reservation_id)
            raise
        order.mark_paid(charge.charge_id, now)
        self._inventory.commit(reservation.reservation_id)
        customer.record_purchase(quote.total)
        self._repository.save_customer(customer)
        self._repository.save_order(order)
        cart.clear()
        self._notifier.status_changed(order, customer)
        return order

    def ship(self, order_id: str) -> Order:
        return self._advance(order_id, OrderStatus.SHIPPED)

    def deliver(self, order_id: str) -> Order:
        return self._advance(order_id, OrderStatus.DELIVERED)

    def refund(self, order_id: str, reason: str) -> Order:
        """Give all the money back; units that were not shipped return to stock."""
        order = self._repository.order(order_id)
        was_shipped = order.status is not OrderStatus.PAID
        if order.can_become(OrderStatus.REFUNDED) and order.charge_id is not None:
            self._gateway.refund(order.charge_id, order.total)
        order = self._advance(order_id, OrderStatus.REFUNDED, reason)
        if not was_shipped:
            self._inventory.restock(order.quantities)
        return order

    def _advance(self, order_id: str, status: OrderStatus, note: str = "") -> Order:
        order = self._repository.order(order_id)
        order.transition(status, self._clock(), note)
        self._repository.save_order(order)
        self._notifier.status_changed(order, self._repository.customer(order.customer_id))
        return order
