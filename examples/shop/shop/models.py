"""What the shop sells and to whom."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from shop.money import Money

SKU_PATTERN = re.compile(r"^[A-Z]{3}-[0-9]{4}$")
EMAIL_PATTERN = re.compile(r"^[^@\s]+@[^@\s]+\.[^@\s]+$")


class TaxClass(Enum):
    """How a product is taxed."""

    STANDARD = "standard"
    REDUCED = "reduced"
    EXEMPT = "exempt"


@dataclass(frozen=True)
class Product:
    """Something that can be bought."""

    sku: str
    name: str
    price: Money
    weight_grams: int
    tax_class: TaxClass = TaxClass.STANDARD
    tags: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        if not SKU_PATTERN.match(self.sku):
            raise ValueError(f"{self.sku!r} is not a SKU such as ABC-1234")
        if not self.price.is_positive():
            raise ValueError(f"{self.sku}: the price must be positive")
        if self.weight_grams < 0:
            raise ValueError(f"{self.sku}: the weight must not be negative")

    def has_tag(self, tag: str) -> bool:
        return tag.lower() in self.tags


@dataclass(frozen=True)
class Address:
    """Where an order is shipped to."""

    name: str
    street: str
    city: str
    postal_code: str
    country: str

    def one_line(self) -> str:
        return f"{self.name}, {self.street}, {self.postal_code} {self.city}, {self.country}"


class CustomerTier(Enum):
    """Loyalty tiers, by what a customer has spent."""

    BRONZE = "bronze"
    SILVER = "silver"
    GOLD = "gold"


@dataclass
class Customer:
    """Somebody with an account."""

    customer_id: str
    email: str
    name: str
    address: Address
    tier: CustomerTier = CustomerTier.BRONZE
    lifetime_spend: Money = field(default_factory=Money.zero)

    def __post_init__(self) -> None:
        if not EMAIL_PATTERN.match(self.email):
            raise ValueError(f"{self.email!r} is not an e-mail address")

    def record_purchase(self, total: Money) -> None:
        """Add to the lifetime spend and move up a tier when it is time."""
        self.lifetime_spend = self.lifetime_spend + total
        if self.lifetime_spend >= Money.parse("1000.00"):
            self.tier = CustomerTier.GOLD
        elif self.lifetime_spend >= Money.parse("250.00"):
            self.tier = CustomerTier.SILVER
