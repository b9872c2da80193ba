"""The parts in order: mask, encode, decode, compare. No method is known here by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.models.hierarchical import Encoder
from geomim.models.joint import Joint
from geomim.models.patches import Latents
from geomim.pretrain.context import Context, View
from geomim.pretrain.losses import reduce
from geomim.pretrain.masking.split import Masking, TokenSplit
from geomim.pretrain.scaling import local
from geomim.pretrain.step import Said, Step, join
from geomim.pretrain.targets import Answer, FrozenTeacher, Pixels, Target
from geomim.randomness import Draws

Mix = float | tuple[float, float]
"""The weight of a term; a pair goes evenly from the first to the second over training."""
Where = Literal["predict", "visible", "all", "image"]


class Term(nn.Module):
    """One thing that is asked: a decoder answers, a target knows, a loss compares.

    Args:
        decoder: Called as `decoder(latents, positions)`, with the latents of all further memories behind.
        target: Called as `target(view, positions)`.
        loss: Called as `loss(prediction, answer, weight)`, with the `Step` behind where `step` names terms; then its
            `survey(step)` is called before, see `MaskedImageModel.survey`.
        where: Ask at the predicted, the visible or all patches, or once about the whole image.
        view: The view that is asked about.
        memory: What the decoder reads, one or several: a view means its visible tokens, `date:all` all of them,
            `image:predict` its predicted ones. The visible tokens of `view` where None.
        weight: Share in the sum of terms.
        name: What its loss is logged as.
        with_class: Decoder and target put an answer for the class token in front.
        step: Terms about whole images, maybe this one: the loss reads what they said of all images of the optimiser
            step.
        starts: Share of training from which on it is asked, in [0, 1); before, it costs next to nothing.

    Attributes:
        silent: Whether it is not asked yet.
        late: Whether it starts after others; its matrices do not decay before.

    Raises:
        ConfigError: It would never be asked.
    """

    silent = False

    def __init__(
        self,
        decoder: nn.Module,
        target: Target,
        loss: Callable[..., Tensor],
        where: Where = "predict",
        view: str = "image",
        memory: str | tuple[str, ...] | None = None,
        weight: Mix = 1.0,
        name: str = "reconstruction",
        with_class: bool = False,
        step: tuple[str, ...] = (),
        starts: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= starts < 1:
            raise ConfigError(f"starts: expected a share of training in [0, 1); given {starts}")
        self.decoder, self.target, self.loss, self.step, self.starts = decoder, target, loss, step, starts
        self.late = starts > 0  # stays where a resumed run lets it go on: parameter groups hang on it
        self.where, self.view, self.weight, self.name, self.with_class = where, view, weight, name, with_class
        self.memory: tuple[str, ...] = (memory,) if isinstance(memory, str) else memory or (view,)

    def share(self, progress: Tensor) -> float | Tensor:
        """What its loss counts in the sum at a progress, 0-dim."""
        first, last = self.weight if isinstance(self.weight, tuple) else (self.weight, self.weight)
        return first if first == last else first + (last - first) * progress

    def positions(self, view: View, split: TokenSplit | None) -> tuple[Tensor, Tensor | None]:
        """Where to ask `(B, P)`, and what each place weighs `(B, P)`; None where all weigh 1."""
        batch, device = len(view.image), view.image.device
        if self.where == "image":
            return torch.zeros(batch, 1, dtype=torch.int64, device=device), None
        if self.where == "all":
            everywhere = torch.arange(view.length, device=device).expand(batch, -1)
            return everywhere, None if view.patch_valid is None else view.patch_valid.float()
        assert split is not None, f"the masking says nothing of view '{self.view}'"
        if self.where == "predict":
            return split.predict, split.predict_weight
        return split.visible, None if split.visible_valid is None else split.visible_valid.float()

    def weigh(self, context: Context, splits: dict[str, TokenSplit]) -> Tensor:
        """What each image weighs `(B,)`: the share of its places that count, 0 where too little of it is valid."""
        positions, weight = self.positions(context.views[self.view], splits.get(self.view))
        share = torch.ones(len(positions), device=positions.device) if weight is None else weight.mean(1)
        # what is said of a whole image is said by all that is read
        read = [name.partition(":")[0] for name in self.memory if self.where == "image"]
        usable = context.image_weight(*dict.fromkeys((self.view, *read)))
        share = share if usable is None else share * usable
        knows: Callable[[View], Tensor] | None = getattr(self.target, "knows", None)
        return share if knows is None else share * knows(context.views[self.view])


class Plan(NamedTuple):
    """What is asked of a batch, known before anything is predicted.

    Attributes:
        splits: Seen and asked-for patches of each view.
        weights: `(T, B)`, what each image weighs in each term; nothing in one that has not started.
    """

    splits: dict[str, TokenSplit]
    weights: Tensor


class Asked(NamedTuple):
    """A term, and what was said to it.

    Attributes:
        place: Where the term stands among all.
        term: The term.
        positions: `(B, P)` where it asked.
        prediction: `(B, P, T)`.
        answer: What is right.
        weight: `(B, P)` what each place weighs; None where all weigh 1.
    """

    place: int
    term: Term
    positions: Tensor
    prediction: Tensor
    answer: Answer
    weight: Tensor | None

    def loss(self, step: Step | None = None) -> Tensor:
        """The loss of each image, `(B,)`; `step` for those that read it."""
        given = (step.of(self.place),) if self.term.step and step else ()
        values: Tensor = self.term.loss(self.prediction, self.answer, self.weight, *given)
        return values


@dataclass
class Output:
    """What one batch gave.

    Attributes:
        loss: 0-dim, the weighted sum of the terms.
        terms: 0-dim detached loss of each term that was asked, by name.
        images: `(B,)` detached, the loss of each image in all terms, whatever it weighs; NaN where that is nothing.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    images: Tensor


class MaskedImageModel(nn.Module):
    """Masked image modeling: an encoder, a masking, and the terms that ask for what is hidden.

    Args:
        encoder: The encoder being trained.
        masking: Splits the patches of each view.
        terms: What is asked.
        mask_token: The encoder sees all patches, with a learned token for those that are not visible.
        needs: Views that a batch must bring besides the image: `second`, another crop of it, or `date`, another date.
        gap: See `Context`; with the encoder's size it gives `crop_size`, the side in pixels of images to train on.
        teacher: What is read besides the encoder, and must stay the same in a resumed run; None where nothing is.
        joint: The space of images and sentences that terms speak in; None where they know no sentences.

    Attributes:
        shared: Terms of which a loss reads what they said of all images of an optimiser step.

    Raises:
        ConfigError: The encoder cannot run on the visible patches alone, and `mask_token` is not set; or two terms
            share a name.
    """

    def __init__(
        self,
        encoder: Encoder,
        masking: Masking,
        terms: Sequence[Term],
        mask_token: bool = False,
        needs: frozenset[str] = frozenset(),
        gap: int = 0,
        teacher: FrozenTeacher | None = None,
        joint: Joint | None = None,
    ) -> None:
        super().__init__()
        if not (encoder.visible_only or mask_token):
            raise ConfigError(
                "this encoder is hierarchical and sees all patches: expected a recipe that hides them behind mask "
                "tokens, such as simmim, or --encoder.family vit"
            )
        if len({term.name for term in terms}) < len(terms):
            raise ConfigError(f"expected a name of its own for every term; given {[term.name for term in terms]}")
        self.encoder, self.masking, self.teacher, self.joint = encoder, masking, teacher, joint
        self.cached = teacher if teacher and teacher.cache else None  # whose features come with the batch
        self.needs, self.gap, self.crop_size = needs, gap, encoder.image_size + gap * encoder.grid[0]
        self.terms = nn.ModuleList(terms)
        self.shared = frozenset(name for term in terms for name in term.step)
        self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.embed_width).normal_(std=0.02)) if mask_token else None
        self.read_levels = any(getattr(term.decoder, "reads_levels", False) for term in terms)

    def context(self, batch: dict[str, Any], draws: Draws) -> Context:
        """What the parts may ask of a batch.

        Args:
            batch: See `Context`.
            draws: Addressed random numbers of the batch.
        """
        return Context(batch, self.encoder, draws, self.gap)

    def begin(self, done: float) -> list[str]:
        """Have only those terms asked that have started when a share of training is done, as a number on the host.

        Returns:
            Names of those that were silent until now.
        """
        begun = []
        for term in cast(list[Term], self.terms):
            begun += [term.name] if term.silent and done >= term.starts else []
            term.silent = done < term.starts
        return begun

    def before_step(self, progress: Tensor) -> None:
        """Let every target that follows the encoder follow it; once an optimiser step, before its first batch."""
        for term in cast(list[Term], self.terms):
            follow = getattr(term.target, "before_step", None)
            if follow is not None:
                follow(progress)

    def forward(self, batch: dict[str, Any], progress: Tensor, draws: Draws) -> Output:
        """Compute the loss of a batch that is a whole optimiser step.

        Args:
            batch: See `Context`.
            progress: 0-dim float in [0, 1], the share of training that is done.
            draws: Addressed random numbers of the batch.
        """
        context = self.context(batch, draws)
        plan = self.plan(context, progress)
        return self.compare(context, plan, progress, plan.weights.sum(1))

    @torch.no_grad()
    def plan(self, context: Context, progress: Tensor) -> Plan:
        """Mask a batch and weigh its images, so that a step knows its whole weight before its first gradient."""
        splits = self.masking(context, progress)
        weights = [term.weigh(context, splits) * (not term.silent) for term in cast(list[Term], self.terms)]
        return Plan(splits, torch.stack(weights))

    def compare(
        self, context: Context, plan: Plan, progress: Tensor, totals: Tensor, step: Step | None = None
    ) -> Output:
        """The share that a batch has in the loss of its optimiser step; the shares add up to it.

        Args:
            context: The batch.
            plan: What `plan` gave for it.
            progress: As for `forward`.
            totals: `(T,)`, what all images of the step weigh in each term.
            step: What was said of all images of the step, see `said`; where None and terms read it, the batch and its
                like on the other ranks are the step.
        """
        loss, images = progress.new_zeros(()), torch.zeros_like(plan.weights[0])
        asked = {one.term.name: one for one in self.ask(context, plan.splits)}
        if self.shared and step is None:
            (step,) = join([(self._said(asked.values()), plan.weights)])
        logged: dict[str, Tensor] = {}
        for place, term in enumerate(cast(list[Term], self.terms)):
            if term.silent:  # its parameters take part: all ranks wait for all gradients, and moments are kept of all
                loss = loss + sum((0.0 * local(one)).sum() for one in term.parameters() if one.requires_grad)
                continue
            weights = plan.weights[place]
            values = asked[term.name].loss(step)
            reduced = reduce(values, weights, totals[place])
            share = term.share(progress)
            loss = loss + share * reduced
            images = images + share * torch.where(weights > 0, values.detach(), 0.0)
            logged[term.name] = reduced.detach()
        return Output(loss, logged, torch.where(plan.weights.sum(0) > 0, images, torch.nan))

    @torch.no_grad()
    def said(self, context: Context, plan: Plan, prototypes: bool = True) -> tuple[dict[str, Said], Tensor]:
        """What the shared terms say of a batch, and what its images weigh: with that of the others `join` makes a step.

        Args:
            context: The batch.
            plan: What `plan` gave for it.
            prototypes: With those that other terms read.
        """
        return self._said(self.ask(context, plan.splits, self.shared), prototypes), plan.weights

    @torch.no_grad()
    def survey(self, step: Step) -> None:
        """Compute what losses need to know of all images of a step, so that all its batches find it there alike.

        Args:
            step: That of any of its batches.
        """
        for place, term in enumerate(cast(list[Term], self.terms)):
            if term.step and not term.silent:
                cast(Any, term.loss).survey(step.of(place))

    def _said(self, asked: Iterable[Asked], prototypes: bool = True) -> dict[str, Said]:
        found, terms = {}, cast(list[Term], self.terms)
        read = {name for term in terms if not term.silent for name in term.step if name != term.name}
        for _, term, _, prediction, answer, _ in asked:
            if term.name in self.shared:
                assert term.where == "image" and answer.key is not None, f"{term.name} is not about whole images"
                stands = answer.prototype if prototypes and term.name in read else None
                said = prediction[:, 0].detach().float(), answer.values[:, 0].detach()
                found[term.name] = Said(*said, answer.key, None if stands is None else stands()[:, 0])
        return found

    def ask(
        self, context: Context, splits: dict[str, TokenSplit], only: Collection[str] | None = None
    ) -> Iterator[Asked]:
        """Put every term's question; each set of tokens is encoded once, and the same question answered once.

        Args:
            context: The batch.
            splits: What the masking gave for it.
            only: Names of terms; all that have started where None.
        """
        latents: dict[str, Latents] = {}
        for name, split in splits.items():
            context.views[name].hidden = split.hidden
        predictions: dict[Hashable, Tensor] = {}
        for place, term in enumerate(cast(list[Term], self.terms)):
            if term.silent or (only is not None and term.name not in only):
                continue
            for name in term.memory:
                if name not in latents:
                    latents[name] = self.encode(context, splits, name)
            view = context.views[term.view]
            view.whole, view.shown = latents.get(f"{term.view}:all"), latents.get(term.view)
            positions, weight = term.positions(view, splits.get(term.view))
            question = (term.decoder, term.memory, term.view, term.where)
            if question not in predictions:
                first, *others = (latents[name] for name in term.memory)
                predictions[question] = term.decoder(first, positions, *others)
            if term.with_class and weight is not None:
                weight = F.pad(weight, (1, 0), value=1.0)
            yield Asked(place, term, positions, predictions[question], term.target(view, positions), weight)

    def encode(self, context: Context, splits: dict[str, TokenSplit], name: str) -> Latents:
        """Encode a set of tokens: a view's visible ones by its name, or `VIEW:all`, `VIEW:predict`."""
        view, _, tokens = name.partition(":")
        seen, valid = context.views[view].seen, context.views[view].patch_valid
        if tokens == "all":
            return self.encoder.encode(seen, None, valid, self.read_levels)
        split = splits[view]
        if tokens == "predict":
            weight = split.predict_weight
            return self.encoder.encode(seen, split.predict, None if weight is None else weight > 0, self.read_levels)
        if self.mask_token is None:
            return self.encoder.encode(seen, split.visible, split.visible_valid, self.read_levels)
        hidden = split.veil(seen.values.shape[1])
        if split.hidden is None and valid is not None:
            hidden = hidden | ~valid
        return self.encoder.encode(seen, None, valid, self.read_levels, hidden, self.mask_token)

    @torch.no_grad()
    def predict(self, batch: dict[str, Any], progress: Tensor, draws: Draws) -> dict[str, dict[str, Tensor]]:
        """What is hidden, and what the first pixel term of each view predicts, to look at.

        Returns:
            For every masked view: `patches (B, L, p*p*C)` as given, `seen (B, L, p*p)` bool, `predict (B, M)` patch
            indices, `weight (B, M)`; where pixels are predicted `prediction (B, M, p*p*C)` in the same numbers.
        """
        context = self.context(batch, draws)
        splits = self.masking(context, progress)
        pictures: dict[str, dict[str, Tensor]] = {}
        for name, split in splits.items():
            view, weight = context.views[name], split.predict_weight
            pictures[name] = {
                "patches": view.patches,
                "seen": view.pixels_of(~split.veil(view.length)),
                "predict": split.predict,
                "weight": torch.ones_like(split.predict, dtype=torch.float32) if weight is None else weight,
            }
        for _, term, positions, prediction, _, _ in self.ask(context, splits):
            shown = pictures.get(term.view, {})
            if isinstance(term.target, Pixels) and term.where == "predict" and "prediction" not in shown:
                shown["prediction"] = term.target.to_pixels(context.views[term.view], positions, prediction)
        return pictures
