"""Products, customers and services for tests."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal

from shop.cart import Cart
from shop.checkout import CheckoutService
from shop.inventory import Inventory
from shop.models import Address, Customer, CustomerTier, Product, TaxClass
from shop.money import Money
from shop.notifications import Notifier, Outbox
from shop.payments import FakeGateway
from shop.pricing import BulkDiscount, LoyaltyDiscount, PercentageCoupon, PriceCalculator
from shop.repository import MemoryRepository

NOW = datetime(2025, 3, 14, 12, 0, 0)
BERLIN = Address("Ada Example", "Hauptstr. 1", "Berlin", "10115", "DE")


def make_product(sku: str = "TEA-0001", price: str = "10.00", **more) -> Product:
    values = {"name": f"Product {sku}", "weight_grams": 500, "tax_class": TaxClass.STANDARD, **more}
    return Product(sku=sku, price=Money.parse(price), **values)


def make_customer(customer_id: str = "c1", tier: CustomerTier = CustomerTier.BRONZE) -> Customer:
    return Customer(customer_id, "ada@example.org", "Ada Example", BERLIN, tier)


def make_cart(*lines: tuple[Product, int], customer_id: str = "c1") -> Cart:
    cart = Cart(customer_id)
    for product, quantity in lines:
        cart.add(product, quantity)
    return cart


def make_prices() -> PriceCalculator:
    coupon = PercentageCoupon("SPRING", Decimal("10"), date(2025, 3, 31), Money.parse("20.00"))
    return PriceCalculator([LoyaltyDiscount(), BulkDiscount(10, Decimal("8"))], {"SPRING": coupon})


class Shop:
    """A whole shop in memory, with its parts in reach."""

    def __init__(self) -> None:
        self.repository = MemoryRepository()
        self.inventory = Inventory()
        self.gateway = FakeGateway()
        self.outbox = Outbox()
        self.checkout = CheckoutService(
            self.repository, self.inventory, make_prices(), self.gateway, Notifier(self.outbox), lambda: NOW
        )
        self.repository.save_customer(make_customer())

    def stock(self, product: Product, quantity: int) -> Product:
        self.repository.save_product(product)
        self.inventory.receive(product.sku, quantity)
        return product
