"""Several teachers as one."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.capture.batch import logits_of
from lightning_kd.capture.columns import takes
from lightning_kd.capture.outputs import kind_of_probabilities
from lightning_kd.teachers.averages import (
    PARTIAL,
    WEIGHTED,
    Average,
    combined,
    mean_of_logits,
    mean_of_probabilities,
)
from lightning_kd.teachers.ensemble_weights import answers_on, labelled, likeliest


@final
class Ensemble(nn.Module):
    r"""Answers with the mean of several models' answers; give it wherever a teacher is expected.

    The members have logits :math:`z_k`, probabilities :math:`p_k` and weights :math:`w_k` of sum 1. The softmax at
    temperature 1 of the logits that it returns is proportional to

    ==================  ===============================================================================================
    ``probabilities``   :math:`\sum_k w_k \, p_k(c)`
    ``logits``          :math:`\exp \sum_k w_k \, z_k(c)`; it returns the mean of the logits as they are
    ``geometric``       :math:`\prod_k p_k(c)^{w_k}`; the same distribution, as logarithms of probabilities
    ``max``             :math:`\max_k p_k(c)`
    ``median``          the median of :math:`p_k(c)`, of an even number the mean of the middle two
    ``vote``            :math:`\max(\sum_k w_k \, [c = \arg\max p_k], \; 10^{-4})`
    ``confidence``      :math:`\sum_k v_k \, p_k(c)` with :math:`v_k = (1 - e^{H_k} / \sum_j e^{H_j}) / (K - 1)` for
                        each sample, by the entropy :math:`H_k` of :math:`p_k`
    ==================  ===============================================================================================

    All but ``logits`` are logarithms of probabilities with sum 1. Of a single logit, (B, 1) or (B,), they are the log
    odds of a yes, for the two classes no and yes. The members' layers are named ``members.0.layer3`` and so on. The
    weights of ``confidence`` are those of CA-MKD with the entropy in the place of the cross entropy with the label,
    which a teacher does not see.

    Members of other classes say with ``classes`` which these are. A member gives no opinion on a class that it lacks:
    its weight there goes to the members that know the class, :math:`w_k(c) = w_k / \sum_{j: c \in C_j} w_j`, and the
    result is divided by its sum over all classes. That is exact if the members' classes do not overlap and each group
    of classes is as likely as the others. CE-X of Vongkulbhaisal et al. (CVPR 2019) is a finer way, and slower.

    Args:
        members: Models that take the same inputs and return logits of the same shape.
        average: What to average: the probabilities of classes that exclude one another, the logits as they are, as of
            several labels, or one of the other ways above.
        weights: Weight of each member, >= 0, divided by their sum; by default all alike. See also
            :meth:`weigh_by_accuracy` and :meth:`learn_weights`. Not for max, median and confidence.
        classes: For each member the classes that its outputs stand for, numbered in the whole list; by default every
            member has all. For probabilities, geometric, max and vote.
        class_axis: The axis of the classes; by default 1, but the last of tokens (B, N, C).

    Raises:
        ValueError: If there are no members, ``average`` is none of these, weights or classes do not fit the members, or
            the average has no use for them.

    Example:
        >>> sure, unsure = nn.Identity(), nn.Identity()
        >>> _ = sure.register_forward_hook(lambda *_: torch.tensor([[0.8, 0.2]]).log())
        >>> _ = unsure.register_forward_hook(lambda *_: torch.tensor([[0.4, 0.6]]).log())
        >>> Ensemble([sure, unsure])(torch.zeros(1, 2)).exp()
        tensor([[0.6000, 0.4000]])
        >>> Ensemble([sure, unsure], weights=[3.0, 1.0])(torch.zeros(1, 2)).exp()
        tensor([[0.7000, 0.3000]])
        >>> Ensemble([sure, unsure], "max")(torch.zeros(1, 2)).exp()
        tensor([[0.5714, 0.4286]])

    Reference:
        Zhang, Chen & Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022, arXiv:2201.00007.
        Vongkulbhaisal, Vinayavekhin & Visentini-Scarzanella, "Unifying Heterogeneous Classifiers With Distillation",
        CVPR 2019, arXiv:1904.06062.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        average: Average = "probabilities",
        *,
        weights: Sequence[float] | None = None,
        classes: Sequence[Sequence[int]] | None = None,
        class_axis: int | None = None,
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("Ensemble: expected at least one member, got none; pass a list of models.")
        if average not in get_args(Average):
            raise ValueError(f"Ensemble: expected average to be one of {list(get_args(Average))}, got {average!r}.")
        self.members = nn.ModuleList(members)
        self.average: Average = average
        self.class_axis = class_axis
        self.classes = None if classes is None else self._checked_classes(classes)
        """The classes of each member, ``None`` if every member has all."""
        self.weights: list[float] | None = None
        """Weight of each member, with sum 1; ``None`` if all are alike."""
        if weights is not None:
            self.set_weights(weights)
        self._looked = False

    def set_weights(self, weights: Sequence[float]) -> None:
        """Let members count more than others.

        Args:
            weights: Weight of each member, >= 0; they are divided by their sum.

        Raises:
            ValueError: If they do not fit the members, or the average has no use for them.
        """
        if self.average not in WEIGHTED:
            raise ValueError(
                f"Ensemble: average={self.average!r} has no use for weights; leave them out, or choose one of "
                f"{list(WEIGHTED)}."
            )
        given = [float(weight) for weight in weights]
        total = sum(given)
        if len(given) != len(self.members) or not all(0.0 <= one < math.inf for one in given) or total <= 0.0:
            raise ValueError(
                f"Ensemble: expected a finite weight >= 0 for each of the {len(self.members)} members, and not all 0, "
                f"got {given}."
            )
        kept = [one / total for one in given]
        if self.classes is not None:
            known = {c for weight, own in zip(kept, self.classes, strict=True) if weight > 0.0 for c in own}
            missing = sorted({c for own in self.classes for c in own} - known)
            if missing:
                raise ValueError(f"Ensemble: only members of weight 0 know the class(es) {missing}; give one a weight.")
        self.weights = kept

    def weigh_by_accuracy(self, batches: Iterable[tuple[object, Tensor]]) -> list[float]:
        r"""Weigh each member by its share of right answers: :math:`w_k = a_k / \sum_j a_j`.

        Args:
            batches: Pairs of an input and class ids (B, ...), of data that no member was trained on, such as the
                validation data. Ids below 0 are passed over.

        Returns:
            The accuracy of each member.

        Raises:
            ValueError: If there is no label, or no member is ever right.
        """
        right, count = torch.zeros(len(self.members), dtype=torch.float64), 0
        for logs, target in self._labelled(batches):
            right += (logs.argmax(1) == target).sum(1).cpu()
            count += len(target)
        if not count or not right.any():
            raise ValueError(f"Ensemble: of {count} labels no member has one right, so nothing tells them apart.")
        found: list[float] = (right / count).tolist()
        self.set_weights(found)
        return found

    def learn_weights(self, batches: Iterable[tuple[object, Tensor]], steps: int = 100) -> list[float]:
        r"""Learn the weights under which labelled data is likeliest, by expectation and maximisation.

        .. math::
            w_k \leftarrow \frac{1}{B} \sum_b \frac{w_k \, p_k(y_b)}{\sum_j w_j \, p_j(y_b)}

        Each step raises :math:`\sum_b \log \sum_k w_k \, p_k(y_b)`, whose only maximum it nears.

        Args:
            batches: Pairs of an input and class ids (B, ...), of data that no member was trained on. Ids below 0 are
                passed over.
            steps: Number of steps, >= 1.

        Returns:
            The weights.

        Raises:
            ValueError: If there is no label, or the average is not that of probabilities of the same classes.
        """
        if self.average != "probabilities" or self.classes is not None:
            raise ValueError(
                "Ensemble: weights are learned for average='probabilities' of members of the same classes."
            )
        found = [
            logs.gather(1, target.expand(len(logs), -1).unsqueeze(1)).squeeze(1)
            for logs, target in self._labelled(batches)
        ]
        if not found or not sum(one.shape[1] for one in found):
            raise ValueError("Ensemble: the batches hold no labels, from which weights could be learned.")
        learned = likeliest(torch.cat(found, 1), steps)
        self.set_weights(learned)
        return learned

    @property
    def called_alike(self) -> list[nn.Module]:
        """The networks that a call is handed on to, each with what it takes."""
        return list(self.members)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Call every member with these inputs and return the mean as logits, at least in float32.

        Raises:
            ValueError: If a member returns no logits, or their shapes differ; in the first call, if one returns
                probabilities in their place.
        """
        answers = [
            self._logits(i, member(*args, **({name: kwargs[name] for name in kwargs if name in takes(member)})))
            for i, member in enumerate(self.members)
        ]
        if not self._looked and not torch.compiler.is_compiling():
            self._looked = True
            self._check_scores(answers)
        if self.classes is not None:
            return self._of_other_classes(answers, self.classes)
        shapes = [tuple(answer.shape) for answer in answers]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"Ensemble: expected logits of one shape from all members, got {shapes}; "
                "use models of the same classes and resolution, or say which classes each has: classes=[[...], ...]."
            )
        if self.average == "logits":
            return mean_of_logits(answers, self.weights)
        axis = self._axis(answers[0])
        if axis is None:
            no, yes = ([F.logsigmoid(sign * answer) for answer in answers] for sign in (-1.0, 1.0))
            if self.average == "probabilities" and self.weights is None:
                return mean_of_probabilities(yes) - mean_of_probabilities(no)
            both = torch.stack([torch.stack(no), torch.stack(yes)], -1)
            joint = combined(self.average, both, self._shares(both), both.ndim - 2)
            return joint[..., 1] - joint[..., 0]
        logs = [F.log_softmax(answer, dim=axis) for answer in answers]
        if self.average == "probabilities" and self.weights is None:
            return mean_of_probabilities(logs)
        stacked = torch.stack(logs)
        return combined(self.average, stacked, self._shares(stacked), axis)

    def _shares(self, like: Tensor) -> Tensor:
        """Return the weight of each member, (K, 1)."""
        count = len(self.members)
        if self.weights is None:
            return like.new_full((count, 1), 1.0 / count)
        return like.new_tensor(self.weights).unsqueeze(1)

    def _of_other_classes(self, answers: Sequence[Tensor], classes: Sequence[Sequence[int]]) -> Tensor:
        """Return the logarithms of the probabilities of all classes, of members that know some of them."""
        whole = 1 + max(max(own) for own in classes)
        found = self._axis(answers[0])
        axis = 1 if found is None else found
        logs, known = [], torch.zeros(len(answers), whole, device=answers[0].device)
        for index, (answer, own) in enumerate(zip(answers, classes, strict=True)):
            if answer.ndim < 2 or answer.shape[axis] != len(own):
                raise ValueError(
                    f"Ensemble: classes names {len(own)} classes of member {index} "
                    f"({type(self.members[index]).__name__}), but its logits have the shape {tuple(answer.shape)}."
                )
            shape = list(answer.shape)
            shape[axis] = whole
            places = torch.tensor(own, device=answer.device)
            logs.append(answer.new_full(shape, -math.inf).index_copy(axis, places, F.log_softmax(answer, dim=axis)))
            known[index, places] = 1.0 if self.weights is None else self.weights[index]
        stacked = torch.stack(logs)
        return combined(self.average, stacked, (known / known.sum(0)).to(stacked.dtype), axis)

    def _checked_classes(self, classes: Sequence[Sequence[int]]) -> list[list[int]]:
        found = [[int(one) for one in own] for own in classes]
        if self.average not in PARTIAL:
            raise ValueError(
                f"Ensemble: average={self.average!r} cannot join members of other classes; choose one of "
                f"{list(PARTIAL)}."
            )
        if len(found) != len(self.members):
            raise ValueError(
                f"Ensemble: expected the classes of each of the {len(self.members)} members, got {len(found)} lists."
            )
        for index, own in enumerate(found):
            if len(own) < 2 or min(own) < 0 or len(set(own)) < len(own):
                raise ValueError(
                    f"Ensemble: expected two or more different classes of member {index}, from 0 on, got {own}."
                )
        known = {one for own in found for one in own}
        missing = sorted(set(range(max(known) + 1)) - known)
        if missing:
            raise ValueError(f"Ensemble: no member knows the class(es) {missing}; classes are numbered from 0 on.")
        return found

    def _labelled(self, batches: Iterable[tuple[object, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for answers, target in answers_on(self.members, self._logits, batches):
            axis = self._axis(answers[0])
            if axis is None or self.classes is not None:
                raise ValueError(
                    "Ensemble: members are told apart by labels where all have the same two or more classes."
                )
            yield labelled(answers, target, axis)

    def _axis(self, answer: Tensor) -> int | None:
        """Return the axis of the classes, ``None`` of a single logit."""
        axis = self.class_axis
        if axis is None:
            axis = 2 if answer.ndim == 3 else 1
        elif not -answer.ndim <= axis < answer.ndim:
            raise ValueError(
                f"Ensemble: class_axis={axis} is no axis of logits of shape {tuple(answer.shape)}; give 1 for "
                "(B, C, ...), or leave it out."
            )
        return None if answer.ndim < 2 or answer.shape[axis] == 1 else axis

    def _check_scores(self, answers: Sequence[Tensor]) -> None:
        for index, answer in enumerate(answers):
            axis = self._axis(answer)
            if axis is not None and kind_of_probabilities(answer, axis) == "probabilities":
                raise ValueError(
                    f"Ensemble: expected logits, but member {index} ({type(self.members[index]).__name__}) returns "
                    "probabilities: each row adds up to 1. Give a member that ends before its softmax, or with "
                    "log_softmax."
                )

    def extra_repr(self) -> str:
        """Show what is averaged."""
        return f"average={self.average!r}" + ("" if self.weights is None else f", weights={self.weights}")

    def _logits(self, index: int, output: object) -> Tensor:
        logits = logits_of(output)
        if logits is None:
            raise ValueError(
                f"Ensemble: member {index} ({type(self.members[index]).__name__}) returned a {type(output).__name__} "
                "without logits; wrap it in a module that returns a tensor."
            )
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
