"""Figures for the people who run the shop."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from shop.money import Money
from shop.orders import Order, OrderStatus
from shop.repository import Repository

COUNTED = {OrderStatus.PAID, OrderStatus.SHIPPED, OrderStatus.DELIVERED}


@dataclass(frozen=True)
class RevenueReport:
    """What came in over some days."""

    orders: int
    revenue: Money
    discounts: Money
    tax: Money

    @property
    def average_order_value(self) -> Money:
        if self.orders == 0:
            return Money.zero()
        return Money(self.revenue.cents // self.orders, self.revenue.currency)


def revenue(repository: Repository, start: datetime, end: datetime) -> RevenueReport:
    """Totals of the orders that were placed in [start, end) and kept."""
    orders = [order for order in repository.orders_between(start, end) if order.status in COUNTED]
    return RevenueReport(
        orders=len(orders),
        revenue=Money.sum(order.total for order in orders),
        discounts=Money.sum(order.quote.discount_total for order in orders),
        tax=Money.sum(order.quote.tax for order in orders),
    )


def best_sellers(orders: list[Order], count: int = 10) -> list[tuple[str, int]]:
    """SKUs by units sold, most first; ties by SKU."""
    units: Counter[str] = Counter()
    for order in orders:
        if order.status in COUNTED:
            units.update(order.quantities)
    return sorted(units.items(), key=lambda item: (-item[1], item[0]))[:count]


def daily_revenue(repository: Repository, first: date, days: int) -> list[tuple[date, Money]]:
    """Revenue day by day, days without orders included."""
    rows = []
    for offset in range(days):
        day = first + timedelta(days=offset)
        start = datetime(day.year, day.month, day.day)
        report = revenue(repository, start, start + timedelta(days=1))
        rows.append((day, report.revenue))
    return rows
