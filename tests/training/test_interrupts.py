import asyncio
import os
import signal

import pytest
from jupyter_client.manager import start_new_kernel

from tinker_utils.training.interrupts import Interrupts


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


async def test_one_interrupt_cancels_all_that_are_armed_and_the_last_to_leave_brings_back_what_was_in_force():
    before = signal.getsignal(signal.SIGINT)
    armed = [asyncio.Event() for _ in range(3)]
    left = [asyncio.Event() for _ in range(3)]
    cancelled = []

    async def work(number):
        with Interrupts() as interrupts:
            interrupts.rearm()
            armed[number].set()
            try:
                await left[number].wait()
            except asyncio.CancelledError:
                cancelled.append(number)
                await left[number].wait()

    tasks = []
    for number in range(3):
        tasks.append(asyncio.create_task(work(number)))
        await armed[number].wait()
    left[0].set()  # the first that was armed leaves first
    await tasks[0]
    os.kill(os.getpid(), signal.SIGINT)
    for number in (1, 2):
        left[number].set()
        await tasks[number]
    assert cancelled == [1, 2]
    assert signal.getsignal(signal.SIGINT) is before


async def test_a_handler_that_was_installed_since_is_left_in_force():
    before = signal.getsignal(signal.SIGINT)

    def another(*_):
        raise AssertionError

    async def work():
        with Interrupts() as interrupts:
            interrupts.rearm()
            signal.signal(signal.SIGINT, another)

    try:
        await asyncio.create_task(work())
        assert signal.getsignal(signal.SIGINT) is another
    finally:
        signal.signal(signal.SIGINT, before)


async def test_off_the_main_thread_it_changes_nothing():
    before = signal.getsignal(signal.SIGINT)

    async def work():
        with Interrupts() as interrupts:
            interrupts.rearm()
            return signal.getsignal(signal.SIGINT)

    assert await asyncio.to_thread(asyncio.run, work()) is before


def test_a_kernels_first_interrupt_cancels_the_cell_that_waits():
    """What `Interrupts` builds on: where it fails, ipykernel has changed."""
    manager, client = start_new_kernel()
    try:
        code = (
            "import asyncio\n"
            "print('begun', flush=True)\n"
            "try:\n    while True:\n        await asyncio.sleep(0.1)\n"
            "except asyncio.CancelledError:\n    print('cancelled', asyncio.current_task().cancelling())\n"
        )
        client.execute(code)
        told = ""
        while told.count("\n") < 2:
            message = client.get_iopub_msg(timeout=60)
            if message["msg_type"] == "stream":
                told += message["content"]["text"]
                if told == "begun\n":
                    manager.interrupt_kernel()
        assert told == "begun\ncancelled 1\n", (
            "ipykernel no longer cancels a cell's task at an interrupt: look at tinker_utils/training/interrupts.py"
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
