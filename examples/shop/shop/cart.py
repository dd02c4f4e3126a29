"""Carts: what a customer is about to buy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Iterator

from shop.errors import NotFoundError
from shop.models import Product
from shop.money import Money

MAX_QUANTITY = 99


@dataclass
class CartLine:
    """One product and how many of it."""

    product: Product
    quantity: int

    @property
    def subtotal(self) -> Money:
        return self.product.price * self.quantity

    @property
    def weight_grams(self) -> int:
        return self.product.weight_grams * self.quantity


@dataclass
class Cart:
    """Lines by SKU, in the order in which they were added."""

    customer_id: str
    lines: dict[str, CartLine] = field(default_factory=dict)
    coupon_code: str | None = None

    def __iter__(self) -> Iterator[CartLine]:
        return iter(self.lines.values())

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, product: Product, quantity: int = 1) -> CartLine:
        """Add units of a product; a product that is there already gets more of it."""
        if quantity < 1:
            raise ValueError("the quantity must be at least 1")
        line = self.lines.get(product.sku)
        if line is None:
            line = CartLine(product, 0)
            self.lines[product.sku] = line
        if line.quantity + quantity > MAX_QUANTITY:
            raise ValueError(f"at most {MAX_QUANTITY} units of {product.sku}")
        line.quantity += quantity
        return line

    def set_quantity(self, sku: str, quantity: int) -> None:
        """Change the units of a line; zero removes it."""
        if sku not in self.lines:
            raise NotFoundError("cart line", sku)
        if quantity == 0:
            del self.lines[sku]
            return
        if not 0 < quantity <= MAX_QUANTITY:
            raise ValueError(f"the quantity must be between 0 and {MAX_QUANTITY}")
        self.lines[sku].quantity = quantity

    def remove(self, sku: str) -> None:
        self.set_quantity(sku, 0)

    def clear(self) -> None:
        self.lines.clear()
        self.coupon_code = None

    @property
    def subtotal(self) -> Money:
        return Money.sum(line.subtotal for line in self)

    @property
    def weight_grams(self) -> int:
        return sum(line.weight_grams for line in self)

    @property
    def unit_count(self) -> int:
        return sum(line.quantity for line in self)

    def is_empty(self) -> bool:
        return not self.lines
