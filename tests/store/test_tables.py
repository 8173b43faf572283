"""Keys, spending, users and conversations, each by itself."""

from __future__ import annotations

import hashlib

import pytest

from insula.errors import ConfigError, NotFoundError
from insula.security import passwords
from insula.store import conversations, keys, spending, users
from insula.store.database import Database
from insula.store.keys import Limits


@pytest.fixture
def store(tmp_path):
    with Database.open(tmp_path / "insula.db") as store:
        yield store


class TestKeys:
    def test_only_a_hash_is_kept(self, store):
        key, secret = keys.create(store, name="ci", now=100, scopes=("admin", "inference"))
        assert secret.startswith("sk-insula-")
        assert len(secret) == 10 + 43  # 256 bits in base64
        row = store.row("SELECT hash, hint FROM keys")
        assert row == (hashlib.sha256(secret.encode()).digest(), secret[-4:])
        assert keys.find(store, secret) == key
        assert (key.scopes, key.created, key.state(100)) == (("inference", "admin"), 100, "active")

    @pytest.mark.parametrize("secret", ["", "sk-insula-", "sk-other-x", "sk-insula-é", "x" * 9999])
    def test_what_is_no_key_is_none(self, store, secret):
        keys.create(store, name="ci", now=100)
        assert keys.find(store, secret) is None

    def test_states(self, store):
        key, _ = keys.create(store, name="a", now=100, expires=200)
        assert [key.state(now) for now in (199, 199.9, 200, 201)] == ["active"] * 2 + [
            "expired"
        ] * 2
        assert keys.revoke(store, "a", now=150).state(150) == "revoked"
        assert keys.revoke(store, "a", now=170).revoked == 150

    def test_by_name_or_id(self, store):
        one, _ = keys.create(store, name="ci", now=1)
        assert keys.get(store, "ci") == keys.get(store, one.id) == one
        _, new, _ = keys.rotate(store, "ci", grace=10, now=2)
        assert keys.get(store, "ci").id == new.id  # the one that stays
        two, _ = keys.create(store, name="ci", now=3)
        with pytest.raises(ConfigError, match="by its id"):
            keys.get(store, "ci")
        keys.revoke(store, two.id, now=4)
        assert keys.get(store, "ci").id == new.id
        with pytest.raises(NotFoundError, match="insula keys list"):
            keys.get(store, "other")

    def test_rotation_keeps_all_but_the_secret(self, store):
        limits = Limits(tokens_per_day=5)
        key, secret = keys.create(
            store, name="a", now=1, models=("m",), limits=limits, expires=1000
        )
        old, new, fresh = keys.rotate(store, "a", grace=100, now=50)
        assert (old.expires, old.replaced_by) == (150, new.id)
        assert (new.tenant, new.models, new.limits, new.expires) == (
            key.tenant,
            ("m",),
            limits,
            1000,
        )
        assert fresh != secret
        assert keys.find(store, fresh) == new
        with pytest.raises(ConfigError, match="replaced already"):
            keys.rotate(store, old.id, grace=100, now=60)
        assert keys.rotate(store, new.id, grace=9999, now=60)[0].expires == 1000

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"scopes": ("inference", "root")}, "found root; allowed: inference, models, admin"),
            ({"scopes": ()}, "allowed: inference"),
            ({"name": ""}, "printable"),
            ({"name": "a\nb"}, "printable"),
            ({"name": "a" * 101}, "100"),
            ({"expires": 99}, "expired already"),
        ],
    )
    def test_what_is_refused(self, store, settings, match):
        with pytest.raises(ConfigError, match=match):
            keys.create(store, **{"name": "ci", "now": 100, **settings})
        assert keys.list_keys(store) == []

    @pytest.mark.parametrize("value", [0, -1, 1 << 60])
    def test_limits_are_whole_numbers_from_one(self, value):
        with pytest.raises(ConfigError, match="tokens_total"):
            Limits(tokens_total=value)

    def test_access_once_set_up_stays_so(self, store):
        assert not keys.any_known(store)
        keys.create(store, name="a", now=1)
        keys.revoke(store, "a", now=2)
        assert keys.any_known(store)


class TestSpending:
    DAY = 86_400 * 20_000

    def test_by_day_and_in_all(self, store):
        for now, tokens in ((0, 1), (86_399, 2), (86_400, 4)):
            spending.charge(
                store, "t", now=self.DAY + now, prompt_tokens=tokens, completion_tokens=10 * tokens
            )
        spending.charge(store, "u", now=self.DAY, prompt_tokens=1000, completion_tokens=0)
        first = spending.spent(store, "t", now=self.DAY + 5)
        second = spending.spent(store, "t", now=self.DAY + 90_000)
        assert (first.today, first.total) == (33, 77)
        assert (second.today, second.total) == (44, 77)
        assert store.row("SELECT sum(requests) FROM spending WHERE tenant = 't'") == (3,)
        assert spending.spent(store, "nobody", now=self.DAY).total == 0

    def test_the_day_ends_at_midnight(self):
        assert spending.seconds_left_today(self.DAY) == 86_400
        assert spending.seconds_left_today(self.DAY + 86_399.5) == 1
        assert spending.day(self.DAY) == "2024-10-04"


class TestUsers:
    def test_a_user(self, store):
        user = users.add(store, name="ana", role="admin", password_hash="h", now=5)
        assert users.get(store, "ANA") == users.get(store, user.id) == user
        assert users.password_hash(store, "Ana") == "h"
        with pytest.raises(ConfigError, match="already"):
            users.add(store, name="Ana", role="user", password_hash="h", now=5)
        users.remove(store, "ana")
        with pytest.raises(NotFoundError):
            users.get(store, "ana")

    @pytest.mark.parametrize("name", ["", "a b", "a" * 65, "../x", "a\n"])
    def test_names(self, store, name):
        with pytest.raises(ConfigError, match="1 to 64"):
            users.add(store, name=name, role="user", password_hash="h", now=5)

    def test_roles(self, store):
        with pytest.raises(ConfigError, match="allowed: user, admin"):
            users.add(store, name="ana", role="root", password_hash="h", now=5)

    def test_a_session_ends_in_time(self, store):
        user = users.add(store, name="ana", role="user", password_hash="h", now=5)
        session, token = users.sign_in(store, "ana", old="h", fresh=None, now=100, seconds=50)
        assert session.user == user
        assert users.find_session(store, token, now=149) == session
        assert users.find_session(store, token, now=150) is None
        assert users.find_session(store, token + "x", now=100) is None
        users.sign_in(store, "ana", old="h", fresh="h2", now=200, seconds=50)
        assert store.row("SELECT count(*) FROM sessions") == (1,)  # the ended one is gone
        assert users.password_hash(store, "ana") == "h2"

    def test_nobody_signs_in_with_a_password_that_was_changed_meanwhile(self, store):
        users.add(store, name="ana", role="user", password_hash="h", now=5)
        with pytest.raises(NotFoundError):
            users.sign_in(store, "ana", old="other", fresh=None, now=1, seconds=50)


class TestPasswords:
    def test_argon2(self):
        stored = passwords.hash_password("correct horse")
        assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
        assert stored != passwords.hash_password("correct horse")
        assert passwords.verify(stored, "correct horse")
        assert not passwords.verify(stored, "correct hors")
        assert not passwords.is_outdated(stored)
        assert passwords.is_outdated(stored.replace("t=3", "t=2"))

    @pytest.mark.parametrize("stored", [None, "", "plain", "$argon2id$broken"])
    def test_what_is_no_hash_opens_nothing(self, stored):
        assert not passwords.verify(stored, "the password of nobody")

    def test_a_long_one_costs_nothing(self):
        assert not passwords.verify(passwords.hash_password("x" * 10), "x" * (1 << 20))


class TestConversations:
    def test_a_tree(self, store):
        talk = conversations.create(store, owner="a", now=1, title="t", settings={"model": "m"})

        def say(role, content, parent=None):
            return conversations.append(
                store,
                owner="a",
                conversation=talk.id,
                role=role,
                content=content,
                parent=parent,
                now=2,
            ).id

        question = say("user", "¿qué?")
        answers = [say("assistant", {"text": t}, question) for t in ("uno", "dos")]
        say("user", ["más"], answers[1])
        found = conversations.messages(store, owner="a", conversation=talk.id)
        assert [(m.content, m.parent) for m in found] == [
            ("¿qué?", None),
            ({"text": "uno"}, question),
            ({"text": "dos"}, question),
            (["más"], answers[1]),
        ]
        changed = conversations.change(store, owner="a", conversation=talk.id, now=9, title="u")
        assert (changed.title, changed.settings, changed.updated) == ("u", {"model": "m"}, 9)
        assert conversations.list_conversations(store, owner="a") == [changed]
        assert conversations.list_conversations(store, owner="a", before=9) == []
        conversations.remove(store, owner="a", conversation=talk.id)
        assert store.row("SELECT count(*) FROM messages") == (0,)

    def test_another_owners_is_as_absent_as_one_that_never_was(self, store):
        """FAULTS row 9, each function."""
        talk = conversations.create(store, owner="a", now=1)
        message = conversations.append(
            store, owner="a", conversation=talk.id, role="user", content="x", now=1
        )
        for name in ("get", "change", "remove", "messages", "append"):
            told = []
            for found in (talk.id, "con_nothing"):
                how = {"owner": "b", "conversation": found}
                how |= {"now": 5} if name in ("change", "append") else {}
                how |= {"role": "user", "content": "y"} if name == "append" else {}
                with pytest.raises(NotFoundError) as raised:
                    getattr(conversations, name)(store, **how)
                told.append(str(raised.value).replace(found, "…"))
            assert told[0] == told[1]
        assert conversations.list_conversations(store, owner="b") == []
        mine = conversations.create(store, owner="b", now=1)
        with pytest.raises(NotFoundError):
            conversations.append(
                store,
                owner="b",
                conversation=mine.id,
                role="user",
                content="y",
                parent=message.id,
                now=5,
            )
        assert len(conversations.messages(store, owner="a", conversation=talk.id)) == 1

    def test_what_is_removed_leaves_no_trace(self, store):
        """FAULTS row 31: a canary in no file before (encrypted) or after (erased)."""
        talk = conversations.create(store, owner="a", now=1, title="canary-title")
        for _ in range(50):
            conversations.append(
                store,
                owner="a",
                conversation=talk.id,
                role="user",
                content="canary-text " * 200,
                now=1,
            )
        folder = store.path.parent
        assert any(b"canary-text" in file.read_bytes() for file in folder.iterdir())
        conversations.remove(store, owner="a", conversation=talk.id)
        store.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        for file in folder.iterdir():
            assert b"canary" not in file.read_bytes(), file
