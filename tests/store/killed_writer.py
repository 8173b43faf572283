"""Changes a store for ever, and says on standard output what is done. Killed by test_kill.py."""

from __future__ import annotations

import sys
import time
from itertools import count
from pathlib import Path

from insula.store import conversations, keys
from insula.store.audit_chain import AuditChain
from insula.store.database import Database


def main(path: Path) -> None:
    with Database.open(path) as store:
        chain = AuditChain.open(store)
        print("open", flush=True)
        talk = conversations.create(store, owner="a", now=time.time()).id
        print("talk", talk, flush=True)
        parent = None
        for number in count():
            with store.transaction():
                key, _ = keys.create(store, name="k", now=time.time())
                chain.append(store, {"event": "created", "key": key.id})
            print("key", key.id, flush=True)
            with store.transaction():
                old, new, _ = keys.rotate(store, key.id, grace=60, now=time.time())
                chain.append(store, {"event": "rotated", "key": old.id})
            print("rotated", old.id, new.id, flush=True)
            with store.transaction():
                keys.revoke(store, old.id, now=time.time())
                head = chain.append(store, {"event": "revoked", "key": old.id})
            print("revoked", old.id, flush=True)
            chain.write_head(head)
            parent = conversations.append(
                store,
                owner="a",
                conversation=talk,
                role="user",
                content="x" * 3000,
                parent=parent,
                now=time.time(),
            ).id
            print("message", parent, flush=True)
            if number % 5 == 4:
                gone = conversations.create(store, owner="a", now=time.time()).id
                conversations.remove(store, owner="a", conversation=gone)
                print("removed", gone, flush=True)
            if number % 7 == 6:
                store.rows("PRAGMA wal_checkpoint(TRUNCATE)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
