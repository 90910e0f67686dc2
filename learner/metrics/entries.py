"""The metrics that the learner itself records: training, ages, waits, publishing, the stream and the ledger."""

from __future__ import annotations

from learner.metrics.catalogue import Entries, Kind, Metric, Section, Whose

_TOKENS = "tokens"


_OF_LEARNER = Entries(Whose.LEARNER)
_gauge, _share = _OF_LEARNER.gauge, _OF_LEARNER.share
_seconds, _count = _OF_LEARNER.seconds, _OF_LEARNER.counter

TRAINING = Section(
    "Training",
    "Of the batch of this step. With several updates a batch, means over the updates unless said otherwise.",
    (
        _count("step", "training steps since the run began", "steps"),
        _count("version", "the version that the step made", "versions"),
        _gauge("loss", "", "the policy loss", "no trend by itself: advantages are centred"),
        _gauge("grad_norm", "", "gradient norm before clipping", "of one order of magnitude"),
        _gauge("grad_norm_max", "", "largest gradient norm of the step's updates"),
        _share("skipped_update", "updates that were skipped because the gradient was not finite", "0"),
        _gauge("updates", "updates", "optimizer steps on the batch (`learner.updates_per_batch`)"),
        _gauge("tokens_trained", _TOKENS, "response tokens of the batch"),
        _gauge(
            "tokens_useful",
            _TOKENS,
            "those of them that move the policy: their advantage is not 0, they are not clipped, and neither is "
            "`learner.loss.policy` 0",
        ),
        _gauge("tokens_in_batch", _TOKENS, "prompt and response tokens of the batch; a shared prompt counts each time"),
        _gauge("tokens_computed", "rows", "rows that the learner computed; a shared prompt counts once"),
        _gauge("micro_batches", "micro-batches", "micro-batches of rank 0"),
        _gauge(
            "train_flops",
            "operations",
            "floating-point operations of the step on all ranks, two a multiply-add, with what the backward pass "
            "computes again (`learner.model.architecture.Architecture.cost`)",
        ),
        _gauge("learner_tokens_per_s", "rows/s", "`tokens_computed` / `train_s`"),
        _gauge(
            "entropy",
            "nats",
            "mean entropy of the policy over response tokens, at the sampling temperature",
            "above 0; a fall to 0 is collapse",
        ),
        _gauge(
            "supervised_loss",
            "nats",
            "mean of -log p over the tokens of the step's labelled examples, with `learner.loss.supervised`",
            "falls",
        ),
        _gauge("labelled_examples", "examples", "labelled examples of the step, beside the batch"),
        _gauge("labelled_tokens", _TOKENS, "their response tokens; in no other number of trained tokens"),
        _gauge(
            "entropy_bonus",
            "",
            "weight of the entropy in the loss, `learner.loss.policy` included, with `learner.loss.entropy_floor`",
        ),
        _gauge("advantage_mean/{cell}", "", "mean advantage of the cell's sequences"),
        _gauge("advantage_std/{cell}", "", "standard deviation of the cell's advantages", "above 0"),
    ),
)

OFF_POLICY = Section(
    "Off-policy correction",
    "How far the policy that is trained is from the policies that sampled the batch.",
    (
        _gauge(
            "logprob_mismatch",
            "nats",
            "mean |learner - engine| of log-probabilities of tokens that the present version sampled: the numerical "
            "difference of the two ends. Taken on the batch where it has such tokens, else on trajectories that came "
            "in during the forward and backward pass",
            "below 0.05 in bfloat16, 0.001 in float32",
        ),
        _gauge("mismatch_tokens", _TOKENS, "response tokens that `logprob_mismatch` is over", "above 0"),
        _share("clip_fraction", "tokens whose gradient the clip range takes away", "below 0.2"),
        _share("clip_fraction_low", "those of them below the range (negative advantage)"),
        _share("clip_fraction_high", "those of them above the range (positive advantage)"),
        _share("clip_fraction_dual", "tokens whose loss the dual clip bounds"),
        _share("truncated_weights", "tokens whose importance weight is above the cap"),
        _gauge("kl_behave", "nats", "KL(behaviour policy || policy), a token", "below 0.1"),
        _gauge("kl_prox", "nats", "KL(behaviour policy || policy before the batch), a token; of `decoupled` only"),
        _share("ess", "effective sample size of the importance ratios, as a share of the tokens", "above 0.5"),
        _gauge("max_ratio", "", "largest importance ratio of a token"),
    ),
)

AGES = Section(
    "Ages",
    "Age: the version that trains a trajectory minus the oldest version of its tokens. Tokens of a version that a "
    "restart of the learner undid count as of the version that the restart went on from. See "
    "[policy lag](staleness.md).",
    (
        _gauge("age_mean", "versions", "mean over trajectories; the sum of the three parts", "at most `max_staleness`"),
        _gauge("max_staleness", "versions", "bound of the ages (`learner.max_staleness`)"),
        _gauge("age_max", "versions", "largest", "at most `max_staleness`, unless `on_stale` is `train`"),
        _gauge("age/generation", "versions", "newest - oldest version of the tokens: updates while it was sampled"),
        _gauge("age/queue", "versions", "version at arrival - newest: not loaded yet by the engine, and the judging"),
        _gauge(
            "age/publish", "versions", "version at training - version at arrival: the wait for the rest of the batch"
        ),
        _share("spanning", "trajectories that more than one version sampled"),
    ),
)

TIME = Section(
    "The learner's time",
    "Seconds of rank 0 in this step.",
    (
        _seconds("wait_for_batch_s", "waiting for the batch", "small beside `train_s`: else generation is slow"),
        _seconds("train_s", "the training step"),
        _seconds("forward_backward_s", "its forward and backward passes"),
        _seconds(
            "mismatch_s", "measuring `logprob_mismatch` on trajectories outside the batch", "below 2% of `train_s`"
        ),
    ),
)

LEARNER_TIME = Section(
    "The ledger of the learner's seconds",
    "Seconds of rank 0's main thread since the row before, by what they were spent on. Recording and checkpoints are "
    "those of the step before. The parts and `learner_time/unaccounted_s` add up to `learner_time/total_s`.",
    (
        _seconds("learner_time/wait_for_batch_s", "waiting for the batch"),
        _seconds("learner_time/packing_s", "advantages, and the arrays of the micro-batches"),
        _seconds("learner_time/forward_backward_s", "forward and backward passes; on GPUs, until they are launched"),
        _seconds("learner_time/optimizer_s", "gradient norm and optimizer; on GPUs, also waiting for the passes"),
        _seconds("learner_time/mismatch_s", "measuring `logprob_mismatch` on trajectories outside the batch"),
        _seconds("learner_time/connect_s", "building a new weight group"),
        _seconds("learner_time/gather_s", "gathering and copying the weights"),
        _seconds("learner_time/send_s", "the rest of the broadcast: waiting for receivers and for bytes to be sent"),
        _seconds("learner_time/wait_loaded_s", "waiting until all engines have loaded"),
        _seconds("learner_time/recording_s", "writing metrics and trajectories"),
        _seconds("learner_time/checkpoint_s", "copying the state for a checkpoint"),
        _seconds("learner_time/other_s", "metrics of the batch, and granting"),
        _seconds("learner_time/total_s", "the whole"),
        _seconds("learner_time/unaccounted_s", "what lies in no part", "below 2% of the whole"),
    ),
)

MEMORY = Section(
    "Memory",
    "Memory of actors is under [rollout actors](#rollout-actors).",
    (
        _gauge(
            "memory/learner_mib",
            "MiB",
            "resident memory of rank 0's process and its descendants, read every 30 s. In serial mode that is the "
            "whole run. A page that processes share counts for each",
            "flat after the first steps",
        ),
    ),
)

PUBLISHING = Section(
    "Publishing weights",
    "Seconds of the learner's rank 0 since the last step, publications to newcomers included. The engines' side is "
    "`engine_weights/...`, under [rollout actors](#rollout-actors).",
    (
        _seconds("weights/connect_s", "building a new weight group", "0 while no actor joins or leaves"),
        _seconds("weights/ready_s", "waiting for the receivers"),
        _seconds("weights/prepare_s", "gathering and copying tensors"),
        _seconds("weights/transfer_s", "waiting for buckets to be sent, while none was being prepared"),
        _seconds("weights/send_s", "the whole broadcast"),
        _seconds("weights/wait_loaded_s", "waiting until all engines have loaded, after the broadcast"),
        _gauge("weights/bytes", "bytes", "bytes broadcast, each counted once for all engines"),
        _share(
            "weights/sparse_share",
            "weights in buckets of which only the changed elements were broadcast, by bytes",
            "0 with `learner.weights_delta` off",
        ),
    ),
)

STREAM = Section(
    "The stream",
    "What the learner's end of the stream counts.",
    (
        Metric(name="actors", kind=Kind.GAUGE, unit="actors", whose=Whose.ACTORS, meaning="connected rollout actors"),
        _count("stream/messages", "messages received", "messages"),
        _count("stream/bytes", "bytes received", "bytes"),
        _count("stream/trajectories", "trajectories received", "trajectories"),
        _count("stream/duplicates", "messages received twice", "messages", "few"),
        _count("stream/resent", "control messages sent again", "messages", "few"),
        _count("stream/reconnects", "greetings of actors that were connected", healthy="few"),
        _count("stream/lost", "actors that were counted out", "actors", "0"),
        _count("stream/refused", "messages that were refused", "messages", "0"),
        _count("stream/refused_{reason}", "those of them of one reason", "messages", "0"),
        _count("stream/late", "trajectories whose slot had ended", "trajectories", "few"),
        _gauge("stream/queued", "trajectories", "trajectories that wait to be trained", "about a batch or less"),
        _count("stream/denied_key", "connections refused for a wrong key", "connections", "0"),
        _count("stream/denied_handshake", "handshakes that failed", "connections", "0"),
        _count("stream/disconnects", "connections that ended", "connections", "few"),
    ),
)

LEDGER = Section(
    "The ledger",
    "Slots since the run began, steps that a restart undid left out. granted = trained + dropped + returned + queued + "
    "in flight, in every cell.",
    (
        _count("ledger/granted", "slots granted", "slots"),
        _count("ledger/trained", "trained", "slots"),
        _count("ledger/dropped", "dropped, and granted again", "slots", "few"),
        _count("ledger/returned", "returned: the actor had no task", "slots"),
        _gauge("ledger/queued", "slots", "arrived, not trained yet", "at most `max_staleness` + 1 batches"),
        _gauge("ledger/in_flight", "slots", "granted, not arrived yet"),
        _count("ledger/stale_trained", "those of the trained above `max_staleness`", "slots", "0"),
        _gauge("ledger/{state}/{cell}", "slots", "the same, of one cell"),
        _count("ledger/dropped_{reason}", "dropped for one reason (`DropReason`)", "slots"),
    ),
)

TOKEN_LEDGER = Section(
    "The ledger of tokens",
    "Response tokens since the learner's process began, and for actors that were there before, since their first "
    "heartbeat. generated = trained + queued + in flight + without a slot + dropped, exactly. The actors' part is of "
    "their last heartbeat; each sends one with every version that it has loaded. Not in serial mode.",
    (
        _gauge("token_ledger/generated", _TOKENS, "tokens that engines generated, and those of a checkpoint's queue"),
        _gauge("token_ledger/trained", _TOKENS, "trained"),
        _gauge("token_ledger/queued", _TOKENS, "arrived, not trained yet"),
        _gauge("token_ledger/in_flight", _TOKENS, "being generated, waiting to be judged, or on their way"),
        _gauge(
            "token_ledger/without_slot",
            _TOKENS,
            "sampled without a slot: estimates beyond the slots, proposals that are not trained, held-out tasks, "
            "the seeding phase",
        ),
        _gauge(
            "token_ledger/dropped_{reason}",
            _TOKENS,
            "dropped: `aborted` (the request ended without a response, or the end of the response was cut off), "
            "`failed` (with their episode), `cancelled` (the learner no longer counted on the slot), `actor_lost`, "
            "`stale`, `late` (the slot had ended)",
            "few",
        ),
        _gauge("token_ledger/unaccounted", _TOKENS, "generated, and in none of these places", "0"),
    ),
)

LEARNER_SECTIONS = (TRAINING, OFF_POLICY, AGES, TIME, LEARNER_TIME, MEMORY, PUBLISHING, STREAM, LEDGER, TOKEN_LEDGER)
