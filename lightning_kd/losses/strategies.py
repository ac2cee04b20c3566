"""The families of distillation, each with the loss component to start from."""

import inspect
from collections.abc import Callable, Collection
from enum import IntEnum

from lightning_kd.losses import (
    ATLoss,
    BYOTLoss,
    CRDLoss,
    DistillationLoss,
    FSPLoss,
    FTLoss,
    HintLoss,
    HybridLoss,
    KDLoss,
    NSTLoss,
    PKTLoss,
    RKDLoss,
    SPLoss,
    VIDLoss,
)


class DistillationStrategyType(IntEnum):
    """Which knowledge of the teacher the student is to take over.

    - ``RESPONSE_BASED``: the class probabilities (KD). Start here: it needs no layer names and works for any pair of
      classifiers, and as ``TokenKDLoss`` for language models. It says nothing about the layers in between.
      Temperature 2 to 8.
    - ``FEATURE_BASED``: the values of chosen layers (FitNets). For pairs of different architecture or task. Needs pairs
      of layers and a projector where their widths differ.
    - ``ATTENTION_BASED``: where the teacher looks. Attention maps (AT), for convolutional networks of one family. With
      no option but the weight, set-up chooses attention matrices (``AttentionMatrixLoss("uniform")``) for transformers
      that show theirs, of Hugging Face, timm and torchvision. Has no parameters of its own.
    - ``RELATION_BASED``: distances and angles between the samples of a batch (RKD). For embeddings and retrieval. The
      widths may differ; the cost grows with the square of the batch.
    - ``CONTRASTIVE_BASED``: which sample a representation belongs to (CRD). Strong, and needs no labels; needs many
      negatives, each sample's row in the data set, and tuning.
    - ``SIMILARITY_PRESERVING``: which samples excite the network alike (SP). As relations, on any layer; large batches
      help.
    - ``FLOW_BASED``: how features change from one layer to the next (FSP). For deep networks of the same layout. Needs
      two layers of each network for every flow.
    - ``PROBABILISTIC_TRANSFER``: the probability that two samples are neighbours (PKT). As similarities, without
      parameters, for widths that differ.
    - ``VARIATIONAL_INFORMATION``: as much information on the teacher's features as the student's can hold (VID). Learns
      a mean and a variance for each channel.
    - ``FACTOR_TRANSFER``: a compressed paraphrase of the teacher's features (FT). For pairs of different architecture.
      Trains the paraphraser first.
    - ``NEURON_SELECTIVITY``: the distribution of the teacher's activations over positions (NST). For feature maps.
    - ``SELF_DISTILLATION``: the student's own earlier or deeper predictions (BYOT; BornAgain and EMATeacher are
      callbacks). For when there is no teacher; improves calibration at the price of more training.
    - ``HYBRID``: several of the above with a weight each. The best results, and the most to tune.

    Example:
        >>> DistillationStrategyType.RESPONSE_BASED.create(temperature=2.0)
        KDLoss(temperature=2.0, standardize=False, hard=False, binary=False, head=None, teacher_head=None, weight=1.0)
    """

    RESPONSE_BASED = 0
    FEATURE_BASED = 1
    ATTENTION_BASED = 2
    RELATION_BASED = 3
    CONTRASTIVE_BASED = 4
    SIMILARITY_PRESERVING = 5
    FLOW_BASED = 6
    PROBABILISTIC_TRANSFER = 7
    VARIATIONAL_INFORMATION = 8
    FACTOR_TRANSFER = 9
    NEURON_SELECTIVITY = 10
    SELF_DISTILLATION = 11
    HYBRID = 12

    @property
    def component(self) -> type[DistillationLoss]:
        """The class that :meth:`create` makes, such as ``KDLoss``."""
        return _FIRST[self]

    def create(self, **options: object) -> DistillationLoss:
        """Make the family's first loss component.

        Args:
            **options: Arguments of that component by name; what is left out has defaults that train.

        Raises:
            TypeError: If an option is unknown; the message names what there is.
        """
        component: Callable[..., DistillationLoss] = self.component
        self._check_options(component, options)
        return component(**self.defaults(options), **options)

    def defaults(self, options: Collection[str]) -> dict[str, object]:
        """Return what :meth:`create` sets beside the options of these names."""
        chooses = self is DistillationStrategyType.ATTENTION_BASED and not set(options) - {"weight"}
        return {"transformers": True} if chooses else {}

    def _check_options(self, component: Callable[..., DistillationLoss], options: dict[str, object]) -> None:
        parameters = inspect.signature(component).parameters
        unknown = [name for name in options if name not in parameters]
        if unknown:
            raise TypeError(
                f"{self.name}.create: {component.__name__} has no option {unknown[0]!r}; "
                f"its options: {', '.join(parameters)}."
            )


_FIRST: dict[DistillationStrategyType, type[DistillationLoss]] = {
    DistillationStrategyType.RESPONSE_BASED: KDLoss,
    DistillationStrategyType.FEATURE_BASED: HintLoss,
    DistillationStrategyType.ATTENTION_BASED: ATLoss,
    DistillationStrategyType.RELATION_BASED: RKDLoss,
    DistillationStrategyType.CONTRASTIVE_BASED: CRDLoss,
    DistillationStrategyType.SIMILARITY_PRESERVING: SPLoss,
    DistillationStrategyType.FLOW_BASED: FSPLoss,
    DistillationStrategyType.PROBABILISTIC_TRANSFER: PKTLoss,
    DistillationStrategyType.VARIATIONAL_INFORMATION: VIDLoss,
    DistillationStrategyType.FACTOR_TRANSFER: FTLoss,
    DistillationStrategyType.NEURON_SELECTIVITY: NSTLoss,
    DistillationStrategyType.SELF_DISTILLATION: BYOTLoss,
    DistillationStrategyType.HYBRID: HybridLoss,
}
