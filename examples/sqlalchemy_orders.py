"""Tasks on ORM sessions of SQLAlchemy: each is one transaction, and what it returns may be read anywhere.

    pip install tasker-executor[sqlalchemy]
    python examples/sqlalchemy_orders.py                                          # SQLite, in orders.db
    python examples/sqlalchemy_orders.py "postgresql+psycopg://postgres@127.0.0.1/test"

It makes the tables howto_product and howto_order, and drops them in the end.
"""

from __future__ import annotations

import sys

from sqlalchemy import CheckConstraint, ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tasker_executor import ResourceExecutor
from tasker_executor.resources.sqlalchemy import Sessions


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "howto_product"
    __table_args__ = (CheckConstraint("stock >= 0", name="enough"),)
    name: Mapped[str] = mapped_column(primary_key=True)
    stock: Mapped[int]


class Order(Base):
    __tablename__ = "howto_order"
    id: Mapped[int] = mapped_column(primary_key=True)
    product: Mapped[str] = mapped_column(ForeignKey("howto_product.name"))
    count: Mapped[int]


def make_pool(url: str) -> ResourceExecutor[Session]:
    factory = Sessions(url, transaction=True, retry_conflicts=True)
    return ResourceExecutor(4, resource=factory, run_within=30, max_age=3600, name="orders")


def order(session: Session, name: str, count: int) -> Product:
    """The session is flushed and committed when this returns, and rolled back when it raises."""
    product = session.get_one(Product, name, with_for_update=True)
    product.stock -= count
    session.add(Order(product=name, count=count))
    return product


def list_orders(session: Session) -> list[tuple[str, int]]:
    return [(order.product, order.count) for order in session.scalars(select(Order).order_by(Order.id))]


def main(url: str) -> None:
    with make_pool(url) as pool:
        pool.submit(lambda session: Base.metadata.drop_all(session.connection())).result()
        pool.submit(lambda session: Base.metadata.create_all(session.connection())).result()
        pool.submit(lambda session: session.add_all([Product(name="tea", stock=10), Product(name="cups", stock=6)])).result()

        tea = pool.submit(order, "tea", 4).result()  # an object of the session, which has left it
        print(f"{tea.name}: {tea.stock} left")
        print("99 cups:", type(pool.submit(order, "cups", 99).exception()).__name__)
        print("no such product:", type(pool.submit(order, "milk", 1).exception()).__name__)
        print("orders:", pool.submit(list_orders).result())
        pool.submit(lambda session: Base.metadata.drop_all(session.connection())).result()
    stats = pool.stats()
    print(f"{stats.completed} completed, {stats.failed} failed, {stats.retried} run again")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sqlite:///orders.db")
