"""Where products, customers and orders are kept: in memory for tests, in SQLite otherwise."""

from __future__ import annotations

import json
import sqlite3
from datetime import datetime
from typing import Iterator, Protocol

from shop.errors import NotFoundError
from shop.models import Address, Customer, CustomerTier, Product, TaxClass
from shop.money import Money
from shop.orders import Order, OrderLine, OrderStatus, StatusChange
from shop.pricing import Quote

SCHEMA = """
CREATE TABLE IF NOT EXISTS products (sku TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS customers (customer_id TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS orders (
    order_id TEXT PRIMARY KEY,
    customer_id TEXT NOT NULL,
    placed_at TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS orders_by_customer ON orders (customer_id, placed_at);
"""


class Repository(Protocol):
    """What the rest of the shop needs of storage."""

    def product(self, sku: str) -> Product: ...

    def products(self) -> Iterator[Product]: ...

    def save_product(self, product: Product) -> None: ...

    def customer(self, customer_id: str) -> Customer: ...

    def save_customer(self, customer: Customer) -> None: ...

    def order(self, order_id: str) -> Order: ...

    def orders_of(self, customer_id: str) -> list[Order]: ...

    def orders_between(self, start: datetime, end: datetime) -> list[Order]: ...

    def save_order(self, order: Order) -> None: ...


class MemoryRepository:
    """Dictionaries; nothing survives the process."""

    def __init__(self) -> None:
        self._products: dict[str, Product] = {}
        self._customers: dict[str, Customer] = {}
        self._orders: dict[str, Order] = {}

    def product(self, sku: str) -> Product:
        if sku not in self._products:
            raise NotFoundError("product", sku)
        return self._products[sku]

    def products(self) -> Iterator[Product]:
        return iter(sorted(self._products.values(), key=lambda product: product.sku))

    def save_product(self, product: Product) -> None:
        self._products[product.sku] = product

    def customer(self, customer_id: str) -> Customer:
        if customer_id not in self._customers:
            raise NotFoundError("customer", customer_id)
        return self._customers[customer_id]

    def save_customer(self, customer: Customer) -> None:
        self._customers[customer.customer_id] = customer

    def order(self, order_id: str) -> Order:
        if order_id not in self._orders:
            raise NotFoundError("order", order_id)
        return self._orders[order_id]

    def orders_of(self, customer_id: str) -> list[Order]:
        found = [order for order in self._orders.values() if order.customer_id == customer_id]
        return sorted(found, key=lambda order: order.placed_at)

    def orders_between(self, start: datetime, end: datetime) -> list[Order]:
        found = [order for order in self._orders.values() if start <= order.placed_at < end]
        return sorted(found, key=lambda order: order.placed_at)

    def save_order(self, order: Order) -> None:
        self._orders[order.order_id] = order


class SqliteRepository:
    """One JSON document per row; the columns beside it are what is searched by."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, check_same_thread=False)
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        self._connection.close()

    def product(self, sku: str) -> Product:
        return product_from_json(self._one("products", "sku", sku))

    def products(self) -> Iterator[Product]:
        for (body,) in self._connection.execute("SELECT body FROM products ORDER BY sku"):
            yield product_from_json(json.loads(body))

    def save_product(self, product: Product) -> None:
        self._upsert("products", {"sku": product.sku}, product_to_json(product))

    def customer(self, customer_id: str) -> Customer:
        return customer_from_json(self._one("customers", "customer_id", customer_id))

    def save_customer(self, customer: Customer) -> None:
        self._upsert("customers", {"customer_id": customer.customer_id}, customer_to_json(customer))

    def order(self, order_id: str) -> Order:
        return order_from_json(self._one("orders", "order_id", order_id))

    def orders_of(self, customer_id: str) -> list[Order]:
        return self._orders("customer_id = ?", (customer_id,))

    def orders_between(self, start: datetime, end: datetime) -> list[Order]:
        return self._orders("placed_at >= ? AND placed_at < ?", (start.isoformat(), end.isoformat()))

    def save_order(self, order: Order) -> None:
        keys = {
            "order_id": order.order_id,
            "customer_id": order.customer_id,
            "placed_at": order.placed_at.isoformat(),
        }
        self._upsert("orders", keys, order_to_json(order))

    def _one(self, table: str, column: str, key: str) -> dict:
        row = self._connection.execute(f"SELECT body FROM {table} WHERE {column} = ?", (key,)).fetchone()
        if row is None:
            raise NotFoundError(table.removesuffix("s"), key)
        return json.loads(row[0])

    def _orders(self, condition: str, values: tuple) -> list[Order]:
        query = f"SELECT body FROM orders WHERE {condition} ORDER BY placed_at"
        return [order_from_json(json.loads(body)) for (body,) in self._connection.execute(query, values)]

    def _upsert(self, table: str, keys: dict[str, str], body: dict) -> None:
        columns = ", ".join([*keys, "body"])
        marks = ", ".join("?" for _ in range(len(keys) + 1))
        with self._connection:
            self._connection.execute(
                f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})",
                (*keys.values(), json.dumps(body)),
            )


def money_to_json(money: Money) -> list:
    return [money.cents, money.currency]


def money_from_json(value: list) -> Money:
    return Money(value[0], value[1])


def address_to_json(address: Address) -> dict:
    return {
        "name": address.name,
        "street": address.street,
        "city": address.city,
        "postal_code": address.postal_code,
        "country": address.country,
    }


def address_from_json(value: dict) -> Address:
    return Address(**value)


def product_to_json(product: Product) -> dict:
    return {
        "sku": product.sku,
        "name": product.name,
        "price": money_to_json(product.price),
        "weight_grams": product.weight_grams,
        "tax_class": product.tax_class.value,
        "tags": sorted(product.tags),
    }


def product_from_json(value: dict) -> Product:
    return Product(
        sku=value["sku"],
        name=value["name"],
        price=money_from_json(value["price"]),
        weight_grams=value["weight_grams"],
        tax_class=TaxClass(value["tax_class"]),
        tags=frozenset(value["tags"]),
    )


def customer_to_json(customer: Customer) -> dict:
    return {
        "customer_id": customer.customer_id,
        "email": customer.email,
        "name": customer.name,
        "address": address_to_json(customer.address),
        "tier": customer.tier.value,
        "lifetime_spend": money_to_json(customer.lifetime_spend),
    }


def customer_from_json(value: dict) -> Customer:
    return Customer(
        customer_id=value["customer_id"],
        email=value["email"],
        name=value["name"],
        address=address_from_json(value["address"]),
        tier=CustomerTier(value["tier"]),
        lifetime_spend=money_from_json(value["lifetime_spend"]),
    )


def quote_to_json(quote: Quote) -> dict:
    return {
        "subtotal": money_to_json(quote.subtotal),
        "discounts": [[label, money_to_json(amount)] for label, amount in quote.discounts],
        "shipping": money_to_json(quote.shipping),
        "tax": money_to_json(quote.tax),
    }


def quote_from_json(value: dict) -> Quote:
    return Quote(
        subtotal=money_from_json(value["subtotal"]),
        discounts=tuple((label, money_from_json(amount)) for label, amount in value["discounts"]),
        shipping=money_from_json(value["shipping"]),
        tax=money_from_json(value["tax"]),
    )


def order_to_json(order: Order) -> dict:
    return {
        "order_id": order.order_id,
        "customer_id": order.customer_id,
        "lines": [[line.sku, line.name, money_to_json(line.unit_price), line.quantity] for line in order.lines],
        "quote": quote_to_json(order.quote),
        "address": address_to_json(order.address),
        "history": [[change.status.value, change.at.isoformat(), change.note] for change in order.history],
        "charge_id": order.charge_id,
    }


def order_from_json(value: dict) -> Order:
    return Order(
        order_id=value["order_id"],
        customer_id=value["customer_id"],
        lines=tuple(OrderLine(sku, name, money_from_json(price), count) for sku, name, price, count in value["lines"]),
        quote=quote_from_json(value["quote"]),
        address=address_from_json(value["address"]),
        history=[
            StatusChange(OrderStatus(status), datetime.fromisoformat(at), note)
            for status, at, note in value["history"]
        ],
        charge_id=value["charge_id"],
    )
