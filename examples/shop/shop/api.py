"""A JSON API over the standard library's HTTP server."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from datetime import date
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable

from shop.cart import Cart
from shop.checkout import CheckoutService
from shop.config import Settings
from shop.errors import NotFoundError, ShopError
from shop.inventory import Inventory
from shop.money import Money
from shop.notifications import Notifier, Outbox
from shop.orders import Order
from shop.payments import FakeGateway, RetryingGateway
from shop.pricing import BulkDiscount, LoyaltyDiscount, PercentageCoupon, PriceCalculator, Quote
from shop.repository import Repository, SqliteRepository

Handler = Callable[["Application", dict[str, str], dict[str, Any]], Any]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []


def route(method: str, pattern: str) -> Callable[[Handler], Handler]:
    """Register a handler; ``{name}`` in the pattern becomes a parameter."""
    expression = re.compile("^" + re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", pattern) + "$")

    def register(handler: Handler) -> Handler:
        ROUTES.append((method, expression, handler))
        return handler

    return register


class Application:
    """All services of the shop, and the carts that are open."""

    def __init__(self, repository: Repository, inventory: Inventory, checkout: CheckoutService) -> None:
        self.repository = repository
        self.inventory = inventory
        self.checkout = checkout
        self.carts: dict[str, Cart] = {}

    @classmethod
    def build(cls, settings: Settings) -> Application:
        repository = SqliteRepository(settings.database)
        inventory = Inventory(settings.low_stock_threshold)
        discounts = [LoyaltyDiscount(), BulkDiscount(settings.bulk_quantity, settings.bulk_percent)]
        coupons = {"WELCOME": PercentageCoupon("WELCOME", Decimal("10"), date(2030, 12, 31), Money.parse("20.00"))}
        gateway = RetryingGateway(FakeGateway(), settings.payment_attempts)
        prices = PriceCalculator(discounts, coupons)
        checkout = CheckoutService(repository, inventory, prices, gateway, Notifier(Outbox()))
        return cls(repository, inventory, checkout)

    def cart(self, customer_id: str) -> Cart:
        self.repository.customer(customer_id)
        return self.carts.setdefault(customer_id, Cart(customer_id))

    def dispatch(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON for one request."""
        for known_method, expression, handler in ROUTES:
            match = expression.match(path)
            if match and known_method == method:
                try:
                    return 200, handler(self, match.groupdict(), body)
                except ShopError as error:
                    return error.status, {"error": {"code": error.code, "message": str(error)}}
                except (KeyError, ValueError) as error:
                    return 400, {"error": {"code": "bad_request", "message": str(error)}}
        error = NotFoundError("route", f"{method} {path}")
        return error.status, {"error": {"code": error.code, "message": str(error)}}


def quote_view(quote: Quote) -> dict[str, Any]:
    return {
        "subtotal": str(quote.subtotal),
        "discounts": [{"label": label, "amount": str(amount)} for label, amount in quote.discounts],
        "shipping": str(quote.shipping),
        "tax": str(quote.tax),
        "total": str(quote.total),
    }


def order_view(order: Order) -> dict[str, Any]:
    return {
        "order_id": order.order_id,
        "status": order.status.value,
        "lines": [{"sku": line.sku, "quantity": line.quantity, "subtotal": str(line.subtotal)} for line in order.lines],
        "quote": quote_view(order.quote),
    }


@route("GET", "/products")
def list_products(app: Application, params: dict[str, str], body: dict[str, Any]) -> Any:
    return [
        {"sku": product.sku, "name": product.name, "price": str(product.price), "available": app.inventory.available(product.sku)}
        for product in app.repository.products()
    ]


@route("POST", "/carts/{customer_id}/lines")
def add_line(app: Application, params: dict[str, str], body: dict[str, Any]) -> Any:
    cart = app.cart(params["customer_id"])
    product = app.repository.product(body["sku"])
    line = cart.add(product, int(body.get("quantity", 1)))
    return {"sku": product.sku, "quantity": line.quantity, "subtotal": str(line.subtotal)}


@route("DELETE", "/carts/{customer_id}/lines/{sku}")
def remove_line(app: Application, params: dict[str, str], body: dict[str, Any]) -> Any:
    app.cart(params["customer_id"]).remove(params["sku"])
    return {}


@route("PUT", "/carts/{customer_id}/coupon")
def set_coupon(app: Application, params: dict[str, str], body: dict[str, Any]) -> Any:
    cart = app.cart(params["customer_id"])
    cart.coupon_code = body["code"]
    return quote_view(app.checkout.quote(cart))


@route("GET", "/carts/{customer_id}/quote")
def get_quote(app: Application, params: dict[str, str], body: dict[str, Any]) -> Any:
    return quote_view(app.checkout.quote(app.cart(params["customer_id"])))


@route("POST", "/carts/{customer_id}/checkout")
def checkout(app: Application, params: dict[str, str], body: dict[str, Any]) -> Any:
    order = app.checkout.place_order(app.cart(params["customer_id"]), body["payment_token"])
    return order_view(order)


@route("GET", "/orders/{order_id}")
def get_order(app: Application, params: dict[str, str], body: dict[str, Any]) -> Any:
    return order_view(app.repository.order(params["order_id"]))


@route("POST", "/orders/{order_id}/refund")
def refund_order(app: Application, params: dict[str, str], body: dict[str, Any]) -> Any:
    return order_view(app.checkout.refund(params["order_id"], body.get("reason", "")))


def make_handler(app: Application) -> type[BaseHTTPRequestHandler]:
    class JsonHandler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = json.loads(self.rfile.read(length)) if length else {}
            status, answer = app.dispatch(self.command, self.path, body)
            payload = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_PUT = do_DELETE = _serve

    return JsonHandler


def main() -> None:
    defaults = Settings.from_environment()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=defaults.port)
    parser.add_argument("--database", default=defaults.database)
    arguments = parser.parse_args()
    settings = replace(defaults, port=arguments.port, database=arguments.database)
    server = ThreadingHTTPServer((settings.host, settings.port), make_handler(Application.build(settings)))
    server.serve_forever()


if __name__ == "__main__":
    main()
