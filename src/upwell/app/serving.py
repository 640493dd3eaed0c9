"""Serves what is opened until it is told to stop: the feeds, the doors, the loops.

Law: what is started first is stopped last, and nothing below knows who uses it.
"""

import asyncio
import logging
import os
import threading
from contextlib import closing

import uvloop

from upwell.app.doors import build_doors
from upwell.app.jobs import job_loops
from upwell.app.listening import listen
from upwell.app.opening import Parts, opened
from upwell.app.pools import QUERY_THREAD, started
from upwell.clock import SystemClock
from upwell.config import Config
from upwell.effects import Files, OsFiles, points_from_environment
from upwell.errors import StartRefused
from upwell.feeds.cursor import Growth, synced_by_turns
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.feeds.resume import Resumes


def run(config: Config, *, files: Files | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. `files` make the calls on the file system."""
    config.refuse_unsafe()
    try:
        points = points_from_environment(os.environ)
    except ValueError as error:
        raise StartRefused(str(error)) from error
    with (
        opened(config, clock=SystemClock(), files=files or OsFiles(), points=points) as parts,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(parts))
    if any(thread.name.startswith(QUERY_THREAD) for thread in threading.enumerate()):
        # All is closed; a query that can't be interrupted would only keep the process from ending.
        logging.shutdown()
        os._exit(0)
    return 0


async def _serve(parts: Parts) -> None:
    config, committer = parts.config, parts.committer
    loop = asyncio.get_running_loop()
    with (
        started(config) as pools,
        closing(Registry(committer, parts.engine.clock)) as registry,
        synced_by_turns(committer, loop),
    ):
        growth = Growth(committer.publication, loop)
        feed = LiveFeed(
            committer.changelog,
            growth,
            parts.engine.query,
            pools.query,
            Resumes(committer),
            lag_s_max=config.ws_lag_s_max,
        )
        doors = build_doors(parts, pools, growth, feed, registry, loop.time)
        runner, schedule = job_loops(parts, registry, pools.jobs, pools.looks)
        # If one of these fails unexpectedly, the group ends the server rather than go on without it.
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(doors.sessions.resume(), name="resume"),
                group.create_task(runner.run(), name="jobs"),
                group.create_task(schedule.run(), name="schedule"),
                group.create_task(feed.run(), name="live feed"),
                group.create_task(doors.live.run(), name="live sockets"),
                group.create_task(doors.streams.run(), name="watch streams"),
                group.create_task(
                    registry.run(pools.slow, interval_s=config.device_records_interval_s), name="devices"
                ),
            ]
            await listen(config, doors.gate, doors.live, doors.streams)
            for task in tasks:
                task.cancel()
        await feed.close()
