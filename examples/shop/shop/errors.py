"""Errors that callers are expected to handle. Each has a stable code for the API."""


class ShopError(Exception):
    """Base of all errors of this package."""

    code = "shop_error"
    status = 400


class NotFoundError(ShopError):
    """A product, customer or order that does not exist."""

    code = "not_found"
    status = 404

    def __init__(self, kind: str, key: str) -> None:
        super().__init__(f"no {kind} {key!r}")
        self.kind = kind
        self.key = key


class CurrencyMismatchError(ShopError):
    """Two amounts of different currencies met."""

    code = "currency_mismatch"

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"cannot combine {left} and {right}")


class OutOfStockError(ShopError):
    """Fewer units are available than were asked for."""

    code = "out_of_stock"
    status = 409

    def __init__(self, sku: str, requested: int, available: int) -> None:
        super().__init__(f"{sku}: {requested} requested, {available} available")
        self.sku = sku
        self.requested = requested
        self.available = available


class InvalidTransitionError(ShopError):
    """An order cannot go from its state to the one asked for."""

    code = "invalid_transition"
    status = 409

    def __init__(self, order_id: str, current: str, wanted: str) -> None:
        super().__init__(f"order {order_id} is {current} and cannot become {wanted}")


class PaymentDeclinedError(ShopError):
    """The payment gateway refused a charge."""

    code = "payment_declined"
    status = 402

    def __init__(self, reason: str) -> None:
        super().__init__(f"payment declined: {reason}")
        self.reason = reason


class InvalidCouponError(ShopError):
    """A coupon is unknown, expired, or does not apply to this cart."""

    code = "invalid_coupon"
