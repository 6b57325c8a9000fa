"""The images of a data set in batches, shared among the processes that train one model."""

from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset

from ..datasets import LabelledImages


def is_shared(accelerator: Accelerator | None) -> bool:
    return accelerator is not None and accelerator.num_processes > 1


def batches(data: LabelledImages, batch_size: int, accelerator: Accelerator | None) -> DataLoader:
    """Batches of the data, or of this process's share: consecutive images, so that shares in order are the whole."""
    images = data
    if is_shared(accelerator):
        rank, processes = accelerator.process_index, accelerator.num_processes
        images = Subset(data, range(rank * len(data) // processes, (rank + 1) * len(data) // processes))
    return DataLoader(images, batch_size, collate_fn=data.collate)
