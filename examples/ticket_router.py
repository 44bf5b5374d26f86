"""A support desk that lets Ratchet route its tickets.

POST /tickets predicts the queue of a ticket. A ticket whose confidence is below CERTAIN goes to the queue `triage`, where people
decide. PUT /tickets/{id}/queue moves a ticket, and tells Ratchet: that is the feedback from which the model learns.

Tickets are kept in SQLite (TICKETS_DB), with the prediction's id, so that a correction may come days later.
"""

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from ratchet_client import AsyncClient, RequestRefused, Unavailable

CERTAIN = float(os.environ.get("CERTAIN", "0.8"))
DATABASE = os.environ.get("TICKETS_DB", "tickets.db")
TRIAGE = "triage"
TABLE = "CREATE TABLE IF NOT EXISTS tickets (id INTEGER PRIMARY KEY, text TEXT, queue TEXT, prediction_id TEXT)"


class NewTicket(BaseModel):
    """A ticket as a customer writes it."""

    text: str
    customer: str
    channel: str = "web"


class Ticket(BaseModel):
    """A ticket in its queue; `confidence` is that of the prediction, None if there was none."""

    id: int
    queue: str
    confidence: float | None = None


class Move(BaseModel):
    """An agent's decision."""

    queue: str
    agent: str


def database() -> sqlite3.Connection:
    """Open the tickets; a `with` on the connection is a transaction."""
    return sqlite3.connect(DATABASE)


@asynccontextmanager
async def life(app: FastAPI) -> AsyncIterator[None]:
    """Open the client and the table; one client serves all requests, so its connections are reused."""
    with closing(database()) as tickets, tickets:
        tickets.execute(TABLE)
    async with AsyncClient() as app.state.ratchet:
        yield


app = FastAPI(title="Ticket router", lifespan=life)


@app.post("/tickets", status_code=201)
async def create(ticket: NewTicket) -> Ticket:
    """Store a ticket in the predicted queue, or in triage: a ticket is never lost because Ratchet is away."""
    queue, confidence, prediction_id = TRIAGE, None, None
    try:
        prediction = await app.state.ratchet.predict(
            ticket.text, metadata={"channel": ticket.channel}, user=ticket.customer
        )
    except Unavailable:
        pass
    except RequestRefused as refused:
        raise HTTPException(422 if refused.status in (413, 422) else 502, refused.error) from refused
    else:
        confidence, prediction_id = prediction.confidence, prediction.prediction_id
        if confidence >= CERTAIN:
            queue = prediction.label
    with closing(database()) as tickets, tickets:
        row = tickets.execute(
            "INSERT INTO tickets (text, queue, prediction_id) VALUES (?, ?, ?)", (ticket.text, queue, prediction_id)
        )
    assert row.lastrowid is not None
    return Ticket(id=row.lastrowid, queue=queue, confidence=confidence)


@app.put("/tickets/{ticket_id}/queue")
async def move(ticket_id: int, decision: Move) -> Ticket:
    """Move a ticket, and send the agent's queue to Ratchet; the same queue as predicted confirms the prediction."""
    with closing(database()) as tickets:
        row = tickets.execute("SELECT prediction_id FROM tickets WHERE id = ?", (ticket_id,)).fetchone()
    if row is None:
        raise HTTPException(404, f"there is no ticket {ticket_id}")
    if row[0] is not None:
        try:
            await app.state.ratchet.correct(row[0], decision.queue, user=decision.agent)
        except RequestRefused as refused:
            raise HTTPException(422, str(refused)) from refused
        except Unavailable as away:
            raise HTTPException(503, "the correction could not be stored: try again", {"Retry-After": "5"}) from away
    with closing(database()) as tickets, tickets:
        tickets.execute("UPDATE tickets SET queue = ? WHERE id = ?", (decision.queue, ticket_id))
    return Ticket(id=ticket_id, queue=decision.queue)
