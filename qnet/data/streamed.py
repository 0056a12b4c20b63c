"""Batches of images that worker processes decode while the network trains.

Training images are randomly cropped to 8 to 100 % of the area and 3/4 to 4/3 of the aspect ratio,
resized, and mirrored (Szegedy et al., *Going deeper with convolutions*, 2015, section 6);
evaluation takes the centre after resizing the shorter side to 256/224 of the crop.

An image's crop follows from a seed drawn for it at the start of the epoch, so the batches are the
same for any number of workers, which affects only their speed.
"""

from __future__ import annotations

import errno
import time
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from qnet.data.batches import UNCHANGED, WHOLE, Augment, Batch, Normalise, Shard, require_full_batch
from qnet.data.dataset import DatasetInfo
from qnet.data.manifest import Listing
from qnet.data.pixels import eight_bits
from qnet.data.raw import Warn, to_stderr
from qnet.data.workers import FEWER_WORKERS, ignore_interrupt, make_room, why_lost
from qnet.errors import UserError, one_line
from qnet.machine_errors import is_machine_failure

Order = tuple[list[int], list[int] | None]  # indices of the images, and a seed for each
Bad = tuple[int, str]  # index of an image, and why it cannot be read
Decoded = tuple[Tensor, Tensor, list[Bad]]  # uint8 [B, S, S, 3], int64 [B]


class StreamedBatches:
    """Images of a listing, decoded as needed; used like `Batches`.

    An image that cannot be read is named in a warning. In training it is replaced by the next
    readable one; in evaluation it is left out.

    Args:
        listing: files and labels.
        info: gives size, mean and std.
        batch_size: images per batch.
        device: where the batches are needed.
        augment: for training images. `pad=0` takes the centre, as in evaluation; any other value
            means a random resized crop.
        shard: share of this process of every batch, or of all images to score.
        workers: processes that decode; 0: this one.
        bad_images: number of unreadable files allowed before it is an error.
        warn: called with one line for each of them.
        name: of the split, for messages.

    Attributes:
        waited: seconds that the last pass over the images spent waiting for them.

    Raises:
        UserError: during iteration, if there are more bad images than allowed, or a worker dies.
    """

    def __init__(
        self,
        listing: Listing,
        info: DatasetInfo,
        *,
        batch_size: int,
        device: torch.device | str,
        augment: Augment = UNCHANGED,
        shard: Shard = WHOLE,
        workers: int = 0,
        bad_images: int = 0,
        warn: Warn = to_stderr,
        name: str = "given",
    ) -> None:
        self.name = name
        self.batch_size = batch_size
        self.shard = shard
        self.waited = 0.0
        self._listing = listing
        self._device = torch.device(device)
        self._pin = self._device.type == "cuda"  # then the host need not wait for copies
        self._workers = workers
        self._allowed = bad_images
        self._warn = warn
        self._bad: set[int] = set()
        self._pictures = _Pictures(listing, info.size, augment, bad_images)
        self._normalise = Normalise(info, info.size, device)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self._listing) // self.batch_size

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """All images once in random order, augmented, without the last batch if it is short.

        All random numbers of the epoch are drawn by this call, as in `Batches`.

        Raises:
            UserError: if the images do not fill one batch; see also the class.
        """
        count, source = len(self._listing), generator.device
        require_full_batch(self.batch_size, count)
        order = torch.randperm(count, generator=generator, device=source).tolist()
        seeds = torch.randint(2**32, (count,), generator=generator, device=source).tolist()
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        parts = (self.shard.slice_of(start, start + self.batch_size) for start in starts)
        return self._stream([(order[part], seeds[part]) for part in parts])

    def ordered(self) -> Iterator[Batch]:
        """All images once, in order, not augmented; batches may be short."""
        indices = list(range(len(self._listing)))[self.shard.slice_of(0, len(self._listing))]
        starts = range(0, len(indices), self.batch_size)
        return self._stream([(indices[start : start + self.batch_size], None) for start in starts])

    def _stream(self, orders: list[Order]) -> Iterator[Batch]:
        self.waited = 0.0
        batches = _decoded(self._pictures, orders, self._workers, self._pin)
        for images, labels, bad in self._timed(batches):
            self._count(bad)
            if len(labels) > 0:
                images = images.to(self._device, non_blocking=self._pin)
                yield self._normalise(images), labels.to(self._device, non_blocking=self._pin)

    def _timed(self, batches: Iterator[Decoded]) -> Iterator[Decoded]:
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _count(self, bad: Iterable[Bad]) -> None:
        for index, reason in bad:
            if index in self._bad:
                continue
            self._bad.add(index)
            path = self._listing.path(index)
            if len(self._bad) > self._allowed:
                raise UserError(
                    f"data.bad_images is {self._allowed}, and this is number {len(self._bad)}: "
                    f"{path} cannot be read ({reason}); replace the files, or allow more"
                )
            self._warn(f"{path} cannot be read ({reason}): left out")


class _Pictures(Dataset[Decoded]):
    """Data set whose items are whole batches, decoded when a worker asks for them."""

    def __init__(self, listing: Listing, size: int, augment: Augment, attempts: int) -> None:
        self.listing = listing
        self.size = size
        # One more than allowed, as training stops then anyway; and each image only once.
        self.attempts = min(attempts + 1, len(listing))
        centre = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
        self.evaluation = v2.Compose(centre)
        crop = [v2.RandomResizedCrop(size)] if augment.pad else centre
        flip = [v2.RandomHorizontalFlip()] if augment.flip else []
        self.training = v2.Compose([*crop, *flip])

    def __getitem__(self, order: Order) -> Decoded:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd but harmless metadata
            return self._batch(*order)

    def _batch(self, indices: list[int], seeds: list[int] | None) -> Decoded:
        images, labels, bad = [], [], []
        for number, index in enumerate(indices):
            for following in range(self.attempts if seeds is not None else 1):
                chosen = (index + following) % len(self.listing)
                try:
                    image = self._decode(chosen, None if seeds is None else seeds[number])
                except Exception as error:  # PIL raises a dozen kinds for damaged files
                    if is_machine_failure(error):
                        raise
                    bad.append((chosen, one_line(error)))
                    continue
                images.append(image)
                labels.append(int(self.listing.labels[chosen]))
                break
        if not images:
            return torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), bad
        return torch.from_numpy(np.stack(images)), torch.tensor(labels), bad

    def _decode(self, index: int, seed: int | None) -> np.ndarray:
        """Decode one image, uint8 [S, S, 3]."""
        with Image.open(self.listing.path(index)) as image:
            picture = eight_bits(image).convert("RGB")
        if seed is None:
            return np.asarray(self.evaluation(picture))
        with torch.random.fork_rng(devices=[]):  # this process may be the one that trains
            # torch.manual_seed would seed all devices, in 0.35 ms, where decoding takes 2 ms.
            torch.default_generator.manual_seed(seed)
            return np.asarray(self.training(picture))


def _decoded(
    pictures: _Pictures, orders: list[Order], workers: int, pin: bool
) -> Iterator[Decoded]:
    """Decode the batches, in order."""
    if workers > 0:
        make_room()
    loader = DataLoader(
        pictures,
        sampler=orders,
        batch_size=None,  # an item is a batch
        num_workers=workers,
        worker_init_fn=ignore_interrupt,
        pin_memory=pin,
        generator=torch.Generator(),  # not the global one, which dropout uses
    )
    try:
        yield from loader
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and " in DataLoader worker process " in str(error):
            said = str(error).strip().splitlines()[-1]
            disk = any(f"[Errno {number}]" in said for number in (errno.EIO, errno.ESTALE))
            remedy = "fix the file or the disk" if disk else f"runtime.workers: {FEWER_WORKERS}"
            raise UserError(f"data.root: {said}; {remedy}") from error
        if (reason := why_lost(error)) is None:
            raise
        raise UserError(
            f"runtime.workers is {workers}, and one of them died ({reason}): {FEWER_WORKERS}"
        ) from error
