"""Scores and classes come from a single pass over the images."""

import pytest
import torch
from torch import nn

from qnet.evaluation import evaluate, evaluate_classes
from tests.trainers import CPU


class Given:
    """Batches of given logits."""

    name = "test"
    passes = 0

    def __init__(self, logits, labels):
        self.batches = list(zip(logits.split(2), labels.split(2), strict=True))

    def ordered(self):
        self.passes += 1
        return iter(self.batches)


LOGITS = torch.tensor([[3.0, 0, 1], [0, 2, 4], [5, 1, 0], [0, 0, 9], [1, 2, 3]])
LABELS = torch.tensor([0, 1, 0, 2, 1])


def test_scores_and_classes_in_one_pass():
    batches = Given(LOGITS, LABELS)
    scores, actual, predicted = evaluate_classes(nn.Identity().train(), batches, CPU)
    assert batches.passes == 1
    assert actual.equal(LABELS)
    assert predicted.tolist() == [0, 2, 0, 2, 2]
    assert scores["top1"] == pytest.approx(60)
    assert scores["top5"] == pytest.approx(100)
    loss = nn.functional.cross_entropy(LOGITS.double(), LABELS)
    assert scores["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert evaluate(nn.Identity(), batches, CPU) == scores


def test_progress_sees_each_batch():
    seen = []

    def watch(batches):
        for batch in batches:
            seen.append(batch)
            yield batch

    batches = Given(LOGITS, LABELS)
    evaluate_classes(nn.Identity(), batches, CPU, watch)
    assert seen == batches.batches


def test_of_equal_logits_the_first_class_counts_everywhere():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 3, (64, 10), generator=generator).float()
    labels = torch.randint(0, 10, (64,), generator=generator)
    scores, actual, predicted = evaluate_classes(nn.Identity(), Given(logits, labels), CPU)
    assert scores["top1"] == pytest.approx(100 * (actual == predicted).double().mean().item())
    own = logits.gather(1, labels[:, None])
    before = (logits > own) | ((logits == own) & (torch.arange(10) < labels[:, None]))
    assert scores["top5"] == pytest.approx(100 * (before.sum(1) < 5).double().mean().item())
