"""Every metric name in one place. verl's names where it has one, so that dashboards carry over.

A name never changes its meaning; a new meaning gets a new name.
"""

PG_LOSS = "actor/pg_loss"
"""Policy-gradient loss as it was minimised: by default its mean over the step's completion tokens, see
`grpo.loss_aggregation`. Of all `actor/*`, `training/rollout_probs_diff_*` and `rollout_corr/*` a step reports
the mean (of a maximum the maximum) over its optimizer steps."""
PPO_KL = "actor/ppo_kl"
"""Mean of log(pi_old / pi): how far the policy moved from the one that sampled, or, with `grpo.old_policy:
learner`, from the step's start."""
PG_CLIPFRAC = "actor/pg_clipfrac"
"""Share of tokens whose ratio was clipped."""
PG_CLIPFRAC_LOWER = "actor/pg_clipfrac_lower"
"""Share of tokens whose loss was bounded by `grpo.clip_dual`; absent without it."""
ENTROPY = "actor/entropy"
"""Mean entropy of the next-token distribution at completion tokens, in nats."""
GRAD_NORM = "actor/grad_norm"
"""Norm of the gradient before clipping."""
LEARNING_RATE = "actor/lr"
KL_LOSS = "actor/kl_loss"
"""Mean over tokens of the estimate (`grpo.kl_estimator`) of the KL to the frozen reference; absent when its
coefficient is 0."""
LOSS = "actor/loss"
"""What was minimised: the policy-gradient loss plus the weighted KL."""

ROLLOUT_PROBS_DIFF_MEAN = "training/rollout_probs_diff_mean"
ROLLOUT_PROBS_DIFF_MAX = "training/rollout_probs_diff_max"
ROLLOUT_PROBS_DIFF_STD = "training/rollout_probs_diff_std"
"""|p_rollout - p| of the sampled tokens: engine mismatch and policy lag together. With `grpo.old_policy:
learner`, p is of the step's start; otherwise of the optimizer step."""
ROLLOUT_IS_MEAN = "rollout_corr/rollout_is_mean"
ROLLOUT_IS_MAX = "rollout_corr/rollout_is_max"
"""Importance weights of tokens, after truncation and mask; absent without `grpo.importance_level`."""
ROLLOUT_IS_OOB_RATIO = "rollout_corr/rollout_is_oob_ratio"
"""Share of tokens that `grpo.importance_mask` left out."""
POLICY_LAG_MEAN = "training/policy_lag/mean"
POLICY_LAG_MAX = "training/policy_lag/max"
"""Weight versions between a trained group's oldest token and the policy that it trains."""

SCORE_MEAN = "critic/score/mean"
SCORE_MAX = "critic/score/max"
SCORE_MIN = "critic/score/min"
"""Of all groups drawn since the last step, those skipped for want of variance included."""
REWARD_MEAN = "critic/rewards/mean"
"""Of the groups trained on."""
REWARD_MAX = "critic/rewards/max"
REWARD_MIN = "critic/rewards/min"
ADVANTAGE_MEAN = "critic/advantages/mean"
"""Over completion tokens: above 0 where longer answers are the better ones."""
ADVANTAGE_MAX = "critic/advantages/max"
ADVANTAGE_MIN = "critic/advantages/min"
ZERO_VARIANCE_SHARE = "frac_reward_zero_std"
"""Share of groups whose rewards are all equal (TRL's name)."""

RESPONSE_LENGTH_MEAN = "response_length/mean"
RESPONSE_LENGTH_MIN = "response_length/min"
RESPONSE_LENGTH_MAX = "response_length/max"
RESPONSE_LENGTH_CLIP_RATIO = "response_length/clip_ratio"
"""Share of completions that ended at the token limit."""
EMPTY_RESPONSE_RATIO = "response/aborted_ratio"
"""Share of completions without a token."""
PROMPT_LENGTH_MEAN = "prompt_length/mean"
PROMPT_LENGTH_MIN = "prompt_length/min"
PROMPT_LENGTH_MAX = "prompt_length/max"

NUM_TOKENS = "perf/total_num_tokens"
"""Prompt tokens (once a group) and completion tokens of the step, over all ranks."""
TOKENS_PER_S = "perf/throughput"
"""`perf/total_num_tokens` by second of the update and by rank."""
SAMPLES_PER_S = "perf/samples_per_s"
"""Completions (SFT: samples) by second of the update, over all ranks."""
UPDATE_S = "timing_s/update_actor"
"""Seconds of the update: reading images, forward, backward, optimizer."""
OLD_LOG_PROB_S = "timing_s/old_log_prob"
"""Of these, seconds of the pass that gives the old policy's log-probabilities; absent where there is none."""

STEP_S = "timing_s/step"
TIME_PER_STEP = "perf/time_per_step"
"""Wall-clock seconds of a GRPO step: waiting for groups, update, weight sync; without evaluation."""
SYNC_S = "timing_s/weight_sync"
"""Seconds of the latest weight sync: export, transfer to all engines, digest, canary."""
CANARY_DIFF = "training/canary_logprob_diff"
"""Largest difference of a canary token's log-probability between an engine and the learner, latest sync."""
END_TO_END_SAMPLES_PER_S = "perf/end_to_end_samples_per_s"
"""Completions trained or skipped by wall-clock second of the whole system."""
ROLLOUT_TOKENS_PER_S = "perf/rollout_tokens_per_s"
"""Tokens sampled by wall-clock second, over all engines."""
SKIPPED_SHARE = "rollout/skipped_share"
"""Share of groups left out since the last step because their rewards were all equal."""
DEAD_LETTERS = "rollout/dead_letters"
"""Groups dead-lettered so far."""

SFT_LOSS = "sft/loss"
"""Cross-entropy of the target tokens, mean over the batch's tokens."""
SFT_ENTROPY = "sft/entropy"
SFT_GRAD_NORM = "sft/grad_norm"
SFT_LEARNING_RATE = "sft/lr"

VAL_PLANNING_ACCURACY = "val/planning_accuracy"
"""Share of `data.eval` whose greedy answer is an acceptable plan; all `val/*` are defined in
`alphadrive.metrics.PlanningMetrics`."""
VAL_EXACT_MATCH = "val/exact_match"
VAL_MACRO_F1 = "val/macro_f1"
VAL_INVALID_RATE = "val/invalid_rate"
VAL_MISSED_BRAKE_RATE = "val/missed_brake_rate"
VAL_SECONDS = "val/seconds"


def reward_term_mean(term: str) -> str:
    """The mean of a reward's term over the completions drawn since the last step: `reward/speed/mean`."""
    return f"reward/{term}/mean"


def reward_term_std(term: str) -> str:
    """Its standard deviation over the same completions (the population's)."""
    return f"reward/{term}/std"
