"""Settings, read once from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from decimal import Decimal
from typing import Mapping


@dataclass(frozen=True)
class Settings:
    """Everything that differs between two installations."""

    database: str = "shop.db"
    host: str = "127.0.0.1"
    port: int = 8080
    low_stock_threshold: int = 5
    bulk_quantity: int = 10
    bulk_percent: Decimal = Decimal("8")
    payment_attempts: int = 3

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read ``SHOP_*`` variables; what is not set keeps its default."""
        return cls(
            database=environment.get("SHOP_DATABASE", cls.database),
            host=environment.get("SHOP_HOST", cls.host),
            port=int(environment.get("SHOP_PORT", cls.port)),
            low_stock_threshold=int(environment.get("SHOP_LOW_STOCK", cls.low_stock_threshold)),
            bulk_quantity=int(environment.get("SHOP_BULK_QUANTITY", cls.bulk_quantity)),
            bulk_percent=Decimal(environment.get("SHOP_BULK_PERCENT", cls.bulk_percent)),
            payment_attempts=int(environment.get("SHOP_PAYMENT_ATTEMPTS", cls.payment_attempts)),
        )
