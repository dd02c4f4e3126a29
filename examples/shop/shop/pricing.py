"""From a cart to a quote: discounts, shipping and taxes, in this order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Protocol

from shop.cart import Cart, CartLine
from shop.errors import InvalidCouponError
from shop.models import Address, Customer, CustomerTier, TaxClass
from shop.money import Money

TAX_RATES: dict[str, dict[TaxClass, Decimal]] = {
    "DE": {TaxClass.STANDARD: Decimal("19"), TaxClass.REDUCED: Decimal("7")},
    "FR": {TaxClass.STANDARD: Decimal("20"), TaxClass.REDUCED: Decimal("5.5")},
    "NL": {TaxClass.STANDARD: Decimal("21"), TaxClass.REDUCED: Decimal("9")},
}

TIER_DISCOUNTS = {
    CustomerTier.BRONZE: Decimal("0"),
    CustomerTier.SILVER: Decimal("3"),
    CustomerTier.GOLD: Decimal("5"),
}

FREE_SHIPPING_FROM = Money.parse("75.00")


class Discount(Protocol):
    """Something that makes a cart cheaper."""

    label: str

    def amount_off(self, cart: Cart, customer: Customer) -> Money: ...


@dataclass(frozen=True)
class PercentageCoupon:
    """A share off the subtotal, until a day."""

    code: str
    percent: Decimal
    expires: date
    minimum: Money = Money.zero()

    @property
    def label(self) -> str:
        return f"coupon {self.code}"

    def check(self, cart: Cart, today: date) -> None:
        """Raise where the coupon does not apply."""
        if today > self.expires:
            raise InvalidCouponError(f"{self.code} expired on {self.expires:%Y-%m-%d}")
        if cart.subtotal < self.minimum:
            raise InvalidCouponError(f"{self.code} needs a cart of at least {self.minimum}")

    def amount_off(self, cart: Cart, customer: Customer) -> Money:
        return cart.subtotal.percentage(self.percent)


@dataclass(frozen=True)
class BulkDiscount:
    """A share off every line of at least so many units."""

    quantity: int
    percent: Decimal
    label: str = "bulk discount"

    def amount_off(self, cart: Cart, customer: Customer) -> Money:
        eligible = (line for line in cart if line.quantity >= self.quantity)
        return Money.sum(line.subtotal.percentage(self.percent) for line in eligible)


@dataclass(frozen=True)
class LoyaltyDiscount:
    """What a customer's tier is worth."""

    label: str = "loyalty discount"

    def amount_off(self, cart: Cart, customer: Customer) -> Money:
        return cart.subtotal.percentage(TIER_DISCOUNTS[customer.tier])


@dataclass(frozen=True)
class Quote:
    """What a cart costs, and why."""

    subtotal: Money
    discounts: tuple[tuple[str, Money], ...]
    shipping: Money
    tax: Money

    @property
    def discount_total(self) -> Money:
        return Money.sum(amount for _, amount in self.discounts)

    @property
    def total(self) -> Money:
        return self.subtotal - self.discount_total + self.shipping + self.tax


class PriceCalculator:
    """Applies all discounts, none of which brings the subtotal below zero."""

    def __init__(self, discounts: list[Discount], coupons: dict[str, PercentageCoupon]) -> None:
        self._discounts = discounts
        self._coupons = coupons

    def quote(self, cart: Cart, customer: Customer, today: date) -> Quote:
        applied = self._apply_discounts(cart, customer, today)
        reduced = cart.subtotal - Money.sum(amount for _, amount in applied)
        return Quote(
            subtotal=cart.subtotal,
            discounts=tuple(applied),
            shipping=self.shipping_cost(cart, customer.address, reduced),
            tax=self.tax(cart, customer.address, reduced),
        )

    def find_coupon(self, code: str) -> PercentageCoupon:
        try:
            return self._coupons[code.upper()]
        except KeyError:
            raise InvalidCouponError(f"unknown coupon {code!r}") from None

    def _apply_discounts(self, cart: Cart, customer: Customer, today: date) -> list[tuple[str, Money]]:
        candidates = list(self._discounts)
        if cart.coupon_code is not None:
            coupon = self.find_coupon(cart.coupon_code)
            coupon.check(cart, today)
            candidates.append(coupon)
        remaining = cart.subtotal
        applied = []
        for discount in candidates:
            amount = min(discount.amount_off(cart, customer), remaining)
            if amount.is_positive():
                applied.append((discount.label, amount))
                remaining = remaining - amount
        return applied

    def shipping_cost(self, cart: Cart, address: Address, reduced: Money) -> Money:
        """Free from a certain value; else by started kilogram, and dearer abroad."""
        if cart.is_empty() or reduced >= FREE_SHIPPING_FROM:
            return Money.zero()
        kilograms = -(-cart.weight_grams // 1000)
        base = Money.parse("4.90") if address.country == "DE" else Money.parse("9.90")
        return base + Money.parse("1.20") * max(kilograms - 1, 0)

    def tax(self, cart: Cart, address: Address, reduced: Money) -> Money:
        """Tax of the destination, on the reduced price spread over the lines."""
        lines = list(cart)
        if not lines or not reduced.is_positive():
            return Money.zero()
        shares = reduced.allocate([line.subtotal.cents for line in lines])
        return Money.sum(share.percentage(self._rate(line, address)) for line, share in zip(lines, shares))

    def _rate(self, line: CartLine, address: Address) -> Decimal:
        rates = TAX_RATES.get(address.country, {})
        return rates.get(line.product.tax_class, Decimal("0"))
