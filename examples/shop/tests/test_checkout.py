"""From cart to order, and back."""

import tempfile
import unittest
from datetime import timedelta
from pathlib import Path

from shop.errors import InvalidTransitionError, OutOfStockError, PaymentDeclinedError
from shop.inventory import RESERVATION_LIFETIME
from shop.money import Money
from shop.orders import OrderStatus
from shop.payments import FakeGateway, GatewayTimeoutError, RetryingGateway
from shop.reports import best_sellers, revenue
from shop.repository import SqliteRepository
from tests.factories import NOW, Shop, make_cart, make_customer, make_product


class CheckoutTest(unittest.TestCase):
    def setUp(self) -> None:
        self.shop = Shop()
        self.tea = self.shop.stock(make_product(), 5)

    def test_places_an_order(self) -> None:
        cart = make_cart((self.tea, 2))
        order = self.shop.checkout.place_order(cart, "tok")
        self.assertIs(order.status, OrderStatus.PAID)
        self.assertTrue(cart.is_empty())
        self.assertEqual(self.shop.inventory.available(self.tea.sku), 3)
        self.assertEqual(self.shop.gateway.charges[order.charge_id].amount, order.total)
        self.assertIn(order.order_id, self.shop.outbox.messages[0].subject)

    def test_declined_payment_releases_the_stock(self) -> None:
        cart = make_cart((self.tea, 2))
        with self.assertRaises(PaymentDeclinedError):
            self.shop.checkout.place_order(cart, "declined")
        self.assertEqual(self.shop.inventory.available(self.tea.sku), 5)
        self.assertFalse(cart.is_empty())

    def test_out_of_stock(self) -> None:
        with self.assertRaises(OutOfStockError) as caught:
            self.shop.checkout.place_order(make_cart((self.tea, 6)), "tok")
        self.assertEqual(caught.exception.available, 5)

    def test_refund_before_shipping_restocks(self) -> None:
        order = self.shop.checkout.place_order(make_cart((self.tea, 2)), "tok")
        self.shop.checkout.refund(order.order_id, "changed my mind")
        self.assertEqual(self.shop.inventory.available(self.tea.sku), 5)
        self.assertEqual(self.shop.gateway.charges[order.charge_id].refundable, Money.zero())

    def test_refund_only_once(self) -> None:
        order = self.shop.checkout.place_order(make_cart((self.tea, 1)), "tok")
        self.shop.checkout.refund(order.order_id, "broken")
        with self.assertRaises(InvalidTransitionError):
            self.shop.checkout.refund(order.order_id, "again")

    def test_reservations_expire(self) -> None:
        self.shop.inventory.reserve(make_cart((self.tea, 5)), NOW)
        self.assertEqual(self.shop.inventory.available(self.tea.sku), 0)
        self.assertEqual(self.shop.inventory.release_expired(NOW + RESERVATION_LIFETIME), 1)
        self.assertEqual(self.shop.inventory.available(self.tea.sku), 5)

    def test_reports(self) -> None:
        first = self.shop.checkout.place_order(make_cart((self.tea, 2)), "tok")
        report = revenue(self.shop.repository, NOW, NOW + timedelta(days=1))
        self.assertEqual(report.orders, 1)
        self.assertEqual(report.average_order_value, first.total)
        self.assertEqual(best_sellers(self.shop.repository.orders_of("c1")), [(self.tea.sku, 2)])


class RetryTest(unittest.TestCase):
    def test_asks_again_after_a_timeout(self) -> None:
        class Flaky(FakeGateway):
            calls = 0

            def charge(self, amount, token, idempotency_key):
                Flaky.calls += 1
                if Flaky.calls < 3:
                    raise GatewayTimeoutError("no answer")
                return super().charge(amount, token, idempotency_key)

        pauses: list[float] = []
        gateway = RetryingGateway(Flaky(), attempts=3, pause_seconds=1.0, sleep=pauses.append)
        self.assertEqual(gateway.charge(Money(100), "tok", "key").amount, Money(100))
        self.assertEqual(pauses, [1.0, 2.0])


class SqliteTest(unittest.TestCase):
    def test_gives_back_what_was_saved(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            repository = SqliteRepository(str(Path(folder) / "shop.db"))
            product, customer = make_product(tags=frozenset({"tea"})), make_customer()
            repository.save_product(product)
            repository.save_customer(customer)
            self.assertEqual(repository.product(product.sku), product)
            self.assertEqual(repository.customer("c1"), customer)
            shop = Shop()
            order = shop.checkout.place_order(make_cart((shop.stock(product, 1), 1)), "tok")
            repository.save_order(order)
            self.assertEqual(repository.order(order.order_id), order)
            self.assertEqual(repository.orders_of("c1"), [order])
            repository.close()


if __name__ == "__main__":
    unittest.main()
