"""Products that somebody looks at on the page: MongoDB is asked for each now and then, however many look."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from shopflow.app import store
from shopflow.models import MAX_ID_LENGTH
from shopflow.shop import price_history, stock

from .product import Columns, Picture, Product, columns, product
from .snapshot import Kept

__all__ = ["course", "shown"]

#: How old what is shown may be.
_SECONDS = 5.0
#: Sums over many purchases take long: MongoDB has a rest of so many times as long.
_REST = 9.0
_PATIENCE_SECONDS = 3.0
#: Products that are remembered; prices of a product, the last ones, that are shown; how far back sales are.
_PRODUCTS, _PRICES, _BACK = 32, 30, timedelta(days=365)

#: The one that was looked at last comes last.
_watched: dict[str, Kept[Picture | None]] = {}


async def shown(product_id: str) -> Product | None:
    """What the page shows of a product; None: of none."""
    if not product_id:
        return None
    if len(product_id) > MAX_ID_LENGTH:
        return product(product_id, None, [f"A product's id has at most {MAX_ID_LENGTH} characters."])
    kept = _kept(product_id)
    found = await kept.get(_PATIENCE_SECONDS)
    problems = []
    if kept.failure != "":
        problems = [f"The prices are not known now: {kept.failure or 'MongoDB does not answer'}."]
    elif found is None:
        problems = ["There is no product with this id."]
    return product(product_id, found, problems)


async def course(product_id: str) -> Columns:
    """The columns of the product's chart."""
    if not 0 < len(product_id) <= MAX_ID_LENGTH:
        return Columns()
    return columns(await _kept(product_id).get(_PATIENCE_SECONDS))


def _kept(product_id: str) -> Kept[Picture | None]:
    kept = _watched.pop(product_id, None)
    if kept is None:

        async def ask() -> Picture | None:
            return await _ask(product_id)

        kept = Kept(ask, _SECONDS, None, rest=_REST)
    _watched[product_id] = kept
    while len(_watched) > _PRODUCTS:
        del _watched[next(iter(_watched))]
    return kept


async def _ask(product_id: str) -> Picture | None:
    now = datetime.now(timezone.utc)
    prices = await price_history.read(store, product_id, most=_PRICES)
    if prices is None:
        return None
    course = await price_history.course(store, product_id, prices.prices, now, now - _BACK, by_the_minute=True)
    return Picture(prices, course, await _stock(product_id))


async def _stock(product_id: str) -> tuple[int, int] | None:
    documents = await store.documents("products", [product_id])
    left = await stock.left_of(store, list(documents.values()))
    return (left[product_id], documents[product_id]["stock"]) if left else None
