"""Image processing: health checks, one retry, the priority lane, and run_now.

    python examples/intermediate.py

Two workers own an image processor each. They read pictures (PPM files), shrink them, and write PNG files; all
with the standard library. On the way:

- a picture crashes the processor: the worker is replaced, and the picture is processed again by another;
- a file is no picture at all: that is the task's own error, the processor is fine, and the caller gets the
  error as it is;
- an urgent thumbnail overtakes all pictures that wait;
- a preview is wanted here and now: run_now makes it in this thread, with a processor kept for that.
"""

from __future__ import annotations

import logging
import struct
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from tasker_executor import Observer, ResourceExecutor, TaskEvent, WorkerEvent, current_task

logger = logging.getLogger("studio")

# -- pictures


@dataclass(frozen=True)
class Image:
    """Rows of pixels of three bytes each: red, green, blue."""

    width: int
    height: int
    rows: list[bytes]


def paint(width: int, height: int, side: int) -> Image:
    """A picture to work with: a pattern of squares over a gradient."""
    rows: list[bytes] = []
    for y in range(height):
        row = bytearray()
        for x in range(width):
            square = 255 if (x // side + y // side) % 2 else 64
            row += bytes((square, 255 * x // width, 255 * y // height))
        rows.append(bytes(row))
    return Image(width, height, rows)


def write_ppm(path: Path, image: Image) -> None:
    path.write_bytes(b"P6\n%d %d\n255\n" % (image.width, image.height) + b"".join(image.rows))


def read_ppm(path: Path) -> Image:
    magic, size, depth, pixels = path.read_bytes().split(b"\n", 3)
    if magic != b"P6" or depth != b"255":
        raise ProcessorError("bad_format", f"{path.name} is no PPM file")
    width, height = map(int, size.split())
    return Image(width, height, [pixels[start : start + 3 * width] for start in range(0, 3 * width * height, 3 * width)])


def write_png(path: Path, image: Image) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 0)  # 8 bits per channel, RGB
    pixels = zlib.compress(b"".join(b"\0" + row for row in image.rows), 9)  # each row begins with its filter: 0 for none
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def read_png(path: Path) -> Image:
    """Read what write_png wrote; the checksums prove that nothing is missing."""
    data, position = path.read_bytes(), 8
    chunks: dict[bytes, bytes] = {}
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunks[kind] = content = data[position + 8 : position + 8 + length]
        if struct.unpack_from(">I", data, position + 8 + length) != (zlib.crc32(kind + content),):
            raise ValueError(f"{path.name}: chunk {kind!r} is damaged")
        position += length + 12
    width, height = struct.unpack_from(">II", chunks[b"IHDR"])
    pixels, stride = zlib.decompress(chunks[b"IDAT"]), 3 * width + 1
    return Image(width, height, [pixels[start + 1 : start + stride] for start in range(0, stride * height, stride)])


# -- the resource, and the task


class ProcessorError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ImageProcessor:
    """Resizes pictures. It stands for one that is costly to start and can do one thing at a time, like those of a GPU."""

    def resize(self, image: Image, width: int, height: int) -> Image:
        """Take the nearest pixel for each new one. Quick."""
        columns = [3 * (x * image.width // width) for x in range(width)]
        rows: list[bytes] = []
        for y in range(height):
            source = image.rows[y * image.height // height]
            rows.append(b"".join(source[column : column + 3] for column in columns))
        return Image(width, height, rows)

    def thumbnail(self, image: Image, factor: int) -> Image:
        """Take the average of `factor` by `factor` pixels for each new one. Smooth."""
        rows: list[bytes] = []
        for top in range(0, image.height - factor + 1, factor):
            row = bytearray()
            for left in range(0, image.width - factor + 1, factor):
                block = b"".join(line[3 * left : 3 * (left + factor)] for line in image.rows[top : top + factor])
                row += bytes(sum(block[channel::3]) // factor**2 for channel in range(3))
            rows.append(bytes(row))
        return Image(len(rows[0]) // 3, len(rows), rows)

    def answers(self) -> bool:
        return True  # A real one would ask its process, or its GPU.

    def close(self) -> None:
        pass  # A real one would free its memory here.


def is_healthy(error: BaseException) -> bool:
    """Return whether a worker may keep its processor after this error."""
    return not (isinstance(error, ProcessorError) and error.code == "processor_crash")


def shrink(processor: ImageProcessor, source: Path, folder: Path) -> Path:
    image = read_ppm(source)
    if source.stem == "picture-3" and current_task().attempt == 1:
        raise ProcessorError("processor_crash", f"the processor crashed at {source.name}")
    target = folder / f"{source.stem}.png"
    write_png(target, processor.thumbnail(image, 4))
    logger.info("%s is done", source.stem)
    return target


def preview(processor: ImageProcessor, source: Path) -> Image:
    return processor.resize(read_ppm(source), 48, 12)


class Log(Observer):
    """Logs what happens to workers. Its methods run on their threads, so the log shows which worker it is."""

    @override
    def task_retried(self, event: TaskEvent) -> None:
        logger.info("%s; it goes back to the front of its lane", event.error)

    @override
    def worker_started(self, event: WorkerEvent) -> None:
        logger.info("started")

    @override
    def worker_ended(self, event: WorkerEvent) -> None:
        logger.info("ended: %s", event.reason)


def main() -> None:
    # The library's own warnings, such as that of a replaced worker, go to this log, too.
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="  %(threadName)-10s  %(levelname)-7s  %(message)s")
    with tempfile.TemporaryDirectory(prefix="tasker-images-") as name:
        folder = Path(name)
        pictures = [folder / f"picture-{number}.ppm" for number in range(8)]
        for number, path in enumerate(pictures):
            write_ppm(path, paint(192, 128, 8 + 2 * number))
        urgent, broken = folder / "urgent.ppm", folder / "broken.ppm"
        write_ppm(urgent, paint(96, 64, 16))
        broken.write_bytes(b"This\nis\nnot a\npicture.\n")
        process(pictures, urgent, broken)


def process(pictures: list[Path], urgent: Path, broken: Path) -> None:
    folder = urgent.parent
    with ResourceExecutor(
        2,
        on_create=ImageProcessor,
        on_destroy=ImageProcessor.close,
        check_health=is_healthy,
        check_resource=ImageProcessor.answers,  # The retry may meet the other processor, which might have crashed, too.
        max_retries=1,
        resource_pool_size=1,
        observers=[Log()],
        name="studio",
    ) as pool:
        print(f"{len(pictures)} pictures, a file that is none, and an urgent picture:")
        results = [pool.submit(shrink, path, folder) for path in pictures]
        no_picture = pool.submit(shrink, broken, folder)
        urgent_result = pool.submit_priority(shrink, urgent, folder)
        waiting = pool.stats().queued_tasks

        small = pool.run_now(preview, pictures[-1])
        logger.info("the preview of %s is done, without queueing", pictures[-1].stem)

        files = [urgent_result.result(), *(result.result() for result in results)]
        error = no_picture.exception()

    print(f"\nThe preview, made by run_now, {small.width} x {small.height}:")
    for row in small.rows:
        print("  " + "".join("@" if red > 128 else "." for red in row[::3]))
    print(f"The urgent picture was submitted last, while {waiting} tasks waited.")
    print(f"The file that is no picture: {type(error).__name__}: {error}")
    print("PNG files written:")
    for path in files:
        image = read_png(path)
        print(f"  {path.name:14}  {image.width} x {image.height}  {path.stat().st_size:5} bytes")
        if path.stem != "urgent" and image != ImageProcessor().thumbnail(read_ppm(path.with_suffix(".ppm")), 4):
            sys.exit(f"FAILED: {path.name} is not the thumbnail that it should be")

    stats = pool.stats()
    print(f"Workers replaced: {stats.workers_replaced}; tasks retried: {stats.retried}; ", end="")
    print(f"processors made: {stats.resources_created}, given up: {stats.resources_destroyed}")
    if (stats.workers_replaced, stats.retried, stats.completed, stats.failed) != (1, 1, len(pictures) + 1, 1):
        sys.exit(f"FAILED: one replacement, one retry and one failure were expected: {stats}")
    if not isinstance(error, ProcessorError) or error.code != "bad_format":
        sys.exit(f"FAILED: the file that is no picture gave {error!r}")
    # Two workers, two resources of the reserve and one successor made them. None may be left.
    if stats.resources_created != stats.resources_destroyed:
        sys.exit(f"FAILED: processors are left over: {stats}")


if __name__ == "__main__":
    main()
