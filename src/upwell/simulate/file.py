"""files: keys and columns that are BLOBs, integers beyond 2^53, and reviews that go when their file goes.

Law: bytes and digits come back as they were written; a change of a parent never takes its children along, its
deletion does, on every device and on the server alike; a review that was never sent keeps its file.
"""

from upwell.simulate.app import App
from upwell.simulate.stage import Person, Stage
from upwell.simulate.table import Row
from upwell.simulate.wire import said

FILES = 12
REVIEWS_EACH = 3
SIZES_BYTES = (0, 1, 15, 16, 17, 24, 32, 4_096)
SIZES = (0, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), None)


def files(stage: Stage) -> None:
    """Write, change the parents, delete them, and meet an unsent review of a deleted file."""
    person = stage.person("files-ada")
    phone, laptop = stage.signed_in(person, "phone"), stage.signed_in(person, "laptop")
    with stage.group("files with reviews, up and down"):
        written = _write(stage, phone)
        phone.sync()
        changes = FILES * (1 + REVIEWS_EACH) + 1
        stage.checks.equal("statuses", {"applied as version 1": changes}, said(phone.wire.statuses()))
        laptop.sync()
        stage.check_all(person, phone, laptop)
    with stage.group("a changed file keeps its reviews"):
        _change_parents(stage, person, written, phone, laptop)
    with stage.group("a deleted file takes its reviews along"):
        _delete_parents(stage, person, written, phone, laptop)
    with stage.group("an unsent review keeps its file"):
        _review_the_deleted(stage, person, written[4], phone, laptop)
    with stage.group("a new device"):
        tablet = stage.signed_in(person, "tablet")
        tablet.hydrate(10)
        stage.check_all(person, phone, laptop, tablet)


def _write(stage: Stage, phone: App) -> list[Row]:
    rows = stage.rows
    written = [
        rows.file(
            f"File {number}", rows.data(SIZES_BYTES[number % len(SIZES_BYTES)]), SIZES[number % len(SIZES)]
        )
        for number in range(FILES)
    ]
    written[1]["data"] = None
    # Bytes that read as a UUID or as base64 when one guesses.
    written[2]["data"] = b"6f1c0000-0000-4000-8000-000000000001"
    written[3]["data"] = b"0123456789abcdef0123456789abcdef"
    for file in written:
        phone.insert("files", file)
        for number in range(REVIEWS_EACH):
            phone.insert("file_reviews", rows.review(f"Review {number} of {file['name']}", file["id"]))
    phone.insert("file_reviews", rows.review("Of no file at all", None))
    return written


def _change_parents(stage: Stage, person: Person, written: list[Row], phone: App, laptop: App) -> None:
    stage.sql_update(person, "files", written[0]["id"], "name", "Renamed by the back end")
    phone.update("files", written[1]["id"], data=stage.rows.data(64), size=2**53 + 3)
    phone.update("files", written[2]["id"], data=None, size=None)
    phone.sync()
    laptop.sync()
    count = (FILES * REVIEWS_EACH + 1,)
    stage.checks.equal("reviews on the laptop", [count], laptop.run("SELECT count(*) FROM file_reviews"))
    stage.check_all(person, phone, laptop)


def _delete_parents(stage: Stage, person: Person, written: list[Row], phone: App, laptop: App) -> None:
    first = len(phone.wire.uploads)
    phone.delete("files", written[5]["id"])
    phone.delete("files", written[6]["id"])
    stage.checks.equal("pending: files and reviews", 2 + 2 * REVIEWS_EACH, phone.pending_count())
    phone.sync()
    sent = phone.wire.uploads[first:]
    stage.checks.equal(
        "statuses",
        [{"applied as version 2": 2 + 2 * REVIEWS_EACH}],
        [said(upload.statuses) for upload in sent],
    )
    stage.sql_delete(person, "files", written[7]["id"])
    phone.sync()
    laptop.sync()
    stage.check_all(person, phone, laptop)


def _review_the_deleted(stage: Stage, person: Person, file: Row, phone: App, laptop: App) -> None:
    review = stage.rows.review("Written while the file was deleted elsewhere", file["id"])
    laptop.insert("file_reviews", review)
    phone.delete("files", file["id"])
    phone.sync()
    report = laptop.device.sync().upload
    place = ("files", file["id"])
    laptop.book.revive(person.account, place)
    stage.checks.equal("pending", 0, report.pending)
    stage.checks.equal("the file's version", 3, person.account.version(place))
    phone.sync()
    stage.check_all(person, phone, laptop)
