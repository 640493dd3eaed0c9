"""Several devices of one user, and many users at once: multi-device-sync, multi-device-complex, parallel.

Law: whoever writes where and when, after a bounded number of rounds all devices and the server hold the same
rows, and each user only their own.
"""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from upwell.simulate.app import CLIENT_WINS, SERVER_WINS, App, merging
from upwell.simulate.row import Rows
from upwell.simulate.stage import SEED, Person, Stage
from upwell.simulate.table import Row
from upwell.simulate.wire import said

STEPS, STEPS_EACH = 200, 50
ROUNDS = 2
USERS_PARALLEL = 20
LOSS_SHARE = 0.3


def multi_device_sync(stage: Stage) -> None:
    """Phone and laptop by turns, a back end between them, and a tablet that comes late."""
    person = stage.person("many-ada")
    phone, laptop = stage.signed_in(person, "phone"), stage.signed_in(person, "laptop")
    with stage.group("the phone writes, the laptop reads"):
        users = _insert_users(phone, stage.rows, 20)
        phone.sync()
        laptop.sync()
        stage.check_all(person, phone, laptop)
    with stage.group("the laptop writes, the phone reads"):
        for key in users[:10]:
            laptop.update("users", key, name="Renamed on the laptop", updated_at=stage.rows.tick())
            laptop.insert("posts", stage.rows.post("From the laptop", key))
        laptop.sync()
        phone.sync()
        stage.checks.equal(
            "statuses of the laptop",
            {"applied as version 2": 10, "applied as version 1": 10},
            said(laptop.wire.statuses()),
        )
        stage.check_all(person, phone, laptop)
    with stage.group("both write different rows, the back end others"):
        for key in users[10:15]:
            phone.update("users", key, name="Renamed on the phone", updated_at=stage.rows.tick())
        for key in users[:5]:
            laptop.update("users", key, email="laptop@example.com")
        for key in users[15:]:
            stage.sql_update(person, "users", key, "name", "Renamed by the back end")
        for app in (phone, laptop, phone):
            app.sync()
        stage.checks.equal("conflicts", [0, 0], [app.book.conflict_count for app in (phone, laptop)])
        stage.check_all(person, phone, laptop)
    with stage.group("a tablet reads the whole log, page by page"):
        tablet = stage.install(person, "tablet", download_limit=7)
        stage.sign_in(tablet, person)
        tablet.download()
        stage.check_all(person, phone, laptop, tablet)
        tablet.delete("users", users[19])
        for app in (tablet, phone, laptop):
            app.sync()
        stage.check_all(person, phone, laptop, tablet)


def multi_device_complex(stage: Stage) -> None:
    """Three devices with three rules edit the same rows by chance, a back end too, exchanges at any time."""
    person = stage.person("complex-ada")
    merge = merging(_longer_name)
    devices = {"phone": SERVER_WINS, "laptop": CLIENT_WINS, "tablet": merge}
    apps = [stage.signed_in(person, name, rule=rule, limit=7) for name, rule in devices.items()]
    with stage.group("all have the same rows"):
        users = _insert_users(apps[0], stage.rows, 8)
        for key in users:
            apps[0].insert("posts", stage.rows.post("First", key))
        for app in apps:
            app.sync()
        stage.check_all(person, *apps)
    for first in range(0, STEPS, STEPS_EACH):
        with stage.group(f"steps by chance {first} to {first + STEPS_EACH - 1}, then {ROUNDS} rounds"):
            for number in range(first, first + STEPS_EACH):
                _step(stage, person, apps, number)
            for _ in range(ROUNDS):
                for app in apps:
                    app.sync()
            stage.check_all(person, *apps)
    with stage.group("there were conflicts on each device"):
        for app in apps:
            stage.checks.equal(f"conflicts on {app.path.stem}", True, app.book.conflict_count > 0)


def _longer_name(local: Row | None, server: Row | None) -> Row | None:
    """A rule of the app's own: the longer name or title stands, the server's if they are equally long."""
    if local is None or server is None:
        return server
    word = "name" if "name" in local else "title"
    return server | {word: max(server[word], local[word], key=len)}


def _step(stage: Stage, person: Person, apps: list[App], number: int) -> None:
    chance = stage.chance
    app = chance.choice(apps)
    actions: list[tuple[int, Callable[[], object]]] = [
        (6, lambda: _edit_user(stage, app, number)),
        (4, lambda: _edit_post(stage, app, number)),
        (3, lambda: _write_post(stage, app, number)),
        (2, lambda: _delete_post(stage, app)),
        (2, lambda: _edit_by_sql(stage, person)),
        (4, app.sync),
        (2, lambda: _upload_with_losses(stage, person, app, number)),
        (2, app.download),
    ]
    weights, choices = zip(*actions, strict=True)
    chance.choices(choices, weights)[0]()


def _upload_with_losses(stage: Stage, person: Person, app: App, number: int) -> None:
    """Answers get lost; before the next try the same rows are edited here and by the back end."""

    def meanwhile() -> None:
        _edit_user(stage, app, number + STEPS)
        _edit_by_sql(stage, person)

    app.wire.loses_answer = lambda: stage.chance.random() < LOSS_SHARE
    app.upload_through(meanwhile)
    app.wire.loses_answer = lambda: False


def _edit_user(stage: Stage, app: App, number: int) -> None:
    key = stage.chance.choice(_keys(app, "users"))
    app.update("users", key, name=f"{app.path.stem} {'!' * (number % 5)}", updated_at=stage.rows.tick())


def _edit_post(stage: Stage, app: App, number: int) -> None:
    if keys := _keys(app, "posts"):
        app.update("posts", stage.chance.choice(keys), title=f"{app.path.stem} {'?' * (number % 4)}")


def _write_post(stage: Stage, app: App, number: int) -> None:
    author = stage.chance.choice(_keys(app, "users"))
    app.insert("posts", stage.rows.post(f"Step {number}", author))


def _delete_post(stage: Stage, app: App) -> None:
    if keys := _keys(app, "posts"):
        app.delete("posts", stage.chance.choice(keys))


def _edit_by_sql(stage: Stage, person: Person) -> None:
    # A name that was never there: an UPDATE that changes nothing makes no version.
    name = f"The back end at {stage.rows.tick()}"
    keys = [key for table, key in person.account.rows if table == "users"]
    stage.sql_update(person, "users", stage.chance.choice(keys), "name", name)


def _keys(app: App, table: str) -> list[str]:
    return [key for name, key in app.book.rows if name == table]


def parallel(stage: Stage) -> None:
    """20 users at once, each with two devices, conflicts and lost answers, all with the same row ids."""
    with stage.group("20 accounts with two devices each"):
        people = [stage.person(f"parallel-{number:02}") for number in range(1, USERS_PARALLEL + 1)]
        fleets = [
            (stage.signed_in(person, "phone", limit=20), stage.signed_in(person, "laptop", limit=20))
            for person in people
        ]
        stage.checks.equal("devices", 2 * USERS_PARALLEL, sum(map(len, fleets)))
    with stage.group("all of them live at the same time"):
        with ThreadPoolExecutor(USERS_PARALLEL) as pool:
            lost = list(pool.map(_live, range(USERS_PARALLEL), fleets))
        stage.checks.equal("answers were lost", True, sum(lost) > 0)
    with stage.group("each has their own rows and nothing else"):
        for person, apps in zip(people, fleets, strict=True):
            stage.check_all(person, *apps)


def _live(number: int, apps: tuple[App, App]) -> int:
    """One user's life; returns how many answers were lost."""
    phone, laptop = apps
    # The same ids for everybody: rows of different users must never meet.
    rows, chance = Rows(random.Random(SEED)), random.Random(f"{SEED} parallel {number}")
    users = _insert_users(phone, rows, 15)
    for key in users:
        phone.insert("posts", rows.post(f"Of {number}", key))
    phone.wire.loses_answer = laptop.wire.loses_answer = lambda: chance.random() < LOSS_SHARE
    lost = phone.upload_through(lambda: phone.update("users", users[0], name=f"{number} edited after a loss"))
    laptop.hydrate(10)
    for key in users[:6]:
        phone.update("users", key, name=f"{number} on the phone {chance.randint(0, 99)}")
        laptop.update("users", key, name=f"{number} on the laptop {chance.randint(0, 99)}")
    for post in chance.sample(_keys(phone, "posts"), 4):
        phone.delete("posts", post)
    lost += phone.upload_through()
    laptop.wire.loses_answer = phone.wire.loses_answer = lambda: False
    laptop.sync()
    phone.sync()
    return lost


def _insert_users(app: App, rows: Rows, count: int) -> list[str]:
    users = [rows.user(f"User {number}") for number in range(1, count + 1)]
    for user in users:
        app.insert("users", user)
    return [user["id"] for user in users]
