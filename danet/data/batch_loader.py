"""A DataLoader that raises the errors of its dataset as they are, and tells when a worker process was killed."""

import contextlib
import functools
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from danet.utils.errors import UserError
from danet.utils.stop_signals import signal_handlers


class LoaderWorkerError(RuntimeError):
    """A worker process has ended without having loaded its batch, for example because the system has killed it."""


class BatchLoader(DataLoader):
    """A DataLoader whose iteration raises the UserError of the dataset, and LoaderWorkerError for a killed worker.

    Args:
        dataset: ``dataset[key]`` is a sample.
        collate: makes a batch of a list of samples.
        options: further arguments of ``DataLoader``. ``batch_sampler`` is required; it yields lists of keys.

    Example:
        >>> list(BatchLoader([1, 2, 3], sum, batch_sampler=[[0, 1], [2]]))
        [3, 3]
    """

    def __init__(self, dataset: Any, collate: Callable[[list], Any], **options: Any) -> None:
        collate_fn = functools.partial(_collate_or_pass, collate)
        super().__init__(_ErrorsAsValues(dataset), collate_fn=collate_fn, **options)

    def __iter__(self) -> Generator:  # type: ignore[override]
        """Yields the batches; closing the generator ends the worker processes."""
        batches = super().__iter__()
        # While workers run, torch's handler of SIGCHLD raises the error of a killed worker wherever the program is,
        # also in an optimizer step, which would leave half-updated weights. Without it, torch notices the killed worker
        # within five seconds, when the next batch is read.
        with signal_handlers(signal.SIG_DFL, ["SIGCHLD"]) if self.num_workers else contextlib.nullcontext():
            try:
                for batch in _until_worker_is_lost(batches):
                    if isinstance(batch, UserError):
                        raise batch
                    yield batch
            finally:
                del batches  # ends the workers before the signal handler is restored


class _ErrorsAsValues(Dataset):
    """Returns a UserError in place of the samples: DataLoader would turn a raised one into the text of a traceback."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: list) -> list | UserError:
        try:
            return [self.dataset[key] for key in keys]
        except UserError as error:
            return error


def _collate_or_pass(collate: Callable[[list], Any], samples: list | UserError) -> Any:
    return samples if isinstance(samples, UserError) else collate(samples)


def _until_worker_is_lost(batches: Iterator) -> Iterator:
    """Passes the batches on; raises LoaderWorkerError if a worker was killed."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            # torch has no exception class for this. An exception inside of a worker begins with "Caught ...".
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            problem = str(error).splitlines()[0]
            break
        yield batch
    raise LoaderWorkerError(problem)  # not "from error", whose traceback would keep the other workers alive
