"""Exact amounts of money: whole minor units (cents) of one currency."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Iterable

from shop.errors import CurrencyMismatchError

MINOR_UNITS = {"EUR": 2, "USD": 2, "GBP": 2, "JPY": 0}


@dataclass(frozen=True, order=True)
class Money:
    """An amount in minor units. Amounts of different currencies never mix."""

    cents: int
    currency: str = "EUR"

    @classmethod
    def zero(cls, currency: str = "EUR") -> Money:
        return cls(0, currency)

    @classmethod
    def parse(cls, text: str, currency: str = "EUR") -> Money:
        """Read a decimal amount such as ``"19.90"``."""
        scale = 10 ** MINOR_UNITS[currency]
        amount = Decimal(text) * scale
        if amount != amount.to_integral_value():
            raise ValueError(f"{text!r} has more digits than {currency} knows")
        return cls(int(amount), currency)

    @classmethod
    def sum(cls, amounts: Iterable[Money], currency: str = "EUR") -> Money:
        total = cls.zero(currency)
        for amount in amounts:
            total = total + amount
        return total

    def __add__(self, other: Money) -> Money:
        self._check(other)
        return Money(self.cents + other.cents, self.currency)

    def __sub__(self, other: Money) -> Money:
        self._check(other)
        return Money(self.cents - other.cents, self.currency)

    def __mul__(self, factor: int) -> Money:
        return Money(self.cents * factor, self.currency)

    def __neg__(self) -> Money:
        return Money(-self.cents, self.currency)

    def percentage(self, percent: Decimal) -> Money:
        """The given share of this amount, rounded half to even."""
        share = (Decimal(self.cents) * percent / 100).quantize(Decimal(1), ROUND_HALF_EVEN)
        return Money(int(share), self.currency)

    def allocate(self, weights: list[int]) -> list[Money]:
        """Split by weights so that the parts add up to exactly this amount."""
        total = sum(weights)
        if total <= 0:
            raise ValueError("weights must add up to more than zero")
        parts = [self.cents * weight // total for weight in weights]
        remainder = self.cents - sum(parts)
        for index in range(remainder):
            parts[index % len(parts)] += 1
        return [Money(cents, self.currency) for cents in parts]

    def is_positive(self) -> bool:
        return self.cents > 0

    def _check(self, other: Money) -> None:
        if self.currency != other.currency:
            raise CurrencyMismatchError(self.currency, other.currency)

    def __str__(self) -> str:
        digits = MINOR_UNITS[self.currency]
        return f"{Decimal(self.cents) / 10 ** digits:.{digits}f} {self.currency}"
