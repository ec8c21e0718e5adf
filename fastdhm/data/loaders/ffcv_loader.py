"""The fast loader: FFCV over a ``.beton``, without the ways in which FFCV 1.0.2 can hang, leak or mislead.

- A worker thread's exception is raised to the reader; in FFCV the reader waits for ever.
- Leaving an epoch early ends and joins its thread; in FFCV it stays, with its buffers.
- A batch is decoded into memory of its own; in FFCV it is a view of a ring buffer that the next batches overwrite.
- Order and crops come from (seed, epoch, sample index); FFCV's crops come from numba's unseeded generator.
- The file is checked before it is opened; FFCV follows any pointer in it. It is mapped at once, so it may be deleted or
  replaced afterwards. Its length is checked before each batch: reading what was cut off would end the process (SIGBUS).
- ``torch.get_num_threads()`` stays as it was, and no more threads are asked of numba than it has.
- Boxes that grow along a side are resized bilinearly, not copied pixel by pixel: see ``resample``.

Legend: N samples, B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdhm.data.beton.files import check
from fastdhm.data.loaders.ffcv_library import load
from fastdhm.data.loaders.loader import Batch, LoaderOptions
from fastdhm.data.loaders.resample import make_resample
from fastdhm.errors import UserError
from fastdhm.system import processors
from fastdhm.system.waiting import POLL_S, Wait, WaitedInVain

Job = tuple[np.ndarray, np.ndarray]  # int64 [B] and [B, 5], see FfcvLoader._jobs
BATCHES_AHEAD = 3
BOXES_AT_ONCE = 4096  # drawn for a few images only, numpy's calls cost ten times as much as the arithmetic

# numba's threading layers are not all safe to enter from two threads at once, as happens when validation starts while
# training batches are still being made; one pipeline alone keeps every processor busy anyway.
_PIPELINE_LOCK = threading.Lock()


class FfcvLoader:
    """See ``loader.Loader``. Workers are numba's threads, inside this process."""

    def __init__(self, beton: Path, options: LoaderOptions) -> None:
        manifest = check(beton)
        self._beton, self._bytes, self._file = beton, manifest.file_bytes, open(beton, "rb")  # noqa: SIM115
        self.num_samples = options.count(manifest.count)
        self._batches, self._options = options.num_batches(self.num_samples), options
        ffcv = load()
        self._threads = max(1, min(options.num_workers, processors.count(), ffcv.numba.config.NUMBA_NUM_THREADS))
        decoder = _crop_decoder()(options.size_HW, self._threads)
        torch_threads = torch.get_num_threads()
        try:
            self._ffcv = ffcv.Loader(
                str(beton),
                options.batch_size,
                num_workers=self._threads,
                os_cache=True,
                seed=0,  # unused, but None would draw from numpy's global generator
                drop_last=False,  # the batches are ours, see epoch()
                batches_ahead=1,  # for the ring buffer, which stays empty; finished batches wait in our own queue
                pipelines={"image": ffcv.PipelineSpec("image", decoder, [ffcv.ToTensor()]), "label": None},
            )
        finally:
            torch.set_num_threads(torch_threads)  # FFCV sets it to its own number of threads
        self._ffcv.memory_manager.schedule_epoch([]).__enter__()  # maps the file; else the first epoch would
        image_N = self._ffcv.reader.metadata["f0"]
        self._height_N, self._width_N = image_N["height"], image_N["width"]
        self._target_N = self._ffcv.reader.metadata["f1"]
        self._running: list[Any] = []  # epochs that are being read

    def __len__(self) -> int:
        return self._batches

    @contextmanager
    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Iterator[Batch]]:
        jobs = self._jobs(epoch, self._options.epoch_batches(len(self._target_N), epoch, start_batch))
        running = _epoch_class()(self._ffcv, self._threads, self._options.size_HW, self._while_whole(jobs), self._why)
        self._running.append(running)
        try:
            yield (self._batch(*answer) for answer in running.answers())
        finally:
            running.stop()
            self._running.remove(running)

    def _jobs(self, epoch: int, batches: list[np.ndarray]) -> Iterator[Job]:
        """Of each batch its views and ``int64 [B, 5]``, (sample index, crop box): what the decoder is given for them.

        FFCV hands them to the decoder as they are, so nothing about the epoch has to be compiled into it.
        """
        step = max(1, BOXES_AT_ONCE // self._options.batch_size)
        for start in range(0, len(batches), step):
            some = batches[start : start + step]
            view_N = np.concatenate(some)
            index_N = view_N % len(self._target_N)
            box_N4 = self._options.boxes(self._height_N[index_N], self._width_N[index_N], view_N, epoch)
            job_N5 = np.concatenate([index_N[:, None], box_N4], axis=1)
            yield from zip(some, np.split(job_N5, np.cumsum([len(view_B) for view_B in some])[:-1]), strict=True)

    def _while_whole(self, jobs: Iterator[Job]) -> Iterator[Job]:
        for job in jobs:
            size = os.fstat(self._file.fileno()).st_size
            if size < self._bytes:
                raise UserError(
                    f"{self._beton} was cut short while it was read, from {self._bytes:,} bytes to {size:,}: put it "
                    "back, or delete it to have it built anew"
                )
            yield job

    def _why(self) -> str:
        return f"FFCV is reading {self._beton}"

    def _batch(self, view_B: np.ndarray, image_BHWC: torch.Tensor) -> Batch:
        target_B = self._target_N[view_B % len(self._target_N)]
        return Batch(image_BHWC, torch.from_numpy(target_B), torch.from_numpy(view_B))

    def close(self) -> None:
        for running in self._running:
            running.stop()
        self._file.close()


@functools.cache
def _crop_decoder() -> type:
    """The class of the decoder, made on first use: its base is there only once FFCV is imported."""
    ffcv = load()

    class CropDecoder(ffcv.Operation):  # type: ignore[name-defined,misc] # FFCV has no types
        """Decodes, crops and resizes, as FFCV's own, but takes its boxes with the batch, and resizes as torch does."""

        def __init__(self, size_HW: tuple[int, int], workers: int) -> None:
            super().__init__()
            self.size_HW, self.workers = size_HW, workers

        def declare_state_and_memory(self, previous_state):
            shape, dtype = (*self.size_HW, 3), np.dtype("u1")
            return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), ffcv.AllocationQuery(shape, dtype)

        def generate_code(self):
            threads = ffcv.Compiler.get_iterator()  # numba's prange, or range for one thread
            workers, read = self.workers, self.memory_read
            is_jpg = self.metadata["mode"] == ffcv.JPG
            areas = self.metadata["height"].astype(np.int64) * self.metadata["width"]
            scratch_bytes = 3 * int(areas[is_jpg].max(initial=0))
            jit, jpg = ffcv.Compiler.compile, ffcv.JPG
            imdecode, resample = jit(ffcv.imdecode), make_resample(jit)

            def decode(job_B5, image_BHWC, metadata, storage_state):
                for worker in threads(workers):
                    # One place for all its decoded images: it stays in the processor's cache.
                    scratch = np.empty(scratch_bytes, np.uint8)
                    for b in range(worker, len(job_B5), workers):
                        field = metadata[job_B5[b, 0]]
                        height, width = np.uint32(field["height"]), np.uint32(field["width"])
                        data = read(field["data_ptr"], storage_state)
                        if field["mode"] == jpg:
                            pixels = scratch[: np.int64(3) * height * width].reshape(height, width, 3)
                            imdecode(data, pixels, height, width, height, width, 0, 0, 1, 1, False, False)
                        else:
                            pixels = data.reshape(height, width, 3)
                        resample(pixels, job_B5[b, 1], job_B5[b, 2], job_B5[b, 3], job_B5[b, 4], image_BHWC[b])
                return image_BHWC[: len(job_B5)]

            vars(decode)["is_parallel"] = True
            return decode

    return CropDecoder


@functools.cache
def _epoch_class() -> type:
    """The class of an epoch that is being read, made on first use like the decoder's."""
    ffcv = load()

    class Epoch(ffcv.EpochIterator):  # type: ignore[name-defined,misc] # FFCV has no types
        """FFCV's thread, with its own loop: each batch has its own memory, what goes wrong is reported, and it can be
        stopped."""

        def __init__(
            self, loader, threads: int, size_HW: tuple[int, int], batches: Iterator[Job], why: Callable[[], str]
        ) -> None:
            self._threads, self._size_HW, self._batches, self._answers = threads, size_HW, batches, _Answers(why)
            super().__init__(loader, [])  # starts the thread

        def run(self) -> None:
            try:
                ffcv.numba.set_num_threads(self._threads)  # numba's own, per thread; torch's stays alone
                for view_B, job_B5 in self._batches:
                    if not self._answers.put((view_B, self._make(job_B5))):
                        return
                self._answers.put(None)
            except BaseException as error:  # whatever it is belongs to the reader
                self._answers.put(error)

        def _make(self, job_B5: np.ndarray) -> torch.Tensor:
            # In page-locked memory the copy to the device can overlap with computing.
            shape = (len(job_B5), *self._size_HW, 3)
            image_BHWC = torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            buffers = self.memory_allocations["operation"]  # by operation; only the decoder has one
            buffers |= {name: image_BHWC.numpy()[None] for name, buffer in buffers.items() if buffer is not None}
            with _PIPELINE_LOCK:
                self.run_pipeline(0, job_B5, 0, None)
            return image_BHWC

        def answers(self) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
            return self._answers.read(self.is_alive)

        def stop(self) -> None:
            self._answers.stop()
            self._answers.join(self)
            self.close()

    return Epoch


class _Answers:
    """Batches on their way from the thread that makes them to its reader, a few ahead; neither waits in vain."""

    def __init__(self, why: Callable[[], str]) -> None:
        self._why, self._lost = why, False
        self._queue: queue.Queue = queue.Queue(BATCHES_AHEAD)
        self._stopped = threading.Event()

    def put(self, answer: object) -> bool:
        """Hand over a batch, None at the end, or an exception; False if nobody wants it any more."""
        while not self._stopped.is_set():
            try:
                self._queue.put(answer, timeout=POLL_S)
                return True
            except queue.Full:
                pass
        return False

    def read(self, is_alive: Callable[[], bool]) -> Iterator:
        """What is put, to its end; raises an exception that is put, or that the thread is alive no more."""
        wait = self._wait("data")
        while not self._stopped.is_set():
            try:
                answer = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                if not is_alive() and self._queue.empty():
                    raise UserError("FFCV's thread ended without finishing its epoch; try --loader torch") from None
                wait()
                continue
            wait = self._wait("data")
            if answer is None:
                return
            if isinstance(answer, BaseException):
                raise answer
            yield answer

    def stop(self) -> None:
        """No more is wanted: a put that waits for room ends at once."""
        self._stopped.set()
        while not self._queue.empty():
            self._queue.get_nowait()

    def join(self, thread: threading.Thread) -> None:
        """Wait for the end of the thread, unless it was waited for in vain before."""
        wait = self._wait("the end of FFCV's thread")
        while thread.is_alive() and not self._lost:
            thread.join(POLL_S)
            wait()

    def _wait(self, what: str) -> Callable[[], None]:
        wait = Wait(what, self._why)

        def on() -> None:
            try:
                wait.on()
            except WaitedInVain:
                self._lost = True
                raise

        return on
