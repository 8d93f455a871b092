import asyncio
import os
import signal

import pytest

from tinker_utils.interrupts import Interrupts


async def test_a_rearmed_interrupt_cancels_the_task_and_what_was_in_force_comes_back():
    before = signal.getsignal(signal.SIGINT)
    armed = asyncio.Event()

    async def work():
        with Interrupts() as interrupts:
            interrupts.rearm()
            interrupts.rearm()  # which changes nothing
            armed.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await armed.wait()
    assert signal.getsignal(signal.SIGINT) is not before
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert signal.getsignal(signal.SIGINT) is before


async def test_off_the_main_thread_it_changes_nothing():
    before = signal.getsignal(signal.SIGINT)

    async def work():
        with Interrupts() as interrupts:
            interrupts.rearm()
            return signal.getsignal(signal.SIGINT)

    assert await asyncio.to_thread(asyncio.run, work()) is before
