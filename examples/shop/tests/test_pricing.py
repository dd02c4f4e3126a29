"""Money, carts and quotes."""

import unittest
from datetime import date
from decimal import Decimal

from shop.errors import CurrencyMismatchError, InvalidCouponError
from shop.models import CustomerTier, TaxClass
from shop.money import Money
from tests.factories import make_cart, make_customer, make_prices, make_product

TODAY = date(2025, 3, 14)


class MoneyTest(unittest.TestCase):
    def test_parts_add_up(self) -> None:
        parts = Money(100).allocate([1, 1, 1])
        self.assertEqual([part.cents for part in parts], [34, 33, 33])

    def test_rounds_half_to_even(self) -> None:
        self.assertEqual(Money(50).percentage(Decimal("5")), Money(2))
        self.assertEqual(Money(70).percentage(Decimal("5")), Money(4))

    def test_currencies_do_not_mix(self) -> None:
        with self.assertRaises(CurrencyMismatchError):
            Money(1, "EUR") + Money(1, "USD")

    def test_reads_and_writes(self) -> None:
        self.assertEqual(str(Money.parse("19.90")), "19.90 EUR")
        self.assertEqual(str(Money.parse("500", "JPY")), "500 JPY")
        with self.assertRaises(ValueError):
            Money.parse("0.001")


class QuoteTest(unittest.TestCase):
    def setUp(self) -> None:
        self.prices = make_prices()

    def test_plain_cart(self) -> None:
        cart = make_cart((make_product(price="10.00"), 2))
        quote = self.prices.quote(cart, make_customer(), TODAY)
        self.assertEqual(quote.subtotal, Money.parse("20.00"))
        self.assertEqual(quote.shipping, Money.parse("4.90"))
        self.assertEqual(quote.tax, Money.parse("3.80"))
        self.assertEqual(quote.total, Money.parse("28.70"))

    def test_gold_customers_pay_less(self) -> None:
        cart = make_cart((make_product(price="100.00"), 1))
        quote = self.prices.quote(cart, make_customer(tier=CustomerTier.GOLD), TODAY)
        self.assertEqual(quote.discounts, (("loyalty discount", Money.parse("5.00")),))
        self.assertEqual(quote.shipping, Money.zero())

    def test_coupon(self) -> None:
        cart = make_cart((make_product(price="30.00"), 1))
        cart.coupon_code = "spring"
        quote = self.prices.quote(cart, make_customer(), TODAY)
        self.assertEqual(quote.discount_total, Money.parse("3.00"))

    def test_expired_coupon(self) -> None:
        cart = make_cart((make_product(price="30.00"), 1))
        cart.coupon_code = "SPRING"
        with self.assertRaises(InvalidCouponError):
            self.prices.quote(cart, make_customer(), date(2025, 4, 1))

    def test_bulk(self) -> None:
        cart = make_cart((make_product(price="1.00"), 10), (make_product("MUG-0001", "5.00"), 1))
        quote = self.prices.quote(cart, make_customer(), TODAY)
        self.assertEqual(quote.discount_total, Money.parse("0.80"))

    def test_reduced_tax(self) -> None:
        cart = make_cart((make_product(price="100.00", tax_class=TaxClass.REDUCED), 1))
        self.assertEqual(self.prices.quote(cart, make_customer(), TODAY).tax, Money.parse("7.00"))


if __name__ == "__main__":
    unittest.main()
